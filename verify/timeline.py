"""One thread of a launch from its first statement to its last: when it touches shared memory.

This replays races: two threads, each run by itself through every iteration, with time told by the
barriers passed. Like all of replay it knows the IR alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .calls import effect
from .facts import scalar_bits
from .intrinsics import Effect, Touch, UnmodelledError
from .replay import Machine, Setting, UndeterminedError

_MOST_STEPS = 200_000
_WARP = 32


@dataclass
class Moment:
    """Bytes ``first..stop-1`` of an arena, touched from `begin` to `end`.

    Either is (barriers passed, meetings of the warp since, own statements), and a copy ends when
    the thread has waited for it.
    """

    node: Any
    mode: str
    arena: str
    first: int
    stop: int
    begin: tuple[int, int, int]
    end: tuple[float, float, float]
    loops: dict[str, int]

    def meets(self, other: Moment, threads: tuple[int, int]) -> bool:
        """Whether neither comes before the other, on bytes that both touch and one writes."""
        if self.arena != other.arena or "write" not in (self.mode, other.mode):
            return False
        if max(self.first, other.first) >= min(self.stop, other.stop):
            return False
        a, b = threads
        # What orders them: barriers, within a warp its meetings, within a thread its statements.
        depth = 3 if a == b else 2 if a // _WARP == b // _WARP else 1
        return self.end[:depth] >= other.begin[:depth] and other.end[:depth] >= self.begin[:depth]


class Timeline(Machine):
    """Executes one thread through all iterations; see :meth:`moments`."""

    def moments(self, setting: Setting) -> list[Moment]:
        """Every touch of shared memory, in program order.

        Raises UndeterminedError where data decides about synchronisation, or the run is too long.
        """
        self.begin()
        self.run(setting)
        if self.leaves:
            raise UndeterminedError("a thread may return")
        return self.found

    def begin(self) -> None:
        """Forget the thread before."""
        self.found: list[Moment] = []
        self.reached: dict[Any, int] = {}
        self.roots: dict[Any, tuple[Any, int]] = {}
        self.around: dict[str, int] = {}
        self.epoch = self.meeting = self.steps = 0
        self.open: list[Moment] = []
        self.groups: list[list[Moment]] = []
        if not hasattr(self, "relevant"):
            self.relevant = self._relevant()

    def _relevant(self) -> set[Any]:
        """Statements that touch shared memory or synchronise, by handle."""
        from tilelang import tvm

        visit = tvm.tirx.stmt_functor.post_order_visit
        self.scopes: dict[Any, str] = {}

        def scope(node: Any) -> None:
            if type(node).__name__ == "AllocBuffer":
                self.scopes[node.buffer.data] = str(node.buffer.scope())

        visit(self.function.body, scope)
        found: set[Any] = set()

        def check(node: Any) -> None:
            if type(node).__name__ in ("For", "IfThenElse"):
                inside: list[bool] = []

                def look(n: Any) -> None:
                    kind = type(n).__name__
                    if kind == "Call":
                        inside.append(str(n.op.name) not in ("tirx.if_then_else", "tirx.exp"))
                    elif kind in ("BufferStore", "BufferLoad"):
                        inside.append(str(n.buffer.scope()).startswith("shared"))

                visit(node.body if type(node).__name__ == "For" else node, look)
                if any(inside):
                    found.add(node)

        visit(self.function.body, check)
        return found

    # -- control -----------------------------------------------------------------------------

    def stmt(self, s: Any) -> None:
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise UndeterminedError("a run too long to replay")
        kind = type(s).__name__
        if kind in ("For", "IfThenElse") and s not in self.relevant:
            return
        view = kind == "Bind" and str(s.var.dtype) == "handle"
        if view and str(s.value.op.name) == "tirx.handle_add_byte_offset":
            base, offset = self.roots.get(s.value.args[0], (s.value.args[0], 0))
            self.roots[s.var] = (base, offset + self.number(s.value.args[1]))
        elif kind == "BufferStore":
            self.visit(s.value)
            self.index(s, s.buffer, s.indices, "write")
        else:
            super().stmt(s)

    def loop(self, s: Any) -> None:
        lo, extent = self.number(s.min), self.number(s.extent)
        variable, name, body = self.same(s.loop_var), str(s.loop_var.name), s.body
        for value in range(lo, lo + extent):
            self.env[variable] = self.around[name] = value
            self.stmt(body)
        self.around.pop(name, None)

    def condition(self, e: Any) -> bool | None:
        taken = super().condition(e)
        if taken is None:
            raise UndeterminedError(f"data decides about {e}")
        return taken

    # -- events ------------------------------------------------------------------------------

    def call(self, e: Any) -> None:
        try:
            found = effect(str(e.op.name), list(e.args))
        except UnmodelledError:
            found = None
        if found is not None and found.collective != "none":
            self.reached[e] = self.reached.get(e, 0) + 1
        if found is not None and found.sync is not None:
            self.synchronise(found)
        else:
            super().call(e)

    def synchronise(self, found: Effect) -> None:
        if found.sync == "barrier":
            self.epoch, self.meeting = self.epoch + 1, 0
        elif found.sync == "warp":
            self.meeting += 1
        elif found.sync == "commit":
            self.groups.append(self.open)
            self.open = []
        else:
            while len(self.groups) > found.pending:
                for moment in self.groups.pop(0):
                    moment.end = self.now()

    def now(self) -> tuple[int, int, int]:
        return self.epoch, self.meeting, self.steps

    def touch(self, touch: Touch, node: Any) -> None:
        if touch.peer is not None:
            return
        if touch.after_barrier:
            self.epoch, self.meeting = self.epoch + 1, 0
        if touch.after_warp:
            self.meeting += 1
        count = len(self.found)
        super().touch(touch, node)
        if touch.asynchronous:
            for moment in self.found[count:]:
                moment.end = (math.inf, math.inf, math.inf)
                self.open.append(moment)

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
        root, start = self.roots.get(data, (data, 0))
        scope = self.scopes.get(root, "")
        if not scope.startswith("shared"):
            return
        arena = scope if scope == "shared.dyn" else str(root.name)
        bits = scalar_bits(view.dtype) if view is not None else 8 * element
        first, stop = start + offset * bits // 8, start - (-(offset + lanes) * bits // 8)
        self.steps += 1
        now = self.now()
        self.found.append(Moment(node, mode, arena, first, stop, now, now, dict(self.around)))


def clashes(
    one: list[Moment], two: list[Moment], threads: tuple[int, int], nodes: tuple[Any, Any]
) -> Iterator[tuple[Moment, Moment]]:
    """Moments of two statements, by the linear thread numbers given, that meet."""
    ones = [m for m in one if m.node.same_as(nodes[0])]
    twos = [m for m in two if m.node.same_as(nodes[1])]
    for a in ones:
        for b in twos:
            if a is not b and a.meets(b, threads):
                yield a, b
