"""The lowered program: every thread of every block.

Asynchronous copies happen as late as waits let them, and warps can run ahead of each other as far
as barriers let them: then a wait or a barrier that is missing shows as another value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tileproof.codegen.hostir import Launch, evaluate

from .machine import Lanes, Machine, Meeting, Place, Pointer, arithmetic
from .memory import FaultError, Memory, UnmodelledError, element

WARP = 32
# All threads of a block in step, or the first or the last warp ahead of the others.
Order = Literal["together", "first", "last"]


def run_launch(
    launch: Launch,
    function: Any,
    tensors: Mapping[str, Memory],
    sizes: Mapping[str, int],
    order: Order = "together",
) -> None:
    """Executes one launch on `tensors`."""
    grid = [evaluate(n, sizes) for n in launch.grid]
    block = [evaluate(n, sizes) for n in launch.block]
    if launch.cooperative or [evaluate(n, sizes) for n in launch.cluster] != [1, 1, 1]:
        raise UnmodelledError("blocks that run together")
    blocks, threads = int(np.prod(grid)), int(np.prod(block))
    if not blocks:
        return
    places = {}
    scalars = _sizes(function, sizes)
    for argument, parameter in zip(launch.args, function.params, strict=True):
        if argument.tensor_map:
            raise UnmodelledError("tensor maps")
        if argument.is_tensor:
            places[parameter] = Place(tensors[argument.name], "global")
    shared: dict[str, Place] = {}
    warps = []
    most = threads if order == "together" else WARP
    for first in range(0, threads, most):
        width = min(most, threads - first)
        lanes = Lanes(
            np.repeat(np.arange(blocks), width), np.tile(np.arange(first, first + width), blocks)
        )
        lanes.env.update(scalars)
        warps.append(Warp(lanes, dict(places), grid, block, shared))
    if order == "last":
        warps.reverse()
    _together(warps, function.body)


def _sizes(function: Any, sizes: Mapping[str, int]) -> dict[Any, Any]:
    """The sizes a kernel mentions: its scalar parameters, and those only shapes have."""
    from tilelang import tvm

    mentioned = [*function.params, *tvm.tirx.analysis.undefined_vars(function.body)]
    return {v: np.int64(sizes[str(v.name)]) for v in mentioned if str(v.name) in sizes}


def _together(warps: list[Warp], body: Any) -> None:
    """Runs all warps, each as far as the next meeting of the block."""
    runs = [warp.run(body) for warp in warps]
    while True:
        arrived = [next(run, None) for run in runs]
        met = [m for m in arrived if m is not None]
        if not met:
            return
        if len(met) < len(arrived) or any(m[0] != met[0][0] for m in met):
            raise FaultError("threads of a block part at a barrier")
        combine = met[0][1]
        if combine is not None:
            combine([m[2] for m in met], warps)


class Warp(Machine):
    """The same warp of every block, or all warps in step."""

    def __init__(
        self,
        lanes: Lanes,
        places: dict[Any, Place],
        grid: list[int],
        block: list[int],
        shared: dict[str, Place],
    ) -> None:
        super().__init__(lanes, places)
        self.grid, self.block, self.shared = grid, block, shared
        self.copies: list[list[Any]] = [[]]  # groups of cp.async, the last not committed

    # --- memory ----------------------------------------------------------------------------------

    def run_AttrStmt(self, s: Any) -> Meeting:
        if str(s.attr_key) == "thread_extent":
            where, axis = str(s.node.thread_tag).split(".")
            sizes = self.grid if where == "blockIdx" else self.block
            index = self.lanes.block if where == "blockIdx" else self.lanes.thread
            for size in sizes[: "xyz".index(axis)]:
                index = index // size
            self.lanes.env[s.node.var] = index % sizes["xyz".index(axis)]
        yield from self.run(s.body)

    def allocate(self, buffer: Any) -> None:
        scope = str(buffer.scope())
        count = 1
        for n in buffer.shape:
            count *= int(self.value(n))
        size = count * element(str(buffer.dtype)).bytes
        if scope.startswith("local"):
            self.places[buffer.data] = Place(
                Memory(buffer.name, self.lanes.count, size, "device"), "lane"
            )
            return
        if scope not in ("shared", "shared.dyn"):
            raise UnmodelledError(f"memory of scope {scope}")
        blocks = int(self.lanes.block.max()) + 1
        made = Place(Memory(buffer.name, blocks, size, "device"), "block")
        self.places[buffer.data] = self.shared.setdefault(str(buffer.data), made)

    def bind(self, var: Any, value: Any) -> None:
        if str(var.dtype) != "handle":
            super().bind(var, value)
            return
        place, at, _ = self.pointer(value)
        self.places[var] = Place(place.memory, place.owner, at)

    def pointer(self, e: Any) -> Pointer:
        name = type(e).__name__
        if name == "Var":
            place = self.places.get(e)
            if place is None:
                raise UnmodelledError(f"pointer {e.name}")
            annotation = getattr(e.type_annotation, "element_type", None)
            kind = element(str(getattr(annotation, "dtype", "uint8") or "uint8"))
            return place, place.offset, kind
        if name == "Call" and str(e.op.name) == "tirx.handle_add_byte_offset":
            place, at, kind = self.pointer(e.args[0])
            return place, at + self.value(e.args[1]), kind
        if name == "Call" and str(e.op.name) == "tirx.tvm_access_ptr":
            place, at, _ = self.pointer(e.args[1])
            kind = element(str(e.args[0].dtype))
            return place, at + self.value(e.args[2]) * kind.bytes, kind
        return super().pointer(e)

    def read(self, pointer: Pointer, count: int, offset: Any = 0) -> Any:
        """`count` elements from `offset` on, a row each."""
        place, at, kind = pointer
        steps = np.arange(count)[:, None] + offset
        return place.memory.load(self.owner(place), at + steps * kind.bytes, kind, self.active)

    def write(self, pointer: Pointer, value: Any, offset: Any = 0) -> None:
        place, at, kind = pointer
        steps = np.arange(len(value))[:, None] + offset
        place.memory.store(self.owner(place), at + steps * kind.bytes, kind, value, self.active)

    # --- calls -----------------------------------------------------------------------------------

    def call(self, call: Any) -> Meeting:
        name = str(call.op.name)
        method = _CALLS.get(name)
        if method is not None:
            method(self, list(call.args))
        elif name == "tirx.tvm_storage_sync" and len(call.args) == 1:
            yield from self.barrier(call)
        elif name != "tirx.call_extern" or call not in self.results:
            yield from super().call(call)

    def barrier(self, call: Any) -> Meeting:
        present = self.active.reshape(int(self.lanes.block.max()) + 1, -1)
        if (present.any(axis=1) != present.all(axis=1)).any():
            raise FaultError("threads of a block part at a barrier")
        yield str(call), None, None

    def by_warp(self, values: Any) -> Any:
        """Values of lanes with the lanes of a warp in a dimension of their own."""
        if self.lanes.count % WARP or (self.lanes.thread[::WARP] % WARP).any():
            raise UnmodelledError("a warp of fewer than 32 threads")
        return values.reshape(*values.shape[:-1], -1, WARP)

    def cp_async(self, args: list[Any]) -> None:
        to, source = self.pointer(args[0]), self.pointer(args[1])
        outer = self.active
        if len(args) > 3:
            self.active = outer & (self.value(args[3]) != 0)
        count = int(args[2].value)
        value = self.read(source, count)  # zero where inactive, which is the fill
        self.active = outer
        self.copies[-1].append((to, value, outer))

    def commit(self, args: list[Any]) -> None:
        self.copies.append([])

    def wait(self, args: list[Any]) -> None:
        pending = int(args[0].value)
        while len(self.copies) > pending + 1:
            outer = self.active
            for to, value, active in self.copies.pop(0):
                self.active = active
                self.write(to, value)
            self.active = outer

    def ldmatrix(self, args: list[Any]) -> None:
        # Lane 8m + r gives the address of row r of matrix m; lane l gets elements 2(l%4) and the
        # next of row l/4 of each matrix, of its transpose if asked for.
        transposed, count = bool(args[0].value), int(args[1].value)
        source, to = self.pointer(args[2]), self.pointer(args[3])
        place, at, kind = source
        each = 4 // kind.bytes  # elements of a register
        rows = self.by_warp(np.broadcast_to(at, self.active.shape))
        lane = np.arange(WARP)
        if transposed and each != 2:
            raise UnmodelledError(f"ldmatrix.trans of {kind.name}")
        values = []
        for m in range(count):
            for i in range(each):
                if transposed:
                    row, column = lane % 4 * 2 + i, lane // 4
                else:
                    row, column = lane // 4, lane % 4 * each + i
                address = (rows[:, 8 * m + row] + column * kind.bytes).reshape(-1)
                values.append(place.memory.load(self.owner(place), address, kind, self.active))
        self.write(to, np.stack(values))

    def mma(self, args: list[Any]) -> None:
        # PTX ISA, "Matrix fragments for mma": rows and columns of 32-bit registers of 32/bits
        # elements; the layouts of every shape with 16 rows and 8 columns follow one rule.
        shape = re.fullmatch(r"m16n8k(\d+)", str(args[0].value))
        layout = (str(args[1].value), str(args[2].value))
        if shape is None or layout != ("row", "col"):
            raise UnmodelledError(f"mma {args[0].value} {layout}")
        k = int(shape[1])
        a, b, c = (self.pointer(args[i]) for i in (6, 8, 10))
        bits = a[2].bits
        if bits not in (8, 16, 32):
            raise UnmodelledError(f"mma of {a[2].name}")
        each = 32 // bits
        lane = np.arange(WARP)
        group, quad = lane // 4, lane % 4

        def gather(pointer: Pointer, offset: Any, rows: int, columns: int, place: Any) -> Any:
            count = rows * columns // WARP
            values = self.by_warp(self.read(pointer, count, self.value(offset)))
            matrix = np.zeros((values.shape[1], rows, columns), np.int64)
            for e in range(count):
                row, column = place(e)
                matrix[:, row, column] = values[e]
            return matrix

        def of_a(e: int) -> Any:
            register = e // each
            return group + 8 * (register % 2), quad * each + e % each + 4 * each * (register // 2)

        def of_b(e: int) -> Any:
            return quad * each + e % each + 4 * each * (e // each), group

        def of_c(e: int) -> Any:
            return group + 8 * (e // 2), quad * 2 + e % 2

        left, right = gather(a, args[7], 16, k, of_a), gather(b, args[9], k, 8, of_b)
        total = gather(c, args[11], 16, 8, of_c)
        for i in range(k):
            wide = a[2].name if a[2].kind == "float" else c[2].name
            product = arithmetic("Mul", wide, left[:, :, i, None], right[:, i, None, :])
            total = arithmetic("Add", c[2].name, total, product)
        result = np.stack([total[:, of_c(e)[0], of_c(e)[1]].reshape(-1) for e in range(4)])
        self.write(c, result, self.value(args[11]))

    # --- meetings within expressions -------------------------------------------------------------

    def meet(self, value: Any) -> Meeting:
        calls = _collectives(value)
        for call in calls:
            argument = np.broadcast_to(self.value(call.args[1]), self.active.shape)
            yield str(call), _AllReduce(call), (self, argument, call)


_ALL_REDUCE = re.compile(r"tl::AllReduce<tl::(Sum|Max|Min)Op, (\d+), (\d+), (\d+)\b.*>::run")
_REDUCTIONS = {"Sum": "Add", "Max": "Max", "Min": "Min"}


class _AllReduce:
    """tl::AllReduce<Op, threads, scale, first, …>: every thread gets the total of those threads
    whose numbers, counted from `first`, differ from its own only in bits from `scale` to `threads`.
    """

    def __init__(self, call: Any) -> None:
        match = _ALL_REDUCE.fullmatch(str(call.args[0].value))
        if match is None:
            raise UnmodelledError(str(call.args[0].value))
        self.operation = _REDUCTIONS[match[1]]
        self.threads, self.scale, self.first = (int(n) for n in match.groups()[1:])
        self.dtype = str(call.dtype)

    def __call__(self, parts: list[Any], warps: list[Warp]) -> None:
        blocks = int(warps[0].lanes.block.max()) + 1
        threads = sum(warp.lanes.count for warp in warps) // blocks
        value = np.zeros((blocks, threads), np.int64)
        for machine, argument, _ in parts:
            value[machine.lanes.block, machine.lanes.thread] = argument
        number = np.arange(threads) - self.first
        low, high = number % self.scale, number // self.threads
        of_group = high * self.scale + low
        total = np.zeros_like(value)
        for group in np.unique(of_group[number >= 0]):
            members = (of_group == group) & (number >= 0)
            columns = value[:, members].T
            result = columns[0]
            for column in columns[1:]:
                result = arithmetic(self.operation, self.dtype, result, column)
            total[:, members] = result[:, None]
        for machine, _, call in parts:
            machine.results[call] = total[machine.lanes.block, machine.lanes.thread]


def _collectives(value: Any) -> list[Any]:
    from tilelang import tvm

    found: list[Any] = []

    def visit(node: Any) -> None:
        is_extern = type(node).__name__ == "Call" and str(node.op.name) == "tirx.call_extern"
        if is_extern and str(node.args[0].value).startswith("tl::AllReduce"):
            found.append(node)

    tvm.tirx.stmt_functor.post_order_visit(tvm.tirx.Evaluate(value), visit)
    return found


_CALLS = {
    "tl.ptx_cp_async": Warp.cp_async,
    "tirx.ptx_commit_group": Warp.commit,
    "tirx.ptx_wait_group": Warp.wait,
    "tl.ptx_ldmatrix": Warp.ldmatrix,
    "tirx.ptx_mma": Warp.mma,
    "tl.sync_warp": lambda warp, args: None,
}
