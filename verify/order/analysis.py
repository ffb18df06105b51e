"""From the traces of a block's threads to the obligations of `barriers`, `races` and `async`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tileproof.verify.facts import text
from tileproof.verify.intrinsics import UnmodelledError
from tileproof.verify.model import Counterexample, Step, Verdict
from tileproof.verify.replay import Setting, UndeterminedError

from .conflicts import Conflict, conflicts
from .graph import Graph
from .trace import Access, Tracer

if TYPE_CHECKING:
    from tileproof.verify.props import Goal, Launch

# What orders things here; anything else that does is named and left unknown.
MODELLED = frozenset(("mbarriers", "TMA stores", "wgmma", "named barriers"))
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Finding:
    """What is wrong, for which property; `confirmed` if the threads named certainly do it."""

    property: str
    message: str
    site: str
    steps: tuple[Step, ...]
    confirmed: bool


@dataclass(frozen=True)
class Order:
    """The outcome: `why` it stays unknown, or what was found."""

    why: str = ""
    findings: tuple[Finding, ...] = ()

    def goals(self, name: str) -> Iterator[Goal]:
        """The obligations of one property."""
        from tileproof.verify.props._run import PROVED, Goal

        if self.why:
            yield Goal(Verdict.UNKNOWN, self.why)
            return
        yield PROVED
        for f in self.findings:
            if f.property != name:
                continue
            example = Counterexample(name, f.site, f.message, steps=f.steps, confirmed=f.confirmed)
            verdict = Verdict.REFUTED if f.confirmed else Verdict.ALARM
            yield Goal(verdict, f.message, example)


def analyse(launch: Launch) -> Order:
    """Follow every thread of a block of `launch`."""
    missing = [n for n in launch.facts.unordered if n not in MODELLED]
    if missing:
        return Order(f"order not modelled: {', '.join(missing)}")
    threads = _threads(launch)
    if threads is None:
        return Order("order not modelled: a block of several dimensions or of unknown size")
    tracer = Tracer(*launch.machine.source)
    traces = {}
    try:
        for t in range(threads):
            sizes = {"threads.x": threads, "threads.y": 1, "threads.z": 1}
            traces[t] = tracer.trace_of(t, Setting(sizes, {"threadIdx.x": t}, {}))
    except UnmodelledError as what:
        return Order(f"order not modelled: {what}")
    except UndeterminedError as what:
        return Order(f"order not followed: {what}")
    graph = Graph(traces)
    findings = []
    for fault in graph.faults:
        steps = tuple(
            _event_step(traces[t].events[n].kind, traces[t].nodes[n], t)
            for t, n in fault.at
            if n < len(traces[t].events)
        )
        site = steps[0].site if steps else launch.facts.name
        findings.append(Finding("barriers", fault.message, site, steps, True))
    if not graph.faults:
        exact = not any(t.loose or t.warps_meet for t in traces.values())
        found = list(_first_of_each(conflicts(graph)))
        findings += [_conflicting(c, exact) for c in found]
        outliving = [a for t in traces.values() for a in t.outliving]
        findings += [_outliving(a) for a in outliving[:1]]
    return Order(findings=tuple(findings))


def _threads(launch: Launch) -> int | None:
    extents = [launch.facts.symbols.get(f"threadIdx.{axis}") for axis in "xyz"]
    counts = [1 if s is None else s.hi.value + 1 if s.hi.is_const else 0 for s in extents]
    whole = 0 < counts[0] <= _MOST_THREADS and counts[1:] == [1, 1]
    return counts[0] if whole else None


def _first_of_each(found: Iterator[Conflict]) -> Iterator[Conflict]:
    """One conflict of each pair of statements."""
    seen = set()
    for c in found:
        pair = (c.why, c.first.node, c.second.node)
        if pair not in seen:
            seen.add(pair)
            yield c


def _conflicting(c: Conflict, exact: bool) -> Finding:
    one, two = c.first, c.second
    if c.why == "fence":
        message = (
            f"thread {one.thread} writes byte {c.byte} of {one.arena} with an ordinary store, and"
            f" no fence_proxy_async comes before the copy of thread {two.thread} that touches it"
        )
    else:
        copies = [a for a in (one, two) if a.asynchronous]
        what = "while a copy is under way" if copies else "with nothing between them"
        message = (
            f"thread {one.thread} {_verb(one)} and thread {two.thread} {_verb(two)} byte {c.byte}"
            f" of {one.arena} {what}"
        )
    # Two stores of one value are no race, and what is stored is not followed.
    stores = one.mode == two.mode == "write" and not (one.asynchronous or two.asynchronous)
    steps = (_step(one), _step(two))
    name = "races" if c.why == "race" else "async"
    return Finding(name, message, _site(one.node), steps, exact and not stores)


def _site(node: Any) -> str:
    if type(node).__name__ == "BufferStore":  # whose text begins with declarations
        return f"{node.buffer.name}[{text(node.indices[0], 60)}]"
    return text(node, 60)


def _outliving(a: Access) -> Finding:
    message = (
        f"thread {a.thread} ends without waiting for its copy from byte {a.first} of {a.arena},"
        " which may still read there"
    )
    return Finding("async", message, _site(a.node), (_step(a),), True)


def _step(a: Access) -> Step:
    return Step(_verb(a), _site(a.node), (0, 0, 0), (a.thread, 0, 0), dict(a.loops))


def _verb(a: Access) -> str:
    return "writes" if a.mode == "write" else "reads"


def _event_step(kind: str, node: tuple[Any, dict[str, int]], thread: int) -> Step:
    return Step(kind, _site(node[0]), (0, 0, 0), (thread, 0, 0), node[1])
