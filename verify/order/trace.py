"""One thread of a block from its first statement to its last: how it synchronises, what it touches.

Sizes and block indices have no value here, so what is found holds for all of them: where the order
of things would hang on one, tracing stops and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from tileproof.verify.calls import effect
from tileproof.verify.intrinsics import Tile, Touch, UnmodelledError
from tileproof.verify.replay import Setting, UndeterminedError, _element
from tileproof.verify.timeline import Timeline
from tileproof.verify.tma import tile_bytes

Key = tuple[str, int]  # an mbarrier by name and index, or a barrier of the block by number
Kind = Literal["init", "arrive", "expect", "load", "wait", "barrier", "fence"]
_MOST_STEPS = 400_000
_WARP = 32


@dataclass(frozen=True)
class Event:
    """One step of synchronisation.

    `amount` is the count of an init, the bytes of an expect or a load, the parity of a wait, the
    threads of a barrier. An arrive may expect bytes as well.
    """

    kind: Kind
    key: Key = ("", 0)
    amount: int = 0


@dataclass
class Access:
    """Bytes ``first..stop-1`` of an arena.

    The thread touches them after its event number ``start - 1``; an asynchronous access ends before
    event number `end`, None if the thread never waits for it. `load` is the number of the event
    with the phase of whose mbarrier it ends instead. `position` and `until` order accesses of one
    thread.
    """

    thread: int
    mode: str
    arena: str
    first: int
    stop: int
    start: int
    end: int | None
    position: int
    until: float
    node: Any
    loops: dict[str, int]
    asynchronous: bool = False
    proxy: bool = False  # of the asynchronous proxy, which sees ordinary writes after a fence
    load: int | None = None


@dataclass
class Trace:
    """What one thread does.

    `nodes` are the calls behind the events, with the loop variables there. `outliving` are copies
    out of shared memory that the thread does not wait for. `loose` says that a branch on a size was
    taken both ways, `warps_meet` that a warp synchronises by itself, which is not followed.
    """

    events: list[Event] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    outliving: list[Access] = field(default_factory=list)
    loose: bool = False
    warps_meet: bool = False


class Tracer(Timeline):
    """Executes one thread through all iterations; see :meth:`trace`."""

    def trace_of(self, thread: int, setting: Setting) -> Trace:
        """Raises UndeterminedError where data or a size decides about the order of things, and
        UnmodelledError for a construct whose order is not modelled."""
        self.thread, self.result = thread, Trace()
        self.copies: dict[str, list[list[Access]]] = {"cp.async": [], "wgmma": [], "store": []}
        self.issued: dict[str, list[Access]] = {"cp.async": [], "wgmma": [], "store": []}
        self.engine, self.muted = "", False
        self.begin()
        self.run(setting)
        stores = [*self.copies["store"], self.issued["store"]]
        self.result.outliving = [a for group in stores for a in group]
        return self.result

    # -- control -----------------------------------------------------------------------------

    def stmt(self, s: Any) -> None:
        if self.steps > _MOST_STEPS:
            raise UndeterminedError("a run too long to follow")
        kind = type(s).__name__
        if kind == "AttrStmt" and str(s.attr_key) == "thread_extent":
            if str(s.node.thread_tag).startswith("threadIdx"):
                self.env[s.node.var] = self.setting.indices.get(str(s.node.thread_tag), 0)
            self.stmt(s.body)
        elif kind == "AttrStmt":
            self.stmt(s.body)
        elif kind == "IfThenElse" and s in self.relevant:
            self.branch(s)
        else:
            super().stmt(s)

    def branch(self, s: Any) -> None:
        try:
            taken = bool(self.number(s.condition))
        except UndeterminedError as why:
            before = len(self.result.events)
            for body in (s.then_case, s.else_case):
                if body is not None:
                    self.stmt(body)
            if len(self.result.events) > before:
                raise UndeterminedError(f"synchronisation under a condition on {why}") from None
            self.result.loose = True
            return
        body = s.then_case if taken else s.else_case
        if body is not None:
            self.stmt(body)

    def loop(self, s: Any) -> None:
        try:
            super().loop(s)
        except UndeterminedError as why:
            raise UndeterminedError(f"loop {s.loop_var.name}: {why}") from None

    def condition(self, e: Any) -> bool | None:
        try:
            return bool(self.number(e))
        except UndeterminedError:
            return None

    # -- calls -------------------------------------------------------------------------------

    def call(self, e: Any) -> None:
        name = str(e.op.name)
        args = [self.pointers.get(a, a) if type(a).__name__ == "Var" else a for a in e.args]
        if name == "tirx.if_then_else":
            self.choose(args)
            return
        if name in _CALLS:
            _CALLS[name](self, args, e)
            return
        multiplies = name.startswith("tl.ptx_wgmma")
        if multiplies and self.thread % _WARP:
            return  # all lanes of a warp read the same operands
        self.muted = name in _DESCRIBE
        self.engine = "wgmma" if multiplies else ""
        try:
            if self.operands.call(self, name, args, e):
                return
        finally:
            self.muted, self.engine = False, ""
        found = effect(name, args)
        if found.tile is not None:
            self.copy_tile(found.tile, found.touches, e)
            return
        if found.unordered or found.ranks or found.columns or found.sync == "warp":
            if found.sync != "warp":
                raise UnmodelledError(found.unordered or name)
            self.result.warps_meet = True
        for touch in found.touches:
            if touch.after_barrier:
                self.event(Event("barrier", ("AllReduce", 0), found.threads or self.threads), e)
            self.touch(touch, e)
        for a in args:
            if hasattr(a, "dtype") and str(a.dtype) != "handle":
                self.visit(a)

    def used(self, e: Any) -> None:
        """Integers that become data order nothing."""

    def fits(self, e: Any, value: int) -> int:
        return value  # what may wrap is a property of its own

    def choose(self, args: list[Any]) -> None:
        taken = self.condition(args[0])
        self.visit(args[0])
        for chosen, part in ((taken is not False, args[1]), (taken is not True, args[2])):
            if chosen:
                self.visit(part)
        self.result.loose |= taken is None

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
            return str(pointer.buffer.data.name), self.number(pointer.indices[0])
        if type(pointer).__name__ == "Call" and str(pointer.op.name) == "tirx.tvm_access_ptr":
            return str(pointer.args[1].name), self.number(pointer.args[2])
        raise UnmodelledError("an mbarrier by address")

    # -- copies ------------------------------------------------------------------------------

    def copy_tile(self, tile: Tile, touches: tuple[Touch, ...], node: Any) -> None:
        """A box of a tensor map: loads end with a phase, stores with a wait of their thread."""
        source = self.maps[tile.tensor_map]
        pointer = tile.pointer
        start = self.number(pointer.args[2]) * _element(pointer.args[0].dtype)
        size = tile_bytes(source, len(tile.boxes))
        loads = tile.mode == "read"
        before = len(self.result.accesses)
        self.engine = "tma" if loads else "store"
        self.note(pointer.args[1], "write" if loads else "read", start, size, 1, node)
        self.engine = ""
        if loads:
            number = self.event(Event("load", self.key(touches[0].pointer), size), node)
            for access in self.result.accesses[before:]:
                access.load = number

    def commit(self, engine: str) -> None:
        self.copies[engine].append(self.issued[engine])
        self.issued[engine] = []

    def wait(self, engine: str, pending: int) -> None:
        groups = self.copies[engine]
        while len(groups) > pending:
            for access in groups.pop(0):
                self.done(access)

    def done(self, access: Access) -> None:
        self.steps += 1
        if access.end is None and access.load is None:
            access.end, access.until = len(self.result.events), self.steps

    # -- accesses ----------------------------------------------------------------------------

    def touch(self, touch: Touch, node: Any) -> None:
        if touch.peer is not None:
            raise UnmodelledError("shared memory of another block")
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
        self.engine = "cp.async" if touch.asynchronous else ""
        self.note(data, touch.mode, offset, touch.count, element, node)
        self.engine = ""

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
        before = len(self.found)
        super().note(data, mode, offset, lanes, element, node, view)
        for m in self.found[before:]:
            engine, now = self.engine, len(self.result.events)
            access = Access(
                self.thread, mode, m.arena, m.first, m.stop, now, None if engine else now,
                self.steps, float("inf") if engine else self.steps, node, m.loops,
                asynchronous=bool(engine), proxy=engine in ("wgmma", "tma", "store"),
            )  # fmt: skip
            self.result.accesses.append(access)
            if engine in self.issued:
                self.issued[engine].append(access)
        self.found.clear()


def _storage_sync(t: Tracer, args: list[Any], node: Any) -> None:
    if str(args[0].value) not in ("shared", "shared.dyn"):
        raise UnmodelledError(f"tvm_storage_sync({args[0].value})")
    named = len(args) == 3
    number, threads = (t.number(a) for a in args[1:]) if named else (0, t.threads)
    t.event(Event("barrier", ("", number), threads), node)


def _noinc(t: Tracer, args: list[Any], node: Any) -> None:
    """Arrives once the thread's copies so far are complete."""
    number = t.event(Event("arrive", t.key(args[0])), node)
    for access in [a for group in t.copies["cp.async"] for a in group] + t.issued["cp.async"]:
        if access.end is None and access.load is None:
            access.load = number


def _arrive(t: Tracer, args: list[Any], node: Any) -> None:
    if len(args) != 1:
        raise UnmodelledError("an arrival at another block's mbarrier")
    t.event(Event("arrive", t.key(args[0])), node)


def _fence(t: Tracer, args: list[Any], node: Any) -> None:
    t.event(Event("fence"), node)


def _on(kind: Kind) -> Callable[[Tracer, list[Any], Any], None]:
    def note(t: Tracer, args: list[Any], node: Any) -> None:
        if len(args) != 2:
            raise UnmodelledError(str(node.op.name))
        t.event(Event(kind, t.key(args[0]), t.number(args[1])), node)

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
    "tl.fence_proxy_async": _fence,
    "tl.warpgroup_arrive": lambda t, args, node: None,
    "tl.warpgroup_fence_operand": lambda t, args, node: None,
    "tl.warpgroup_commit_batch": lambda t, args, node: t.commit("wgmma"),
    "tl.warpgroup_wait": lambda t, args, node: t.wait("wgmma", t.number(args[0])),
    "tirx.ptx_commit_group": lambda t, args, node: t.commit("cp.async"),
    "tirx.ptx_wait_group": lambda t, args, node: t.wait("cp.async", t.number(args[0])),
    "tl.tma_store_arrive": lambda t, args, node: t.commit("store"),
    "tl.tma_store_wait": lambda t, args, node: t.wait("store", t.number(args[0])),
}
