"""One thread of a block from its first statement to its last: how it synchronises, what it touches.

Sizes and block indices have no value here, so what is found holds for all of them: where the order
of things would hang on one, the thread asks (:mod:`.control`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tileproof.verify import tensor
from tileproof.verify.calls import effect
from tileproof.verify.intrinsics import Columns, Tile, Touch, UnmodelledError, constant
from tileproof.verify.replay import Setting, _element
from tileproof.verify.timeline import Moment, Timeline
from tileproof.verify.tma import tile_bytes

from .control import Control, Segment
from .lanes import ApartError, lanes

Key = tuple[str, int]  # an mbarrier by name and index, or a barrier of the block by number
Kind = Literal[
    "init", "arrive", "expect", "load", "wait", "barrier", "fence", "commit", "drain",
    "before", "after", "point", "meet",
]  # fmt: skip
_WARP = 32
MEMORY = "tensor memory"  # how the names of its arenas begin
HEIGHT = 128  # its lanes


@dataclass(frozen=True)
class Event:
    """One step of synchronisation.

    `amount` is the count of an init, the bytes of an expect or a load, the parity of a wait, the
    threads of a barrier, the groups that a drain leaves open. An arrive may expect bytes as well.
    Commits and drains are of the thread's own copies by `engine`; an arrive with an engine comes
    once they are complete. ``before`` and ``after`` are tcgen05.fence::before_thread_sync and
    ::after_thread_sync, a point is nothing but a place between other things. At a meeting the lanes
    of a warp elect one; it orders none of their accesses.
    """

    kind: Kind
    key: Key = ("", 0)
    amount: int = 0
    engine: str = ""


@dataclass
class Access:
    """Bytes ``first..stop-1`` of an arena, of each of several threads where `thread` holds several.

    The thread touches them before event number `start` of its segment. An asynchronous access ends
    where the thread drains its `engine`, or with the phase of the mbarrier of event number `load`.
    `position` orders accesses of one thread. An arena in tensor memory has a number for each lane
    of a column, and its accesses say what for; see :class:`Columns`.
    """

    thread: Any
    mode: str
    arena: str
    first: Any
    stop: Any
    start: int
    position: int
    node: Any
    loops: dict[str, int]
    engine: str = ""
    load: int | None = None
    use: str = ""

    @cached_property
    def rows(self) -> np.ndarray:
        """Thread, first byte and the one after the last, of each thread."""
        found = np.broadcast_arrays(
            *(np.atleast_1d(v) for v in (self.thread, self.first, self.stop))
        )
        return np.stack([np.asarray(v, np.int64) for v in found])

    def each(self) -> Iterator[Access]:
        """The access of each thread."""
        for thread, first, stop in self.rows.T.tolist():
            yield replace(self, thread=thread, first=first, stop=stop)

    @property
    def asynchronous(self) -> bool:
        return bool(self.engine)

    @property
    def proxy(self) -> bool:
        """Of the asynchronous proxy, which sees ordinary writes after a fence."""
        return self.engine in ("wgmma", "tma", "store", tensor.UNIT)


@dataclass
class Trace:
    """What one thread may do.

    `loose` says that a branch on a size was taken both ways, `warps_meet` that a warp synchronises
    by itself, which is not followed.
    """

    segments: list[Segment] = field(default_factory=list)
    loose: bool = False
    warps_meet: bool = False


class Tracer(Control):
    """Executes threads, as one while they do the same; see :meth:`traces_of`."""

    def traces_of(self, count: int, setting: Setting) -> dict[int, Trace]:
        """What each of `count` threads may do; those that do the same have one trace. Raises as
        :meth:`trace_of` does."""
        if not hasattr(self, "together"):  # kept for the next time, with finer classes
            self.together = [list(range(count))]
        found: dict[int, Trace] = {}
        todo = list(self.together)
        while todo:
            group = todo[-1]
            try:
                trace = self.trace_of(group, setting)
            except ApartError as apart:
                parts = [[group[i] for i in part] for part in apart.parts]
            except OverflowError:
                parts = [[t] for t in group]
            else:
                found.update(dict.fromkeys(group, trace))
                todo.pop()
                continue
            todo[-1:] = parts
            at = self.together.index(group)
            self.together[at : at + 1] = parts
        return dict(sorted(found.items()))

    def trace_of(self, group: Sequence[int], setting: Setting) -> Trace:
        """The trace that threads have in common. Raises ApartError where they have not,
        UndeterminedError where data decides about the order of things, UnmodelledError for a
        construct whose order is not modelled, and CoarseError; see :class:`Control`."""
        thread = lanes(group)
        setting = Setting(setting.sizes, {**setting.indices, "threadIdx.x": thread}, {})
        self.thread, self.engine, self.muted = thread, "", False
        self.loose = self.warps_meet = False
        segments = self.segments(setting)
        return Trace(segments, self.loose, self.warps_meet)

    def syncs(self, call: Any) -> bool:
        name = str(call.op.name)
        extern = str(call.args[0]) if name == "tirx.call_extern" else ""
        meets = "AllReduce" in extern or name == "tl.ptx_tcgen05_sf_warp_transpose"
        return name in _CALLS or name.startswith("tl.tma_load") or meets

    # -- calls -------------------------------------------------------------------------------

    def call(self, e: Any) -> None:
        name, args = self.parts.call(e)
        args = [self.pointers.get(a, a) if type(a).__name__ == "Var" else a for a in args]
        if name == "tirx.if_then_else":
            self.choose(args)
            return
        if name in _CALLS:
            _CALLS[name](self, args, e)
            return
        engine = "wgmma" if name.startswith("tl.ptx_wgmma") else ""
        if name in tensor.MULTIPLIES or name == "tl.ptx_tcgen05_cp_warpx4":
            engine = tensor.UNIT
        if engine and self.thread % _WARP:
            return  # all lanes of a warp read the same operands, or one of them is elected
        if name in tensor.MULTIPLIES:
            for holder in {t.holder for t in tensor.multiply(name, args)[1]}:
                self.touch(Touch(holder, "read"), e)
        self.muted = name in _DESCRIBE
        self.engine = engine
        try:
            if self.operands.call(self, name, args, e):
                return
        finally:
            self.muted, self.engine = False, ""
        found = effect(name, args)
        if found.ranks:
            raise UnmodelledError("accesses to another block's shared memory")
        if found.tile is not None:
            self.copy_tile(found.tile, found.touches, e)
            return
        if name == "tl.tma_store":
            self.store_bytes(found.touches[1], e)
            return
        self.warps_meet |= found.sync == "warp"
        if found.unordered and not found.columns and found.sync != "warp":
            raise UnmodelledError(found.unordered)
        self.engine = engine
        for touched in found.columns:
            self.columns(touched, e)
        self.engine = ""
        for touch in found.touches:
            if touch.after_barrier:
                self.event(Event("barrier", ("AllReduce", 0), found.threads or self.threads), e)
            if touch.after_warp:
                number = self.thread // _WARP
                self.event(Event("barrier", ("warp", int(number)), _WARP), e)
            self.touch(touch, e, engine or "cp.async")
        for a in args:
            peer = any(a is touch.peer for touch in found.touches)  # a rank orders nothing here
            if not peer and hasattr(a, "dtype") and str(a.dtype) != "handle":
                self.visit(a)

    def visit(self, e: Any) -> None:
        if hash(e) not in self.parts.quiet:
            super().visit(e)

    def used(self, e: Any) -> None:
        """Integers that become data order nothing."""

    def choose(self, args: list[Any]) -> None:
        taken = self.condition(args[0])
        self.visit(args[0])
        for chosen, part in ((taken is not False, args[1]), (taken is not True, args[2])):
            if chosen:
                self.visit(part)
        self.loose |= taken is None

    def condition(self, e: Any) -> bool | None:
        return self.truth(e)

    @property
    def threads(self) -> int:
        return self.setting.sizes["threads.x"]

    def event(self, event: Event, node: Any) -> int:
        self.steps += 1
        self.result.events.append(event)
        self.result.nodes.append((node, dict(self.around)))
        return len(self.result.events) - 1

    def key(self, pointer: Any) -> Key:
        if type(pointer).__name__ == "BufferLoad":
            return str(pointer.buffer.data.name), self.whole(pointer.indices[0])
        if type(pointer).__name__ == "Call" and str(pointer.op.name) == "tirx.tvm_access_ptr":
            return str(pointer.args[1].name), self.whole(pointer.args[2])
        raise UnmodelledError("an mbarrier by address")

    # -- copies ------------------------------------------------------------------------------

    def copy_tile(self, tile: Tile, touches: tuple[Touch, ...], node: Any) -> None:
        """A box of a tensor map: loads end with a phase, stores with a wait of their thread."""
        size = tile_bytes(self.maps[tile.tensor_map], len(tile.boxes))
        self.copied(tile.pointer, size, touches[0].pointer if tile.mode == "read" else None, node)

    def store_bytes(self, near: Touch, node: Any) -> None:
        """The same of bytes that go without a map, from shared memory."""
        pointer = near.pointer
        if type(pointer).__name__ != "Call" or not self.is_shared(pointer.args[1]):
            raise UnmodelledError("a bulk copy of memory by address")
        self.copied(pointer, near.count * _element(pointer.args[0].dtype), None, node)

    def copied(self, pointer: Any, size: int, mbarrier: Any, node: Any) -> None:
        """`size` bytes of shared memory are written and arrive at an mbarrier, or are read."""
        start = self.number(pointer.args[2]) * _element(pointer.args[0].dtype)
        loads = mbarrier is not None
        before = len(self.result.accesses)
        self.engine = "tma" if loads else "store"
        self.note(pointer.args[1], "write" if loads else "read", start, size, 1, node)
        self.engine = ""
        if loads:
            number = self.event(Event("load", self.key(mbarrier), size), node)
            for access in self.result.accesses[before:]:
                access.load = number

    # -- accesses ----------------------------------------------------------------------------

    def touch(self, touch: Touch, node: Any, engine: str = "cp.async") -> None:
        """An access of shared memory; `engine` is whose it is if it is asynchronous."""
        if touch.peer is not None:
            return  # stores into other blocks are ordered by barriers of the cluster: props/peers
        if touch.when is not None and self.condition(touch.when) is False:
            return
        if touch.lane_below is not None and self.lane() % _WARP >= touch.lane_below:
            return
        pointer = touch.pointer
        kind = type(pointer).__name__
        index: Any = 0
        if kind == "Call":
            data, element, index = pointer.args[1], _element(pointer.args[0].dtype), pointer.args[2]
        elif kind == "BufferLoad":
            data, element = pointer.buffer.data, _element(pointer.buffer.dtype)
            index = pointer.indices[0]
        else:
            data, element = pointer, self.elements.get(pointer, 1)
        if not self.is_shared(data):
            return
        offset = index if isinstance(index, int) else self.number(index)
        offset += touch.offset if isinstance(touch.offset, int) else self.number(touch.offset)
        if touch.slot is not None:
            first, half = touch.slot
            offset += (self.setting.indices.get("threadIdx.x", 0) - first) ^ half
        if touch.lane_step:
            offset += self.lane() % _WARP * touch.lane_step
        self.engine = engine if touch.asynchronous else ""
        self.note(data, touch.mode, offset, touch.count, element, node)
        self.engine = ""

    def columns(self, touched: Columns, node: Any) -> None:
        """An access to tensor memory. Each thread loads and stores in a lane of its own, of its
        warp's quarter; everything else touches all lanes."""
        thread = np.atleast_1d(self.thread).view(np.ndarray)[:, None]
        column = np.atleast_1d(self.number(touched.first)).view(np.ndarray)[:, None]
        if touched.use in ("load", "store"):
            first, count = (column + np.arange(touched.count)) * HEIGHT + thread % HEIGHT, 1
        else:
            first, count = column * HEIGHT, touched.count * HEIGHT
        threads, first = np.broadcast_arrays(thread, first)
        self.steps += 1
        self.result.accesses.append(
            Access(
                threads.reshape(-1), touched.mode, f"{MEMORY} {touched.holder.name}",
                first.reshape(-1), first.reshape(-1) + count, len(self.result.events),
                self.steps, node, dict(self.around), self.engine, use=touched.use,
            )
        )  # fmt: skip

    def index(self, node: Any, buffer: Any, indices: Any, mode: str) -> None:
        if self.is_shared(buffer.data):
            for offset, lanes in self.offsets(indices[0]):
                self.note(buffer.data, mode, offset, lanes, _element(buffer.dtype), node, buffer)
        elif mode == "read":
            for e in indices:
                self.visit(e)

    def is_shared(self, data: Any) -> bool:
        root, _ = self.roots.get(data, (data, 0))
        return self.scopes.get(root, "").startswith("shared")

    def note(
        self,
        data: Any,
        mode: str,
        offset: int,
        lanes: int,
        element: int,
        node: Any,
        view: Any = None,
    ) -> None:
        if self.muted:
            return
        super().note(data, mode, offset, lanes, element, node, view)
        for m in self.found:
            self.accessed(self.thread, m, m.first, m.stop)
        self.found.clear()

    def notes(
        self, data: Any, mode: str, start: Any, runs: Sequence[tuple[int, int]], node: Any
    ) -> None:
        """All runs of a call as one access."""
        if self.muted:
            return
        first, count = np.array(runs).T
        Timeline.note(self, data, mode, 0, 1, 1, node)
        for m in self.found:  # the arena, if it is shared memory, and where the buffer begins
            threads, starts = np.broadcast_arrays(np.atleast_1d(self.thread), start)
            at = np.add.outer(np.asarray(starts) + m.first, first).reshape(-1)
            self.accessed(np.repeat(threads, len(first)), m, at, at + np.tile(count, len(threads)))
        self.found.clear()

    def accessed(self, thread: Any, m: Moment, first: Any, stop: Any) -> None:
        now = len(self.result.events)
        access = Access(
            thread, m.mode, m.arena, first, stop, now, self.steps, m.node, m.loops, self.engine
        )
        self.result.accesses.append(access)


def _storage_sync(t: Tracer, args: list[Any], node: Any) -> None:
    if str(args[0].value) == "cluster" and len(args) == 1:
        _cluster_sync(t, args, node)
        return
    if str(args[0].value) not in ("shared", "shared.dyn"):
        raise UnmodelledError(f"tvm_storage_sync({args[0].value})")
    named = len(args) == 3
    number, threads = (t.whole(a) for a in args[1:]) if named else (0, t.threads)
    t.event(Event("barrier", ("", number), threads), node)


def _cluster_sync(t: Tracer, args: list[Any], node: Any) -> None:
    """A barrier of the cluster is one of the block, whose threads all come to it."""
    t.event(Event("barrier", ("cluster", 0), t.threads), node)


def _noinc(t: Tracer, args: list[Any], node: Any) -> None:
    t.event(Event("arrive", t.key(args[0]), engine="cp.async"), node)


def _arrive(t: Tracer, args: list[Any], node: Any) -> None:
    if len(args) != 1:
        raise UnmodelledError("an arrival at another block's mbarrier")
    t.event(Event("arrive", t.key(args[0])), node)


def _plain(kind: Kind) -> Callable[[Tracer, list[Any], Any], None]:
    def note(t: Tracer, args: list[Any], node: Any) -> None:
        t.event(Event(kind), node)

    return note


def _held(use: str) -> Callable[[Tracer, list[Any], Any], None]:
    """Tensor memory is taken, and its address stored, or it is given back: by a warp, for which
    its first lane speaks."""

    def note(t: Tracer, args: list[Any], node: Any) -> None:
        if not t.thread % _WARP:
            (holder,) = effect(str(node.op.name), args).touches
            t.touch(holder, node)
            columns = constant(args[1], "columns of tensor memory")
            t.columns(Columns(args[0].args[1], 0, columns, "write", use), node)
        t.event(Event("point"), node)

    return note


def _commit(t: Tracer, args: list[Any], node: Any) -> None:
    """The lane that is elected arrives once all it has issued is complete."""
    t.event(Event("meet", ("lanes of warp", int(t.thread // _WARP)), _WARP), node)
    if not t.thread % _WARP:
        t.event(Event("arrive", t.key(args[0]), engine=tensor.UNIT), node)


def _own(kind: Kind, engine: str) -> Callable[[Tracer, list[Any], Any], None]:
    """The thread's own copies; those of a drain are complete but for so many groups."""

    def note(t: Tracer, args: list[Any], node: Any) -> None:
        left = t.whole(args[0]) if kind == "drain" else 0
        t.event(Event(kind, amount=left, engine=engine), node)

    return note


def _on(kind: Kind) -> Callable[[Tracer, list[Any], Any], None]:
    def note(t: Tracer, args: list[Any], node: Any) -> None:
        if len(args) != 2:
            raise UnmodelledError(str(node.op.name))
        t.event(Event(kind, t.key(args[0]), t.whole(args[1])), node)

    return note


_DESCRIBE = (
    "tl.initialize_wgmma_descriptor",
    "tl.increase_descriptor_offset",
    "tl.initialize_tcgen05_descriptor",
)
_CALLS: dict[str, Callable[[Tracer, list[Any], Any], None]] = {
    "tirx.ptx_init_barrier_thread_count": _on("init"),
    "tirx.ptx_arrive_barrier": _arrive,
    "tirx.ptx_arrive_barrier_expect_tx": _on("arrive"),
    "tl.mbarrier_expect_tx": _on("expect"),
    "tl.mbarrier_wait_parity": _on("wait"),
    "tl.ptx_cp_async_barrier_noinc": _noinc,
    "tirx.tvm_storage_sync": _storage_sync,
    "tl.cluster_sync": _cluster_sync,
    "tl.fence_proxy_async": _plain("fence"),
    "tl.warpgroup_arrive": lambda t, args, node: None,
    "tl.warpgroup_fence_operand": lambda t, args, node: None,
    "tl.warpgroup_commit_batch": _own("commit", "wgmma"),
    "tl.warpgroup_wait": _own("drain", "wgmma"),
    "tirx.ptx_commit_group": _own("commit", "cp.async"),
    "tirx.ptx_wait_group": _own("drain", "cp.async"),
    "tl.tma_store_arrive": _own("commit", "store"),
    "tl.tma_store_wait": _own("drain", "store"),
    "tl.ptx_init_tensor_memory": _held("take"),
    "tl.ptx_deallocate_tensor_memory": _held("free"),
    "tl.tcgen05_mma_arrive": _commit,
    "tl.tcgen05_before_thread_sync": _plain("before"),
    "tl.tcgen05_after_thread_sync": _plain("after"),
}
