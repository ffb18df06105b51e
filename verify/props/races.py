"""Two threads of a block, and a copy and the thread that started it, keep apart in shared memory.

``races`` asks this of finished accesses: with no barrier between them, two threads never touch the
same byte if one of them writes it. ``async`` asks it of copies (``cp.async``), which last from
their start until a barrier after the wait that covers their group; until that wait, the thread that
started one must keep away as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tileproof.verify import terms
from tileproof.verify.encode import Answer
from tileproof.verify.facts import Access, Context
from tileproof.verify.footprint import Footprints, byte_range
from tileproof.verify.model import Counterexample, Step, Verdict
from tileproof.verify.replay import UndeterminedError
from tileproof.verify.terms import Symbol, Term, apply, const, var
from tileproof.verify.timeline import clashes
from tileproof.verify.windows import Meeting, Walk, synchronising

from . import peers
from ._run import PROVED, Goal, Launch, found, undecided, weakest

_MOST_REFUTED = 2
_WARP = 32


def races(launch: Launch) -> Iterator[Goal]:
    """One obligation per access of shared memory that is over when it is made, then those of stores
    into other blocks'."""
    yield from _goals(launch, "races")
    yield from peers.goals(launch)


def copies(launch: Launch) -> Iterator[Goal]:
    """One obligation per ``cp.async``."""
    return _goals(launch, "async")


def _goals(launch: Launch, name: str) -> Iterator[Goal]:
    sites = [a for a in launch.facts.accesses if a.buffer.arena and a.peer is None]
    chosen = [a for a in sites if a.asynchronous == (name == "async")]
    if not chosen:
        return
    pair = _Pair(launch, name)
    refuted = 0
    for access in chosen:
        goal = pair.goal(access)
        yield goal
        refuted += goal.verdict is Verdict.REFUTED
        if refuted == _MOST_REFUTED:  # the same defect at every site says no more
            return


class _Pair:
    """Two threads of one block, the second of them with twins of what the block does not share."""

    def __init__(self, launch: Launch, name: str) -> None:
        self.launch, self.name = launch, name
        self.threads = launch.facts.threads
        self.twins: dict[Symbol, Term] = {
            s: var(Symbol(f"{s.name}'", s.kind, s.lo, s.hi, s.origin)) for s in self.threads
        }
        followed = synchronising(launch.facts)
        self.footprints = Footprints(self.threads, followed, launch.facts.blocks)
        self.walk = Walk(launch.facts, self.twin, self.feasible)
        first = launch.facts.linear_thread
        second = terms.substitute(first, self.twins)
        self.differ = apply("ne", first, second)
        groups = [apply("div", t, const(_WARP)) for t in (first, second)]
        self.other_warp = apply("ne", *groups)

    def twin(self, condition: Term) -> Term:
        """A condition as the second thread sees it; data of its own it sees by itself."""
        own = {s: _renamed(s) for s in condition.symbols if s.kind == "opaque"}
        return terms.substitute(condition, {**self.twins, **own})

    def feasible(self, given: tuple[Term, ...]) -> bool:
        everyone = [*self.launch.facts.symbols.values(), *(t.value for t in self.twins.values())]
        return self.launch.engine.possible(Context(given), everyone)

    def goal(self, access: Access) -> Goal:
        """A meeting that cannot be ruled out decides."""
        # of two atomics there is no race; whether their order shows is determinism's question
        return weakest(
            self._apart(meeting)
            for meeting in self.walk.from_(access)
            if not (meeting.first.atomic and meeting.second.atomic)
            and not self.footprints.apart(meeting)
        )

    def _apart(self, meeting: Meeting) -> Goal:
        first, second = meeting.first, meeting.second
        view = self._view(meeting)
        start, stop = byte_range(first)
        start2, stop2 = (terms.substitute(t, view) for t in byte_range(second))
        who = self._who(meeting, view)
        path = [terms.substitute(c, view) for c in second.context.path]
        overlap = apply("and", apply("lt", start, stop2), apply("lt", start2, stop))
        same = _same_value(first, second, view)
        if same is not None:
            who = apply("and", who, apply("not", same))
        violation = apply("and", who, overlap)
        loops = [s for at in meeting.where.values() for s in at.symbols if s.kind == "loop"]
        loops += [view[s].value for s in second.context.loops if s not in meeting.where]
        context = Context(
            (*first.context.path, *meeting.given, *path),
            tuple(dict.fromkeys((*first.context.loops, *loops))),
        )
        everyone = [*self.launch.facts.symbols.values(), *(t.value for t in self.twins.values())]
        answer = self.launch.engine.never(violation, context, everyone)
        if answer.proved:
            return PROVED
        if answer.point is None:
            return undecided(answer, f"{first.site} and {second.site}")
        if first is second and first.stored is None and not first.asynchronous and same is None:
            if first.buffer.bits < 8:  # the rest of its byte is written as it was read
                other = apply("ne", first.index, terms.substitute(second.index, view))
                lost = self.launch.engine.never(apply("and", violation, other), context, everyone)
                if lost.point is not None:
                    return found(self._example(meeting, view, lost), lost.point, lost.loads)
            unknown = "several threads do, and whether they store the same value is not known"
            return Goal(Verdict.UNKNOWN, f"{first.site}: {unknown}")
        return found(self._example(meeting, view, answer), answer.point, answer.loads)

    def _who(self, meeting: Meeting, view: dict[Symbol, Term]) -> Term:
        """Which pairs of threads are meant."""
        if meeting.who != "itself":
            return {"any": const(1), "threads": self.differ, "warps": self.other_warp}[meeting.who]
        another = self.differ
        for s in meeting.first.context.loops:
            if s not in meeting.where:
                another = apply("or", another, apply("ne", var(s), view[s]))
        return another

    def _view(self, meeting: Meeting) -> dict[Symbol, Term]:
        """What the symbols of the second access are, seen beside the first."""
        view = {**meeting.where, **self.twins}
        second = meeting.second
        inner = [s for s in second.context.loops if s not in meeting.where]
        mentioned = second.index.symbols.union(*(c.symbols for c in second.context.path))
        data = sorted((s for s in mentioned if s.kind == "opaque"), key=lambda s: s.name)
        for s in (*inner, *data):
            lo, hi = (terms.substitute(t, view) for t in (s.lo, s.hi))
            view[s] = var(Symbol(f"{s.name}'", s.kind, lo, hi, s.origin))
        return view

    # -- counterexamples ---------------------------------------------------------------------

    def _example(
        self, meeting: Meeting, view: dict[Symbol, Term], answer: Answer
    ) -> Counterexample:
        assert answer.point is not None
        values = dict(answer.point.values)
        first, second = meeting.first, meeting.second
        common = {s: v for s, v in values.items() if s.kind in ("dim", "block")}
        points = [
            {**common, **{s: values[s] for s in (*self.threads, *first.context.loops)}},
            {
                **common,
                **{
                    s: int(terms.evaluate(view[s], values))
                    for s in (*self.threads, *second.context.loops)
                },
            },
        ]
        places = [self.launch.describe(p) for p in points]
        numbers = [int(terms.evaluate(self.launch.facts.linear_thread, p)) for p in points]
        starts = (byte_range(first)[0], terms.substitute(byte_range(second)[0], view))
        byte = None
        with contextlib.suppress(KeyError):  # an index that data decides
            byte = max(int(terms.evaluate(t, values)) for t in starts)
        clash = self._replayed(points, (numbers[0], numbers[1]), meeting)
        if clash is not None:
            byte = max(clash[0].first, clash[1].first)
            for place, moment in zip(places, clash, strict=True):
                place["loops"] = moment.loops
        arena = "shared memory" if first.buffer.arena == "shared.dyn" else first.buffer.name
        message = _message(meeting, numbers, "a byte" if byte is None else f"byte {byte}", arena)
        steps = tuple(_step(a, p) for a, p in zip((first, second), places, strict=True))
        return Counterexample(
            self.name,
            first.site,
            message,
            buffer=first.buffer.name,
            offset=byte,
            steps=steps,
            confirmed=clash is not None,
            **places[0],
        )

    def _replayed(
        self, points: list[dict[Symbol, int]], threads: tuple[int, int], meeting: Meeting
    ) -> Any:
        try:
            one, two = (self.launch.timeline(p) for p in points)
        except UndeterminedError:
            return None
        nodes = (meeting.first.node, meeting.second.node)
        return next(clashes(one, two, threads, nodes), None)


def _same_value(first: Access, second: Access, view: dict[Symbol, Term]) -> Term | None:
    """When two stores write the same value to the same elements, which is no race."""
    if first.stored is None or second.stored is None or first.buffer.bits != second.buffer.bits:
        return None
    if first.node is not second.node:
        constant = not first.stored and not second.stored
        if (
            not constant
            or first.lanes != second.lanes
            or str(first.node.value) != str(second.node.value)
        ):
            return None
    places = first.index, second.index  # parts of one byte are different places
    if first.buffer.bits >= 8:
        places = byte_range(first)[0], byte_range(second)[0]
    equal = apply("eq", places[0], terms.substitute(places[1], view))
    for term in first.stored:
        equal = apply("and", equal, apply("eq", term, terms.substitute(term, view)))
    return equal


def _renamed(s: Symbol) -> Term:
    return var(Symbol(f"{s.name}'", s.kind, s.lo, s.hi, s.origin))


def _verb(access: Access) -> str:
    if access.asynchronous:
        return "copies to"
    return "writes" if access.mode == "write" else "reads"


def _message(meeting: Meeting, threads: list[int], byte: str, arena: str) -> str:
    first, second = meeting.first, meeting.second
    one = f"thread {threads[0]} {_verb(first)} {byte} of {arena}"
    two = f"thread {threads[1]} {_verb(second)} it"
    if meeting.who in ("any", "itself"):
        return f"{one}, and {two} before the copy was waited for"
    return f"{one}, and {two} with no barrier in between"


def _step(access: Access, place: dict[str, Any]) -> Step:
    here = {k: place[k] for k in ("block", "thread", "loops")}
    return Step(f"{_verb(access)} {access.buffer.name}", access.site, **here)
