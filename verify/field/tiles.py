"""The source program: what TileLang's tile operations mean, before anything is lowered.

A block is one place that holds its shared memory and fragments; what is local belongs to a thread.
Outside parallel loops and tile operations a lane is a thread, inside it is a point of a block.
Copies are there at once; who else waits for them is told by the mbarriers the source names.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from . import collectives, roles, tensor_source
from .arithmetic import arithmetic, convert
from .machine import Lanes, Machine, Meeting, Place
from .memory import Memory, UnmodelledError, element
from .schedule import TOGETHER, DeadlockError, Mbarriers, Meetings, run_all

Region = tuple[Any, list[Any], list[int]]  # buffer, first index, extents

_PARALLEL = 1  # tvm.tirx.ForKind


def run_source(function: Any, tensors: Mapping[str, Memory], sizes: Mapping[str, int]) -> None:
    """Executes a TileLang prim_func on `tensors`."""
    from tilelang import tvm

    places = {}
    env: dict[Any, Any] = {}
    for parameter in function.params:
        buffer = function.buffer_map.get(parameter)
        if buffer is None:
            env[parameter] = np.int64(sizes[str(parameter.name)])
            continue
        places[buffer.data] = Place(tensors[str(buffer.name)], "global")
        for n in [*buffer.shape, *buffer.strides]:
            for var in tvm.tirx.analysis.undefined_vars(n):
                env[var] = np.int64(sizes[str(var.name)])
    lanes = Lanes(np.zeros(1, np.int64), None, env)
    try:
        run_all([Source(lanes, places).run(function.body)], [], TOGETHER)
    except DeadlockError as why:
        # Blocks go in step here, and roles come together again behind their branches.
        raise UnmodelledError("roles of the source that wait beyond their branches") from why


class Source(Machine):
    """All blocks, then all their threads, or the points of a parallel loop."""

    def __init__(self, lanes: Lanes, places: dict[Any, Place]) -> None:
        super().__init__(lanes, places)
        self.axes: dict[Any, int] = {}  # of thread numbers
        self.threads = 1  # of a block, that run this
        self.arrays: dict[Any, Mbarriers] = {}
        self.meetings: Meetings | None = None  # of roles
        self.temporary: dict[Any, Place] = {}  # what a point keeps in a variable of its thread

    # --- lanes -----------------------------------------------------------------------------------

    def run_For(self, s: Any) -> Meeting:
        if s.thread_binding is not None:
            blocks = int(self.value(s.extent))
            if not blocks:
                return
            self.lanes = self.repeated(blocks, s.loop_var)
            self.lanes.block = np.arange(self.lanes.count)
            self.active = np.ones(self.lanes.count, bool)
            yield from self.run(s.body)
        elif int(s.kind) == _PARALLEL:
            with self.once_per_block():
                extent = np.where(self.active, self.value(s.extent), 0)
                start = self.value(s.min)
                with self.points(int(extent.max(initial=0)), s.loop_var) as number:
                    count = self.lanes.count // max(1, len(extent))
                    self.active &= number < _each(extent, count)
                    self.lanes.env[s.loop_var] = _each(start, count) + number
                    yield from self.run(s.body)
        else:
            yield from super().run_For(s)

    def run_SeqStmt(self, s: Any) -> Meeting:
        rest = list(s.seq)
        while rest:
            parting, ways = self.branches(rest)
            if parting:
                yield from roles.part(self, parting, ways)
            else:
                yield from self.run(rest[0])
            rest = rest[max(1, len(parting)) :]

    def run_IfThenElse(self, s: Any) -> Meeting:
        parting, ways = self.branches([s])
        yield from roles.part(self, parting, ways) if parting else super().run_IfThenElse(s)

    def branches(self, statements: list[Any]) -> tuple[list[Any], Any]:
        return ([], None) if self.lanes.thread is None else roles.branches(self, statements)

    def role(self, lanes: Lanes, threads: int, own: dict[Any, Place]) -> Source:
        """Some threads of every block, which share all but what each has of its `own`."""
        role = Source(lanes, {**self.places, **own})
        role.axes, role.threads, role.arrays = self.axes, threads, self.arrays
        if self.meetings is None:
            self.meetings = Meetings(self.lanes.count // self.threads, self.threads)
        role.meetings = self.meetings
        return role

    def run_SBlockRealize(self, s: Any) -> Meeting:
        yield from self.run(s.block)

    def run_SBlock(self, s: Any) -> Meeting:
        launch = s.annotations.get("tl.launch_threads")
        if launch is not None:
            self.start_threads([int(n) for n in launch])
        arrivals = dict(s.annotations.get("barrier_init", {}))
        for buffer in s.alloc_buffers:
            if buffer.data in arrivals:
                self.arrays[buffer.data] = self.initialized(buffer, arrivals[buffer.data])
            else:
                self.allocate(buffer)
        yield from self.run(s.body)

    def run_Bind(self, s: Any) -> Meeting:
        if type(s.value).__name__ == "Call" and str(s.value.op.name) == "tl.launch_thread_idx":
            self.axes[s.var] = int(s.value.args[0].value)
        else:
            yield from super().run_Bind(s)

    def repeated(self, count: int, var: Any = None) -> Lanes:
        """Every lane `count` times; `var` numbers them."""
        env = {v: _each(value, count) for v, value in self.lanes.env.items()}
        if var is not None:
            env[var] = np.tile(np.arange(count), self.lanes.count)
        return Lanes(np.repeat(self.lanes.block, count), None, env)

    def start_threads(self, sizes: list[int]) -> None:
        self.threads = int(np.prod(sizes))
        thread = np.tile(np.arange(self.threads), self.lanes.count)
        self.lanes = replace(self.repeated(self.threads), thread=thread)
        for var, axis in self.axes.items():
            self.lanes.env[var] = thread // int(np.prod(sizes[:axis])) % sizes[axis]
        self.active = np.ones(self.lanes.count, bool)

    @contextlib.contextmanager
    def once_per_block(self) -> Iterator[None]:
        """Within, a lane is a block and knows what its threads agree on. At points: as it is."""
        lanes, active = self.lanes, self.active
        if lanes.thread is not None:
            mine = active.reshape(-1, self.threads)
            if (mine.any(axis=1) != mine.all(axis=1)).any():
                raise UnmodelledError("a tile operation or parallel loop of some threads")
            env = {}
            for var, value in lanes.env.items():
                if np.ndim(value) == 0:
                    env[var] = value
                    continue
                if np.ndim(value) > 1:
                    continue  # a thread's vector
                by_block = np.broadcast_to(value, active.shape).reshape(-1, self.threads)
                if (by_block == by_block[:, :1])[mine].all():
                    env[var] = by_block[:, 0]
            self.lanes, self.active = Lanes(lanes.block[:: self.threads], None, env), mine[:, 0]
        try:
            yield
        finally:
            self.lanes, self.active = lanes, active

    @contextlib.contextmanager
    def points(self, count: int, var: Any = None) -> Iterator[Any]:
        """Within, every lane is `count` lanes. Yields the number of each."""
        lanes, active, kept = self.lanes, self.active, self.temporary
        self.lanes, self.active = self.repeated(count, var), np.repeat(active, count)
        self.temporary = {
            data: replace(place, memory=place.memory.repeated(count))
            for data, place in kept.items()
        }
        try:
            yield np.tile(np.arange(count), lanes.count)
        finally:
            self.lanes, self.active, self.temporary = lanes, active, kept

    # --- memory ----------------------------------------------------------------------------------

    def allocate(self, buffer: Any) -> None:
        scope = str(buffer.scope())
        size = element(str(buffer.dtype)).bytes
        for n in buffer.shape:
            size *= int(self.value(n))
        owner = "lane" if scope in ("local", "local.var") else "block"
        if owner == "block" and scope not in _BLOCK:
            raise UnmodelledError(f"memory of scope {scope}")
        count = self.lanes.count if owner == "lane" else self.lanes.count // self.threads
        self.places[buffer.data] = Place(Memory(buffer.name, count, size, "source"), owner)

    def initialized(self, buffer: Any, arrivals: Any) -> Mbarriers:
        """An array of mbarriers in every block, each for its number of arrivals."""
        blocks = self.lanes.count // self.threads
        array = Mbarriers(str(buffer.name), blocks, len(arrivals))
        for slot, count in enumerate(arrivals):
            array.init(np.arange(blocks), np.full(blocks, slot), np.full(blocks, int(count)))
        return array

    def mbarriers(self, load: Any) -> Mbarriers:
        found = self.arrays.get(load.buffer.data) if hasattr(load, "buffer") else None
        if found is None or self.lanes.thread is None:
            raise UnmodelledError(f"mbarrier {load}")
        return found

    def place(self, buffer: Any) -> Place:
        found = super().place(buffer)
        if found.owner != "lane" or self.lanes.thread is not None:
            return found
        if found.memory.value.shape[0] == self.lanes.count:
            return found  # as many points as threads: each thread has one, in this order
        if buffer.data not in self.temporary:
            # A point works with a copy of its thread's variable, which is that of any thread.
            value = found.memory.value.reshape(-1, self.threads, found.memory.size)
            if (value != value[:, :1]).any():
                raise UnmodelledError(f"{buffer.name} of one thread in a parallel loop")
            rows = self.lanes.block * self.threads
            self.temporary[buffer.data] = Place(found.memory.repeated(1, rows), "lane")
        return self.temporary[buffer.data]

    # What lies beyond a tensor reads as 0 and is not written. TileLang adds such guards to copies
    # always, to other accesses unless told not to; then the lowered program must not need them.

    def load(self, buffer: Any, indices: list[Any]) -> Any:
        with self.within(buffer, indices):
            return super().load(buffer, indices)

    def store(self, buffer: Any, indices: list[Any], value: Any) -> None:
        with self.within(buffer, indices):
            super().store(buffer, indices, value)

    @contextlib.contextmanager
    def within(self, buffer: Any, indices: list[Any]) -> Iterator[None]:
        """Within, only lanes are active whose indices are those of an element of a tensor."""
        outer, place = self.active, self.place(buffer)
        if place.owner == "global":
            for index, n in zip(indices, buffer.shape, strict=True):
                self.active = self.active & (index >= 0) & (index < self.value(n))
        try:
            yield
        finally:
            self.active = outer

    # --- tile operations -------------------------------------------------------------------------

    def call(self, call: Any) -> Meeting:
        name = str(call.op.name)
        args = list(call.args)
        if name == "tirx.tvm_storage_sync" and self.meetings is not None:
            yield from collectives.barrier(self.meetings, self, args)
        elif name in _SYNCHRONISING:
            yield from _SYNCHRONISING[name](self, args) or ()
        elif name in _OPERATIONS:
            notes = dict(call.annotations or {})
            unknown = set(notes) & _UNKNOWN
            if unknown:
                raise UnmodelledError(f"{name} with {', '.join(sorted(unknown))}")
            _OPERATIONS[name](self, args, **({"notes": notes} if name in _PRODUCTS else {}))
        elif name == "tl.ptx_cp_async":
            self.write(*self.fetched(args))
        elif name not in _NOTHING:
            yield from super().call(call)

    def region(self, e: Any) -> Region:
        if type(e).__name__ != "Call" or str(e.op.name) != "tl.region":
            raise UnmodelledError(f"tile {e}")
        load, _, *extents = e.args
        return load.buffer, list(load.indices), [int(self.value(n)) for n in extents]

    @contextlib.contextmanager
    def tile(self, shape: list[int]) -> Iterator[list[Any]]:
        """Within, a lane is an element of the tile; yields its indices."""
        with self.once_per_block(), self.points(int(np.prod(shape))) as number:
            yield [number // int(np.prod(shape[axis + 1 :])) % n for axis, n in enumerate(shape)]

    def at(self, region: Region, where: list[Any]) -> tuple[Any, list[Any]]:
        """The element of a region at indices along the extents that are not 1."""
        buffer, first, extents = region
        rest = iter(where)
        found = [
            self.value(start) + (next(rest) if n != 1 else 0)
            for start, n in zip(first, extents, strict=True)
        ]
        return buffer, found

    def copy(self, args: list[Any]) -> None:
        source, target = self.region(args[0]), self.region(args[1])
        shape = [n for n in target[2] if n != 1]
        if [n for n in source[2] if n != 1] != shape:
            raise UnmodelledError(f"a copy of {source[2]} to {target[2]}")
        dtypes = str(source[0].dtype), str(target[0].dtype)

        def move(where: list[Any]) -> None:
            value = self.load(*self.at(source, where))
            self.store(*self.at(target, where), convert(value, *dtypes))

        self.elements(shape, (source, target), move)

    def fill(self, args: list[Any]) -> None:
        target = self.region(args[0])
        value = convert(self.value(args[1]), str(args[1].dtype), str(target[0].dtype))
        if np.ndim(value):
            raise UnmodelledError("a fill with the value of a thread")
        shape = [n for n in target[2] if n != 1]
        self.elements(shape, (target,), lambda where: self.store(*self.at(target, where), value))

    def elements(self, shape: list[int], regions: tuple[Region, ...], do: Any) -> None:
        """For every element of a tile: at once, or for threads that own it one after another."""
        if any(self.places[buffer.data].owner == "lane" for buffer, *_ in regions):
            if self.lanes.thread is None:
                raise UnmodelledError("a thread's tile in a parallel loop")
            for indices in itertools.product(*map(range, shape)):
                do(list(indices))
            return
        with self.tile(shape) as where:
            do(where)

    def gemm(self, args: list[Any], notes: Mapping[str, Any]) -> None:
        """(A, B, C, A transposed, B transposed, m, n, k, policy, whether it clears C, mbarrier, …),
        of a product in blocks also scales of A and B and the first k of theirs."""
        a, b, c = (self.region(e) for e in args[:3])
        transposed = [bool(e.value) for e in args[3:5]]
        m, n, k = (int(self.value(e)) for e in args[5:8])
        kinds = [str(buffer.dtype) for buffer, *_ in (a, b, c)]
        clear = bool(self.value(args[9]))
        by = tensor_source.factors(self, args, notes)
        with self.tile([m, n]) as (i, j):
            place = self.matrix(c, i, j)
            total = np.int64(0) if clear else self.load(*place)
            for step in range(k):
                left = self.load(*self.matrix(a, *((step, i) if transposed[0] else (i, step))))
                right = self.load(*self.matrix(b, *((j, step) if transposed[1] else (step, j))))
                if by:
                    left, right = (
                        arithmetic("Mul", kinds[2], value, of(step)[self.lanes.block, line])
                        for value, of, line in zip((left, right), by, (i, j), strict=True)
                    )
                product = arithmetic("Mul", _wide(kinds[0], kinds[2]), left, right)
                total = arithmetic("Add", kinds[2], total, product)
            self.store(*place, total)
        tensor_source.over(self, args[10])

    def matrix(self, region: Region, row: Any, column: Any) -> tuple[Any, list[Any]]:
        buffer, first, _ = region
        found = [self.value(start) for start in first]
        return buffer, [*found[:-2], found[-2] + row, found[-1] + column]

    def reduce(self, args: list[Any]) -> None:
        source, target = self.region(args[0]), self.region(args[1])
        kind, dim = str(args[2].value), int(self.value(args[3]))
        operation = {"sum": "Add", "max": "Max", "min": "Min"}.get(kind)
        dtype = str(target[0].dtype)
        if operation is None or str(source[0].dtype) != dtype:
            raise UnmodelledError(f"a {kind} of {source[0].dtype} into {dtype}")
        shape = [n for axis, n in enumerate(source[2]) if axis != dim]
        keeps = len(target[2]) == len(source[2])
        if [n for axis, n in enumerate(target[2]) if not (keeps and axis == dim)] != shape:
            raise UnmodelledError(f"a {kind} of {source[2]} into {target[2]}")
        with self.tile(shape) as where:
            first = [self.value(n) for n in target[1]]
            into = [*where[:dim], 0, *where[dim:]] if keeps else list(where)
            place = target[0], [a + b for a, b in zip(first, into, strict=True)]
            total = None if bool(self.value(args[4])) else self.load(*place)
            start = [self.value(n) for n in source[1]]
            for step in range(source[2][dim]):
                at = [a + b for a, b in zip(start, [*where[:dim], step, *where[dim:]], strict=True)]
                value = self.load(source[0], at)
                total = value if total is None else arithmetic(operation, dtype, total, value)
            self.store(*place, total)


def _each(value: Any, count: int) -> Any:
    """A value of every lane, for `count` lanes in the place of each."""
    return value if np.ndim(value) == 0 else np.repeat(value, count, axis=-1)


def _wide(operand: str, result: str) -> str:
    """Type of a product: integers are multiplied as wide as they are added."""
    return operand if element(operand).kind == "float" else result


_OPERATIONS: dict[str, Callable[..., None]] = {
    "tl.tileop.copy": Source.copy,
    "tl.tileop.tma_copy": Source.copy,
    "tl.tileop.async_copy": Source.copy,
    "tl.tileop.fill": Source.fill,
    "tl.tileop.gemm": Source.gemm,
    "tl.tileop.tcgen05_gemm": Source.gemm,
    "tl.tileop.gemm_blockscaled": Source.gemm,
    "tl.tileop.tcgen05_gemm_blockscaled": Source.gemm,
    "tl.tileop.reduce": Source.reduce,
}
_PRODUCTS = {name for name, operation in _OPERATIONS.items() if operation is Source.gemm}
_UNKNOWN = {"cluster_mask", "use_2cta"}
_BLOCK = ("local.fragment", "shared", "shared.dyn", "shared.tmem")  # memory that a block has
_SYNCHRONISING: dict[str, Any] = {
    "tirx.ptx_arrive_barrier": collectives.arrive,
    "tl.mbarrier_wait_parity": collectives.wait,
    "tl.sync_grid": collectives.blocks_in_step,
    **tensor_source.CALLS,
}
# What threads in step wait for is for barriers of the lowered program to show; and copies and
# multiplies are over at once.
_NOTHING = {
    *("tirx.assume", "tirx.tvm_storage_sync", "tl.sync_warp", "tl.set_max_nreg"),
    *("tl.fence_proxy_async", "tl.tma_store_arrive", "tl.tma_store_wait", "tl.warpgroup_wait"),
    *("tirx.ptx_commit_group", "tirx.ptx_wait_group"),
    *("tl.tcgen05_before_thread_sync", "tl.tcgen05_after_thread_sync", "tl.deallocate_tmem"),
}
