"""Stores into the shared memory of other blocks of a cluster keep apart from all else there.

Such a store is over, and seen, behind the next barrier of the cluster, and by nothing less: neither
by a barrier of one block nor because the same thread comes later. So its window is walked as those
of :mod:`.races` are, with barriers of the cluster alone, and any two blocks of a cluster at its
ends. What a copy or matrix instruction touches, which is under way beside the thread, must be other
bytes, else the answer is unknown. A barrier must lie before it, since a block may not have begun,
and one behind it, since it may have ended. That every thread of a cluster comes to its barriers
alike is shown by ``barriers``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tileproof.verify import cluster, terms
from tileproof.verify.facts import Access, Buffer, Context, Facts
from tileproof.verify.footprint import Footprints, byte_range
from tileproof.verify.intrinsics import Effect, Touch
from tileproof.verify.model import Counterexample, Step, Verdict
from tileproof.verify.replay import UndeterminedError
from tileproof.verify.terms import Symbol, Term, apply, const, poly, var
from tileproof.verify.timeline import Timeline
from tileproof.verify.windows import Meeting, Walk, synchronising

from ._run import PROVED, Goal, Launch, found, undecided, weakest

_EDGES = {-1: "which may not have begun", 1 << 62: "which may have ended"}


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per access of a memory that peers store into. Bulk copies to peers are not
    judged: their order is unknown, and named."""
    stores = [a for a in launch.facts.accesses if a.peer is not None]
    if not stores or (launch.order is not None and launch.order.why):
        return
    pairs = _Peers(launch, stores)
    for store in stores:
        yield pairs.under_way(store)
    for access in pairs.accesses:
        goal = pairs.goal(access)
        yield goal
        if goal.verdict is Verdict.REFUTED:  # the same defect at every site says no more
            return


class _Peers:
    """Two threads of two blocks of one cluster, the second with twins of all that is its own."""

    def __init__(self, launch: Launch, stores: list[Access]) -> None:
        self.launch, facts = launch, launch.facts
        own = [*facts.threads, *facts.blocks]
        self.twins: dict[Symbol, Term] = {
            s: var(Symbol(f"{s.name}'", s.kind, s.lo, s.hi, s.origin)) for s in own
        }
        self.rank = cluster.rank(facts.symbols, launch.clusters)
        self.together = cluster.same(self.twins, launch.clusters)
        arenas = {a.buffer.arena for a in stores}
        sites = [a for a in facts.accesses if any(self._near(a, store) for store in stores)]
        self.engines = [a for a in sites if a.asynchronous]
        # The walk takes all accesses as those of one memory; `of` tells whose it is.
        self.of = {replace(a, peer=None): a for a in sites if not a.asynchronous}
        for name in sorted(arenas):
            whole = Buffer(name, "shared", 8, None, arena=name)
            for order in _EDGES:
                edge = Access(whole, "read", const(0), 1, 1, Context(), order, None)
                self.of[edge] = edge
        self.accesses = list(self.of)
        barriers = [s for s in facts.syncs if _of_cluster(s.effect)]
        walked = Facts(facts.name, facts.symbols, self.accesses, syncs=barriers)
        self.walk = Walk(walked, self.twin, self.feasible)
        short = [s for s in own if s.lo.is_const and s.hi.is_const]
        self.footprints = Footprints(short, synchronising(walked))

    def twin(self, condition: Term) -> Term:
        """A condition as the second thread sees it; data of its own it sees by itself."""
        return terms.substitute(condition, self._renamed(condition.symbols, {}))

    def feasible(self, given: tuple[Term, ...]) -> bool:
        return self.launch.engine.possible(Context(given), self._everyone())

    def _everyone(self) -> list[Symbol]:
        return [*self.launch.facts.symbols.values(), *(t.value for t in self.twins.values())]

    def _renamed(self, symbols: Any, where: dict[Symbol, Term]) -> dict[Symbol, Term]:
        """Twins, and other symbols for loops and data that `where` does not know."""
        view = {**where, **self.twins}
        for s in sorted((s for s in symbols if s.kind in ("loop", "opaque")), key=lambda s: s.name):
            if s not in view:
                lo, hi = (terms.substitute(t, view) for t in (s.lo, s.hi))
                view[s] = var(Symbol(f"{s.name}'", s.kind, lo, hi, s.origin))
        return view

    def goal(self, access: Access) -> Goal:
        """A meeting of a store with anything that cannot be ruled out decides."""
        return weakest(self._meetings(access))

    def _meetings(self, access: Access) -> Iterator[Goal]:
        for meeting in self.walk.from_(access):
            first, second = self.of[meeting.first], self.of[meeting.second]
            if first.peer is None and second.peer is None:
                continue
            edge = first.node is None or second.node is None
            if edge or not self.footprints.apart(replace(meeting, who="any")):
                yield self._apart(first, second, dict(meeting.where), meeting)

    def under_way(self, store: Access) -> Goal:
        """What goes on beside the threads never touches the bytes of a store."""
        for other in self.engines:
            near = self._near(other, store)
            if near and self._apart(store, other, {}, None) is not PROVED:
                what = f"{other.site}, a copy or product under way, touches what other blocks store"
                return Goal(Verdict.UNKNOWN, f"not modelled: {what}")
        return PROVED

    def _near(self, one: Access, two: Access) -> bool:
        """Whether two accesses may touch the same bytes, at any time and of any thread."""
        if one.buffer.arena != two.buffer.arena:
            return False
        ranges = [
            [self.launch.engine.ranges.of_poly(poly(t)) for t in byte_range(a)] for a in (one, two)
        ]
        (first, stop), (first2, stop2) = ranges
        return first[0] < stop2[1] and first2[0] < stop[1]

    def _apart(
        self, first: Access, second: Access, where: dict[Symbol, Term], meeting: Meeting | None
    ) -> Goal:
        inner = set(second.context.loops) | second.index.symbols
        inner |= {s for c in second.context.path for s in c.symbols}
        view = self._renamed(inner, where)
        rank = terms.substitute(self.rank, view)
        target = rank if second.peer is None else terms.substitute(second.peer, view)
        meet = apply("eq", self.rank if first.peer is None else first.peer, target)
        if first.node is None or second.node is None:
            store = target if second.peer is not None else first.peer
            own = rank if second.peer is not None else self.rank
            assert store is not None  # the walk starts or ends at a store
            violation = apply("ne", store, own)
        else:
            start, stop = byte_range(first)
            start2, stop2 = (terms.substitute(t, view) for t in byte_range(second))
            overlap = apply("and", apply("lt", start, stop2), apply("lt", start2, stop))
            violation = apply("and", apply("and", meet, overlap), self._another())
        violation = apply("and", violation, self.together)
        given = meeting.given if meeting is not None else ()
        path = [terms.substitute(c, view) for c in second.context.path]
        loops = [s for at in where.values() for s in at.symbols if s.kind == "loop"]
        loops += [view[s].value for s in second.context.loops if s not in where]
        context = Context(
            (*first.context.path, *given, *path),
            tuple(dict.fromkeys((*first.context.loops, *loops))),
        )
        answer = self.launch.engine.never(violation, context, self._everyone())
        if answer.proved:
            return PROVED
        if answer.point is None:
            return undecided(answer, f"{first.site} and {second.site}")
        example = self._example(first, second, view, dict(answer.point.values))
        return found(example, answer.point, answer.loads)

    def _another(self) -> Term:
        """Not the same thread of the same block, whose accesses come one after the other."""
        same = const(1)
        for s, other in self.twins.items():
            same = apply("and", same, apply("eq", var(s), other))
        return apply("not", same)

    # -- counterexamples ---------------------------------------------------------------------

    def _example(
        self, first: Access, second: Access, view: dict[Symbol, Term], values: dict[Symbol, int]
    ) -> Counterexample:
        common = {s: v for s, v in values.items() if s.kind == "dim"}
        own = [*self.launch.facts.threads, *self.launch.facts.blocks]
        one = {**common, **{s: values[s] for s in (*own, *first.context.loops)}}
        two = {s: int(terms.evaluate(view[s], values)) for s in (*own, *second.context.loops)}
        points = [one, {**common, **two}]
        places = [self.launch.describe(p) for p in points]
        store, other = (first, second) if first.peer is not None else (second, first)
        who = places[0] if store is first else places[1]
        words = f"thread {who['thread'][0]} of block {who['block']} stores into another block,"
        edge = _EDGES.get(other.order) if other.node is None else None
        clash = None
        if edge is not None:
            message = f"{words} {edge}"
        else:
            clash = self._replayed(points, first, second)
            whom = places[1] if store is first else places[0]
            verb = "writes" if other.mode == "write" else "reads"
            message = (
                f"{words} and thread {whom['thread'][0]} of block {whom['block']} {verb} there"
                " with no barrier of the cluster in between"
            )
        steps = tuple(
            Step(f"touches {a.buffer.name}", a.site, p["block"], p["thread"], p["loops"])
            for a, p in zip((first, second), places, strict=True)
            if a.node is not None
        )
        return Counterexample(
            "races", store.site, message, steps=steps, confirmed=bool(clash), **places[0]
        )

    def _replayed(self, points: list[dict[Symbol, int]], first: Access, second: Access) -> bool:
        """Whether executing both threads shows the meeting."""
        runs = []
        with contextlib.suppress(UndeterminedError):
            for point, access in zip(points, (first, second), strict=True):
                machine = _Clustered(*self.launch.machine.source)
                moments = machine.moments(self.launch.setting(point))
                rank = int(terms.evaluate(self.rank, point))
                mine = [m for m in moments if m.node.same_as(access.node)]
                runs.append([(machine.targets.get(id(m), rank), m) for m in mine])
        if len(runs) < 2:
            return False
        return any(
            a == b and x.begin[0] == y.begin[0] and x.first < y.stop and y.first < x.stop
            for a, x in runs[0]
            for b, y in runs[1]
        )


class _Clustered(Timeline):
    """The moments of a thread in epochs of the cluster's barriers; `targets` are the ranks of the
    blocks that it stores into, by moment."""

    def begin(self) -> None:
        super().begin()
        self.targets: dict[int, int] = {}

    def synchronise(self, found: Effect) -> None:
        if _of_cluster(found):
            super().synchronise(found)

    def touch(self, touch: Touch, node: Any) -> None:
        if touch.peer is None:
            super().touch(replace(touch, after_barrier=False), node)
            return
        before = len(self.found)
        super().touch(replace(touch, peer=None), node)
        for moment in self.found[before:]:
            self.targets[id(moment)] = self.number(touch.peer)


def _of_cluster(effect: Effect) -> bool:
    return effect.sync == "barrier" and effect.collective == "cluster"
