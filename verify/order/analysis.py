"""From the traces of a block's threads to the obligations of `barriers`, `races` and `async`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tileproof.verify.facts import text
from tileproof.verify.intrinsics import UnmodelledError
from tileproof.verify.model import Counterexample, Step, Verdict
from tileproof.verify.replay import Setting, UndeterminedError

from .conflicts import Conflict, Piece
from .explore import explore
from .plan import Plan
from .run import Run
from .sizes import Sizes
from .state import Place
from .trace import HEIGHT, MEMORY, Access, Trace, Tracer
from .values import CoarseError, of_cluster

if TYPE_CHECKING:
    from tileproof.verify.props import Goal, Launch

# What orders things here; anything else that does is named and left unknown.
MODELLED = frozenset(("mbarriers", "TMA stores", "wgmma", "named barriers", MEMORY))
_MOST_THREADS = 1024
_MOST_BLOCKS = 32  # along an axis of a cluster


@dataclass(frozen=True)
class Finding:
    """What is wrong, for which property, and how sure that is. `sizes` and `block` say where it was
    found; without them it is so at every size and in every block."""

    property: str
    message: str
    site: str
    steps: tuple[Step, ...]
    verdict: Verdict
    sizes: Mapping[str, int] = field(default_factory=dict)
    block: tuple[int, ...] = ()


@dataclass(frozen=True)
class Order:
    """The outcome: `why` it stays unknown, or what was found; what a proof takes for granted."""

    why: str = ""
    findings: tuple[Finding, ...] = ()
    assumptions: tuple[str, ...] = ()

    def goals(self, name: str) -> Iterator[Goal]:
        """The obligations of one property."""
        from tileproof.verify.props._run import PROVED, Goal

        if self.why:
            yield Goal(Verdict.UNKNOWN, self.why)
            return
        yield PROVED
        for f in self.findings:
            if f.property == name and f.verdict is Verdict.UNKNOWN:
                yield Goal(Verdict.UNKNOWN, f"{f.message} (if some size has loops that go so)")
            elif f.property == name:
                example = Counterexample(
                    name, f.site, f.message, f.sizes, f.block, steps=f.steps,
                    confirmed=f.verdict is Verdict.REFUTED,
                )  # fmt: skip
                yield Goal(f.verdict, f.message, example)


@dataclass(frozen=True)
class Followed:
    """The threads of a block, and the first run with something wrong, if there is one."""

    traces: dict[int, Trace]
    plan: Plan
    wrong: Run | None
    at_ease: frozenset[int]  # classes that are taken to see each phase


def analyse(launch: Launch) -> Order:
    """Follow every thread of a block of `launch`."""
    missing = [n for n in launch.facts.unordered if n not in MODELLED]
    if missing:
        return Order(f"order not modelled: {', '.join(missing)}")
    threads = _threads(launch)
    if threads is None:
        return Order("order not modelled: a block of several dimensions or of unknown size")
    order = Order()
    for blocks in _blocks(launch):
        order = _of_blocks(launch, threads, blocks)
        if not order.why:
            break
    return order


def _blocks(launch: Launch) -> Iterator[list[dict[str, Any]]]:
    """The blocks that stand for all: any one, but of a cluster each rank, since what a block does
    there hangs on it; should that not do, each along the cluster's axes, if those are short."""
    axes = [
        (symbol, n)
        for axis, n in zip("xyz", launch.clusters, strict=True)
        if n > 1 and (symbol := launch.facts.symbols.get(f"blockIdx.{axis}")) is not None
    ]
    ranks = {s.name: [of_cluster(s.name, n, i) for i in range(n)] for s, n in axes}
    numbers = {s.name: range(s.hi.value + 1) for s, _ in axes if s.hi.is_const}
    if any(len(numbers.get(s.name, ())) != n for s, n in axes):
        yield _product(ranks)
    if len(numbers) == len(axes) and all(len(n) <= _MOST_BLOCKS for n in numbers.values()):
        yield _product(numbers)


def _product(indices: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    return [
        dict(zip(indices, block, strict=True)) for block in itertools.product(*indices.values())
    ]


def _of_blocks(launch: Launch, threads: int, blocks: Iterable[dict[str, Any]]) -> Order:
    """The same, of blocks with these indices, up to the first with something wrong."""
    assumed: list[str] = []
    for block in blocks:
        order = _of_block(launch, threads, block)
        if order.why or order.findings:
            return order
        assumed += [a for a in order.assumptions if a not in assumed]
    return Order(assumptions=tuple(assumed))


def _of_block(launch: Launch, threads: int, block: dict[str, Any]) -> Order:
    """The same, of blocks with these indices."""
    tracer = Tracer(*launch.machine.source)
    sizes = Sizes(launch, tracer.loops, block)
    try:
        known = {"threads.x": threads, "threads.y": 1, "threads.z": 1}
        found = _follow(tracer, Setting(known, block, {}), threads, sizes)
    except UnmodelledError as what:
        return Order(f"order not modelled: {what}")
    except UndeterminedError as what:
        return Order(f"order not followed: {what}")
    if found.wrong is None:
        return Order(assumptions=tuple(_assumptions(found, launch)))
    if not found.plan.open:
        return Order(findings=tuple(_findings(launch, found, Verdict.REFUTED)))
    for setting in sizes.examples(found.wrong, tracer.periods()):
        with contextlib.suppress(UndeterminedError):
            at = _follow(Tracer(*launch.machine.source), setting, threads, sizes)
            if at.wrong is not None and not at.plan.open:
                findings = _findings(launch, at, Verdict.REFUTED, setting)
                return Order(findings=tuple(findings))
    doubt = Verdict.UNKNOWN if found.wrong.loose else Verdict.ALARM
    return Order(findings=tuple(_findings(launch, found, doubt)))


def _follow(tracer: Tracer, setting: Setting, threads: int, sizes: Sizes) -> Followed:
    """What each thread may do, by classes of iterations as fine as it takes, and all runs."""
    while True:
        try:
            traces = tracer.traces_of(threads, setting)
            break
        except CoarseError as why:
            tracer.finer(why)
    plan = Plan(traces, sizes.possible)
    last = explore(plan)
    return Followed(traces, plan, last if last.wrong else None, frozenset(last.at_ease))


def _assumptions(found: Followed, launch: Launch) -> Iterator[str]:
    threads = [t for t, cls in found.plan.classes.items() if cls in found.at_ease]
    if threads:
        yield (
            f"the {len(threads)} threads of a block of {launch.facts.name} that only wait at"
            f" mbarriers (the first is {min(threads)}) see each phase before the next is over"
        )
    if found.plan.assumed:
        yield (
            "a tcgen05.cp comes after the copies and the reads of multiplies that its thread issued"
            " before, which PTX ISA 9.2 does not list among the pipelined pairs"
        )


def _findings(
    launch: Launch, found: Followed, verdict: Verdict, at: Setting | None = None
) -> Iterator[Finding]:
    run, traces = found.wrong, found.traces
    assert run is not None
    place: dict[str, Any] = {}
    if at is not None:
        names = {s.name for s in launch.domain.dims.values()}
        place["sizes"] = {n: v for n, v in at.sizes.items() if n in names}
        place["block"] = tuple(at.indices.get(f"blockIdx.{a}", 0) for a in "xyz")
    if run.fault is not None:
        steps = tuple(_event_step(traces, event) for event in run.fault.at)
        site = steps[0].site if steps else launch.facts.name
        yield Finding("barriers", run.fault.message, site, steps, verdict, **place)
        return
    loose = any(t.loose or t.warps_meet for t in traces.values())
    for c in run.found.values():
        # Two stores of one value are no race, and what is stored is not followed.
        stores = "read" not in (c.first.mode, c.second.mode) and not (
            c.first.engine or c.second.engine or c.first.arena.startswith(MEMORY)
        )
        sure = verdict if verdict is not Verdict.REFUTED or not (loose or stores) else Verdict.ALARM
        yield replace(_conflicting(c, sure), **place)
    for p in list(run.outliving.values())[:1]:
        yield replace(_outliving(p, verdict), **place)


def _threads(launch: Launch) -> int | None:
    extents = [launch.facts.symbols.get(f"threadIdx.{axis}") for axis in "xyz"]
    counts = [1 if s is None else s.hi.value + 1 if s.hi.is_const else 0 for s in extents]
    whole = 0 < counts[0] <= _MOST_THREADS and counts[1:] == [1, 1]
    return counts[0] if whole else None


def _conflicting(c: Conflict, verdict: Verdict) -> Finding:
    if c.first.arena.startswith(MEMORY):
        return _in_tensor_memory(c, verdict)
    one, two = (c.first, c.second) if c.first.mode == "write" else (c.second, c.first)
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
    name = "races" if c.why == "race" else "async"
    return Finding(name, message, _site(one.node), (_step(one), _step(two)), verdict)


_VERBS = {
    "load": "loads", "store": "stores", "copy": "copies scales to", "a": "multiplies by",
    "scale": "multiplies by", "take": "takes", "free": "gives back",
}  # fmt: skip
_LACKS = {
    "copy": "while one of them may be under way",
    "race": "with nothing that orders them",
    "before": "with no tcgen05.fence::before_thread_sync behind that",
    "after": "with no tcgen05.fence::after_thread_sync in between",
}


def _in_tensor_memory(c: Conflict, verdict: Verdict) -> Finding:
    one, two = (_VERBS.get(a.use, "multiplies into") for a in (c.first, c.second))
    message = (
        f"thread {c.second.thread} {two} column {c.byte // HEIGHT} of {c.first.arena}, which thread"
        f" {c.first.thread} {one}, {_LACKS[c.why]}"
    )
    name = "races" if c.why == "race" else "async"
    steps = (_step(c.first), _step(c.second))
    return Finding(name, message, _site(c.second.node), steps, verdict)


def _site(node: Any) -> str:
    if type(node).__name__ == "BufferStore":  # whose text begins with declarations
        return f"{node.buffer.name}[{text(node.indices[0], 60)}]"
    return text(node, 60)


def _outliving(p: Piece, verdict: Verdict) -> Finding:
    a = p.each[0]
    message = (
        f"thread {a.thread} ends without waiting for its copy from byte {a.first} of {a.arena},"
        " which may still read there"
    )
    return Finding("async", message, _site(a.node), (_step(a),), verdict)


def _step(a: Access) -> Step:
    return Step(_verb(a), _site(a.node), (0, 0, 0), (a.thread, 0, 0), dict(a.loops))


def _verb(a: Access) -> str:
    return "writes" if a.mode == "write" else "reads"


def _event_step(traces: dict[int, Trace], place: Place) -> Step:
    thread, segment, n = place
    done = traces[thread].segments[segment]
    node, loops = done.nodes[n]
    return Step(done.events[n].kind, _site(node), (0, 0, 0), (thread, 0, 0), loops)
