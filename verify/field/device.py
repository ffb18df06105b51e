"""The lowered program: every thread of every block.

``fragments.py``, ``wgmma.py``, ``tensor.py``, ``tensor_mma.py``, ``tma.py`` and ``collectives.py``
say what calls do; here is where threads and their memory come from. ``schedule.py`` decides who
runs ahead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tileproof.codegen.hostir import Launch as HostLaunch
from tileproof.codegen.hostir import evaluate

from . import collectives, fragments, tensor, tensor_mma, tma, wgmma
from .fragments import WARP
from .machine import Lanes, Machine, Place
from .machine import Meeting as Waits
from .memory import FaultError, Memory, UnmodelledError, element, width
from .schedule import (
    TOGETHER,
    DeadlockError,
    Groups,
    Mbarriers,
    Meeting,
    Meetings,
    Schedule,
    run_all,
)


def run_launch(
    launch: HostLaunch,
    function: Any,
    tensors: Mapping[str, Memory],
    sizes: Mapping[str, int],
    schedule: Schedule = TOGETHER,
) -> None:
    """Executes one launch on `tensors`."""
    if [evaluate(n, sizes) for n in launch.cluster] != [1, 1, 1]:
        raise UnmodelledError("clusters of blocks")
    if 0 in (evaluate(n, sizes) for n in launch.grid):
        return
    before = [(m, m.value.copy(), m.code.copy()) for m in tensors.values()]
    running = Launch(launch, function, tensors, sizes, schedule)
    each = [np.array([block]) for block in range(running.blocks)]
    try:
        if launch.cooperative and schedule.ahead:  # of the other blocks too
            running.run(function.body, running.warps(), each)
        else:
            running.run(function.body, running.roles(function.body))
    except DeadlockError:
        # All blocks at once, and warps in step, may wait for each other where none alone would.
        for memory, value, code in before:
            memory.value, memory.code = value, code
        running = Launch(launch, function, tensors, sizes, schedule)
        for together in [each] if launch.cooperative else [[block] for block in each]:
            running.run(function.body, running.warps(), together)


@dataclass
class Launch:
    """What all threads of a launch share."""

    host: HostLaunch
    function: Any
    tensors: Mapping[str, Memory]
    sizes: Mapping[str, int]
    schedule: Schedule
    shared: dict[str, Place] = field(default_factory=dict)
    coming: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.grid = [evaluate(n, self.sizes) for n in self.host.grid]
        self.block = [evaluate(n, self.sizes) for n in self.host.block]
        self.blocks, self.threads = int(np.prod(self.grid)), int(np.prod(self.block))
        self.boxes: dict[Any, tma.Box] = {}
        self.places: dict[Any, Place] = {}
        self.arrays: dict[str, Mbarriers] = {}
        self.meetings = Meetings(self.blocks, self.threads)
        self.everyone = Meeting(1, self.blocks * self.threads)
        self._exchanged: dict[str, tuple[Any, Any]] = {}
        for argument, parameter in zip(self.host.args, self.function.params, strict=True):
            if argument.tensor_map is not None:
                self.boxes[parameter] = tma.read(argument.tensor_map, self.tensors, self.sizes)
            elif argument.is_tensor:
                self.places[parameter] = Place(self.tensors[argument.name], "global")

    @cached_property
    def tensor(self) -> tensor.TensorMemory:
        return tensor.TensorMemory(self.blocks)

    def run(self, body: Any, groups: list[range], teams: Sequence[Any] = ()) -> None:
        """All threads of teams of blocks, by default one team of all, those of a group in step, and
        so are the blocks of a team."""
        programs = []
        for blocks, threads in itertools.product(teams or [np.arange(self.blocks)], groups):
            lanes = Lanes(np.repeat(blocks, len(threads)), np.tile(np.array(threads), len(blocks)))
            lanes.env.update(_sizes(self.function, self.sizes))
            programs.append(Warp(lanes, self).program(body))
        run_all(programs, self.coming, self.schedule)

    def warps(self) -> list[range]:
        return [range(i, min(i + WARP, self.threads)) for i in range(0, self.threads, WARP)]

    def roles(self, body: Any) -> list[range]:
        """Threads that may run in step: they come to the same waits. Or warps that run ahead."""
        ways = _ways(body, self)
        starts = [t for t in range(self.threads) if not t or (ways[:, t] != ways[:, t - 1]).any()]
        if self.schedule.ahead or any(t % WARP for t in starts):
            return self.warps()
        return [range(a, b) for a, b in zip(starts, [*starts[1:], self.threads], strict=True)]

    def start(self, happens: Callable[[], None]) -> None:
        """An operation that ends when hardware likes."""
        if self.schedule.late:
            self.coming.append(happens)
        else:
            happens()

    def exchange(self, name: str) -> tuple[Any, Any]:
        """What threads of a block give each other at one call, and get: an entry for each."""
        if name not in self._exchanged:
            shape = (self.blocks, self.threads)
            self._exchanged[name] = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        return self._exchanged[name]

    def index(self, tag: str, lanes: Lanes) -> Any:
        """The block or thread index that `tag`, like "threadIdx.x", names, of each lane."""
        where, axis = tag.split(".")
        sizes = self.grid if where == "blockIdx" else self.block
        index = lanes.block if where == "blockIdx" else lanes.thread
        for size in sizes[: "xyz".index(axis)]:
            index = index // size
        return index % sizes["xyz".index(axis)]


def _sizes(function: Any, sizes: Mapping[str, int]) -> dict[Any, Any]:
    """The sizes a kernel mentions: its scalar parameters, and those only shapes have."""
    from tilelang import tvm

    mentioned = [*function.params, *tvm.tirx.analysis.undefined_vars(function.body)]
    return {v: np.int64(sizes[str(v.name)]) for v in mentioned if str(v.name) in sizes}


def _ways(body: Any, launch: Launch) -> Any:
    """For every branch around a wait that the thread index alone decides, who takes it."""
    from tilelang import tvm

    visit = tvm.tirx.stmt_functor.post_order_visit
    lanes = Lanes(np.zeros(launch.threads, np.int64), np.arange(launch.threads))
    branches: list[Any] = []

    def waits(node: Any) -> bool:
        found: list[str] = []
        visit(node, lambda n: found.append(str(n.op.name)) if hasattr(n, "op") else None)
        return any(name in collectives.WAITS for name in found)

    def look(n: Any) -> None:
        if type(n).__name__ == "AttrStmt" and str(n.attr_key) == "thread_extent":
            if str(n.node.thread_tag).startswith("threadIdx"):
                lanes.env[n.node.var] = launch.index(str(n.node.thread_tag), lanes)
        elif type(n).__name__ == "IfThenElse":
            branches.append(n)

    visit(body, look)
    ways = [np.zeros(launch.threads, bool)]
    for branch in branches:
        free = tvm.tirx.analysis.undefined_vars(tvm.tirx.Evaluate(branch.condition))
        if len(free) and all(v in lanes.env for v in free) and waits(branch):
            taken = Machine(lanes, {}).value(branch.condition)
            ways.append(np.broadcast_to(taken, launch.threads) != 0)
    return np.stack(ways)


class Warp(Machine):
    """The same warp of every block, or several in step."""

    def __init__(self, lanes: Lanes, launch: Launch) -> None:
        super().__init__(lanes, dict(launch.places))
        self.launch = launch
        late = launch.schedule.late
        self.copies, self.multiplies, self.stores = (Groups(late) for _ in range(3))
        self.descriptors: dict[Any, wgmma.Descriptor] = {}
        self.issued: list[tuple[Callable[[], None], bool]] = []  # by tcgen05; which are commits

    def program(self, body: Any) -> Waits:
        yield from self.run(body)
        if self.stores.taken():
            raise FaultError("a thread ends before the tiles it stores are read")

    # --- memory ----------------------------------------------------------------------------------

    def run_AttrStmt(self, s: Any) -> Waits:
        if str(s.attr_key) == "thread_extent":
            self.lanes.env[s.node.var] = self.launch.index(str(s.node.thread_tag), self.lanes)
        yield from self.run(s.body)

    def allocate(self, buffer: Any) -> None:
        scope = str(buffer.scope())
        count = 1
        for n in buffer.shape:
            count *= int(self.value(n))
        dtype = str(buffer.dtype)
        size = count * width(dtype) * element(dtype).bytes
        name, blocks = str(buffer.name), self.launch.blocks
        if scope.startswith("local"):
            self.places[buffer.data] = Place(Memory(name, self.lanes.count, size, "device"), "lane")
            return
        if scope not in ("shared", "shared.dyn", "shared.barrier"):
            raise UnmodelledError(f"memory of scope {scope}")
        key = str(buffer.data)
        if key not in self.launch.shared:
            memory = Memory(name, blocks, size, "device")
            self.launch.shared[key] = Place(memory, "block")
            if scope == "shared.barrier":
                self.launch.arrays[key] = Mbarriers(name, blocks, count)
            else:
                late = self.launch.schedule.late
                memory.seen = Memory(name, blocks, size, "device") if late else memory
        self.places[buffer.data] = self.launch.shared[key]

    def mbarriers(self, load: Any) -> Mbarriers:
        found = self.launch.arrays.get(str(load.buffer.data)) if hasattr(load, "buffer") else None
        if found is None:
            raise UnmodelledError(f"mbarrier {load}")
        return found

    # --- lanes -----------------------------------------------------------------------------------

    def by_warp(self, values: Any) -> Any:
        """Values of lanes with the lanes of a warp in a dimension of their own."""
        if self.lanes.count % WARP or (self.lanes.thread[::WARP] % WARP).any():
            raise UnmodelledError("a warp of fewer than 32 threads")
        return values.reshape(*values.shape[:-1], -1, WARP)

    def later(self, happens: Callable[[], None]) -> Callable[[], None]:
        """What happens for the lanes that are active now."""
        then = self.active

        def again() -> None:
            outer, self.active = self.active, then
            happens()
            self.active = outer

        return again

    # --- calls -----------------------------------------------------------------------------------

    def call(self, call: Any) -> Waits:
        name = str(call.op.name)
        method = _CALLS.get(name)
        if method is not None:
            yield from method(self, list(call.args)) or ()
        elif name != "tirx.call_extern" or call not in self.results:
            yield from super().call(call)

    def meet(self, value: Any) -> Waits:
        for call in collectives.reductions(value):
            yield from collectives.all_reduce(self, call)

    def function(self, name: str, e: Any) -> Any:
        if name == "tl.tl_shuffle_elect":
            return collectives.elected(self, int(e.args[0].value))
        return super().function(name, e)


def _cp_async(warp: Warp, args: list[Any]) -> None:
    to, value = warp.fetched(args)
    warp.copies.add(warp.later(lambda: warp.write(to, value)))


def _zero(warp: Warp, args: list[Any]) -> None:
    """st.bulk: (pointer, bytes, zero)"""
    pointer = warp.pointer(args[0])
    count = int(args[1].value) // pointer[2].bytes
    warp.write(pointer, np.zeros((count, 1), np.int64))


_CALLS: dict[str, Callable[[Warp, list[Any]], Any]] = {
    **fragments.CALLS,
    **wgmma.CALLS,
    **tensor.CALLS,
    **tensor_mma.CALLS,
    **tma.CALLS,
    **collectives.CALLS,
    "tl.ptx_cp_async": _cp_async,
    "tirx.ptx_commit_group": lambda warp, args: warp.copies.commit(),
    "tirx.ptx_wait_group": lambda warp, args: warp.copies.wait(int(args[0].value)),
    "tl.ptx_st_bulk_shared": _zero,
}
