"""What properties share: the launch they look at, and the outcome of one obligation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from tileproof.verify import grid
from tileproof.verify.domain import Domain
from tileproof.verify.encode import Answer, Engine, Point
from tileproof.verify.facts import Access, Facts
from tileproof.verify.intrinsics import UnmodelledError
from tileproof.verify.model import Counterexample, Verdict
from tileproof.verify.order import Order, analyse
from tileproof.verify.replay import Machine, Setting, Trace
from tileproof.verify.terms import Symbol, Term, evaluate
from tileproof.verify.timeline import Moment, Timeline
from tileproof.verify.tma import Map


@dataclass(frozen=True)
class Goal:
    """One obligation, decided. A REFUTED one carries its confirmed counterexample."""

    verdict: Verdict
    reason: str = ""
    example: Counterexample | None = None


PROVED = Goal(Verdict.PROVED)


def weakest(goals: Iterable[Goal]) -> Goal:
    """One obligation made of several: the first that is refuted, else the last that is open."""
    open_goal = PROVED
    try:
        for goal in goals:
            if goal.verdict is Verdict.REFUTED:
                return goal
            if goal is not PROVED:
                open_goal = goal
    except UnmodelledError as missing:
        return Goal(Verdict.UNKNOWN, f"not modelled: {missing}")
    return open_goal


@dataclass(frozen=True)
class Resources:
    """What a block asks for, in bytes and threads, and the most its architecture gives.

    `local` counts a thread's arrays, which live in registers where their indices are constants.
    """

    arch: str
    shared: Term
    most_shared: int
    threads: tuple[Term, Term, Term]
    most_threads: int
    local: int


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel launch with everything a property may ask about it.

    `host` holds the checks of the host function; it is given with the first launch only. `outputs`
    are the tensors whose coverage this launch answers for, `shared` those that other launches of
    the call write too. `complete` is false when something in the kernel is not modelled.
    `cooperative` says that all blocks run at once. `remarks` are what a report should say besides.
    """

    facts: Facts
    domain: Domain
    engine: Engine
    machine: Machine
    extents: Mapping[str, Term]
    host: Facts | None
    complete: bool = True
    outputs: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    maps: Mapping[str, Map] = field(default_factory=dict)
    runs: dict[Any, tuple[list[Moment], dict[Any, int]]] = field(default_factory=dict)
    resources: Resources | None = None
    clusters: tuple[int, int, int] = (1, 1, 1)
    cooperative: bool = False
    remarks: list[str] = field(default_factory=list)

    @cached_property
    def order(self) -> Order | None:
        """Where more than barriers of the whole block orders threads, what comes before what."""
        return analyse(self) if self.facts.unordered else None

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What is taken for granted about the order of things."""
        resident = (grid.RESIDENT,) if self.cooperative and grid.barriers(self.facts) else ()
        return resident if self.order is None else (*self.order.assumptions, *resident)

    def writes(self, tensor: str) -> list[Access]:
        """Every store to a global tensor."""
        return [a for a in self.facts.accesses if a.buffer.tensor == tensor and a.mode == "write"]

    def setting(self, point: Mapping[Symbol, int]) -> Setting:
        """A solver's point as the place to re-execute."""
        sizes = {s.name: v for s, v in point.items() if s.kind == "dim"}
        indices = {s.name: v for s, v in point.items() if s.kind in ("block", "thread")}
        loops = {s.origin: v for s, v in point.items() if s.kind == "loop"}
        for axis in "xyz":
            extent = self.extents.get(f"threadIdx.{axis}")
            if extent is not None and extent.is_const:
                sizes[f"threads.{axis}"] = extent.value
        sizes |= {f"cluster.{axis}": n for axis, n in zip("xyz", self.clusters, strict=True)}
        return Setting(sizes, indices, loops)

    def replay(self, point: Mapping[Symbol, int]) -> Trace:
        """Re-execute one thread of the launch, if the launch has such a thread."""
        setting = self.setting(point)
        dims = {s: v for s, v in point.items() if s.kind == "dim"}
        for tag, extent in self.extents.items():
            if not 0 <= setting.indices.get(tag, 0) < int(evaluate(extent, dims)):
                return Trace()
        return self.machine.run(setting)

    def timeline(self, point: Mapping[Symbol, int]) -> list[Moment]:
        """All that one thread does to shared memory; see :class:`Timeline`."""
        return self._whole(point)[0]

    def reached(self, point: Mapping[Symbol, int], node: Any) -> int:
        """How often one thread makes a call that others must make with it."""
        return self._whole(point)[1].get(node, 0)

    def _whole(self, point: Mapping[Symbol, int]) -> tuple[list[Moment], dict[Any, int]]:
        kept = tuple((s, v) for s, v in point.items() if s.kind in ("dim", "block", "thread"))
        if kept not in self.runs:
            machine = Timeline(*self.machine.source)
            moments = machine.moments(self.setting(dict(kept)))
            self.runs[kept] = moments, machine.reached
        return self.runs[kept]

    def describe(self, point: Mapping[Symbol, int]) -> dict[str, Any]:
        """The fields of a counterexample that name the place."""
        setting = self.setting(point)
        return {
            "sizes": {s.name: v for s, v in point.items() if s.kind == "dim"},
            "block": tuple(setting.indices.get(f"blockIdx.{a}", 0) for a in "xyz"),
            "thread": tuple(setting.indices.get(f"threadIdx.{a}", 0) for a in "xyz"),
            "loops": {s.name: v for s, v in point.items() if s.kind == "loop"},
        }


def undecided(answer: Answer, what: str) -> Goal:
    """The goal of a query that ran out of budget."""
    return Goal(Verdict.UNKNOWN, f"{what}: {answer.reason}")


def found(example: Counterexample, point: Point, loads: bool) -> Goal:
    """REFUTED if the counterexample was confirmed. Else ALARM if some contents of the tensors show
    it; UNKNOWN if it takes numbers that the model does not follow, which may never be so."""
    if example.confirmed:
        return Goal(Verdict.REFUTED, example.message, example)
    if point.numbers:
        names = ", ".join(point.numbers)
        return Goal(Verdict.UNKNOWN, f"{example.message} (if {names} may be so)")
    why = (
        "it hangs on the value of data"
        if point.needs_data or loads
        else "replay did not confirm it"
    )
    return Goal(Verdict.ALARM, f"{example.message} ({why})", example)


@dataclass(frozen=True)
class Property:
    """A name, the function that yields its obligations for one launch, and the properties that its
    proof relies on. `ordered` says that it is about who comes first: ``"itself"`` where it is a
    question of :mod:`tileproof.verify.order`, ``"rests"`` where its own obligations need the
    answer. `beside` are obligations between the blocks of a cluster, which that module, of one
    block, leaves open."""

    name: str
    obligations: Callable[[Launch], Iterator[Goal]]
    relies_on: tuple[str, ...] = ("overflow",)
    ordered: Literal["", "itself", "rests"] = ""
    beside: Callable[[Launch], Iterator[Goal]] | None = None

    def goals(self, launch: Launch) -> Iterator[Goal]:
        """Its obligations for one launch, decided."""
        order = launch.order if self.ordered else None
        if order is not None and (self.ordered == "itself" or order.why):
            yield from order.goals(self.name)
            if self.beside is not None:
                yield from self.beside(launch)
            # What a run shows needs no order; blocks of a cluster may do other parts of one tile.
            if self.ordered == "rests" and launch.clusters == (1, 1, 1):
                yield from (g for g in self.obligations(launch) if g.verdict is Verdict.REFUTED)
        else:
            yield from self.obligations(launch)
