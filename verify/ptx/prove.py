"""The second route: from the PTX of a kernel's CUDA to verdicts on every memory operation.

It shares with the first route only the contract (``domain.py``) and the shape of reports. The PTX
is the text a build hands to ptxas.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tileproof.codegen.device import compile_ptx
from tileproof.codegen.hostir import Launch
from tileproof.codegen.lower import Lowered
from tileproof.dsl import ContractError
from tileproof.dsl.facts import Facts
from tileproof.verify import cache, domain
from tileproof.verify.domain import Domain
from tileproof.verify.model import Counterexample, KernelReport, PropertyReport, Verdict, worst

from . import bits, cfg, contract, parse, walk
from .bits import Term
from .execute import Event, Thread
from .parse import Entry, PtxError
from .replay import Point, replay
from .solve import Solver

PROPERTIES = ("bounds", "alignment")
_MOST_REASONS = 5
_MOST_SELECTIONS = 4
_UNSTABLE = re.compile(r"^\.(?:target|version) .*$|^//.*$|_INTERNAL_\w+", re.M)


@dataclass(frozen=True)
class Goal:
    """One obligation of one access: `parts` must all hold on the path."""

    property: str
    instruction: int
    path: tuple[Term, ...]
    parts: tuple[Term, ...]
    region: str
    offset: Term
    size: Term


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    reason: str = ""
    example: Counterexample | None = None
    steps: int = 0


def prove_ptx(
    lowered: Lowered, *, facts: Facts | Mapping[str, Any] | None = None, use_cache: cache.Use = True
) -> KernelReport:
    """Bounds and alignment of every memory operation in the PTX of `lowered`.

    Raises ToolchainError when nvcc is missing or refuses the text.
    """
    contract_fma = lowered.spec is None or lowered.spec.op.variant(lowered.arch).contract_fma
    text = compile_ptx(lowered.cuda, lowered.arch, contract_fma=contract_fma)
    return prove_text(lowered, text, facts=facts, use_cache=use_cache)


def prove_text(
    lowered: Lowered,
    text: str,
    *,
    facts: Facts | Mapping[str, Any] | None = None,
    use_cache: cache.Use = True,
) -> KernelReport:
    """As :func:`prove_ptx`, of the PTX `text`, which need not be what the compiler made."""
    start = time.perf_counter()
    bits.forget()
    try:
        return _prove(lowered, text, facts, use_cache, start)
    finally:
        bits.forget()


def _prove(
    lowered: Lowered,
    text: str,
    facts: Facts | Mapping[str, Any] | None,
    use_cache: cache.Use,
    start: float,
) -> KernelReport:
    assumed = domain.build(lowered.source, lowered.spec, lowered.facts.updated(Facts.read(facts)))
    digest = hashlib.sha256(_UNSTABLE.sub("", text).encode())
    report = KernelReport(
        lowered.name,
        lowered.arch,
        digest.hexdigest()[:16],
        domain=assumed.describe(),
        assumptions=assumed.assumptions(),
        notes=list(assumed.notes),
        route="ptx",
    )
    try:
        launches = lowered.launches
    except ContractError as error:
        launches = ()
        report.unmodelled.append(f"host: {error}")
    for launch in launches:
        digest.update(f"{launch.kernel} {launch.args} {launch.grid} {launch.block}".encode())
        digest.update(f"{launch.smem} {launch.cluster}".encode())
    key = cache.key(f"ptx {digest.hexdigest()}", assumed, {}, 0)
    kept = cache.results(use_cache)
    if kept and (known := kept.read(key)) is not None:
        known.kernel, known.arch, known.reused = lowered.name, lowered.arch, True
        known.seconds = round(time.perf_counter() - start, 3)
        return known
    outcomes: dict[str, list[Outcome]] = {name: [] for name in PROPERTIES}
    try:
        entries = parse.read(text)
        for launch in launches:
            if launch.kernel not in entries:
                raise PtxError(f"no entry {launch.kernel}")
            _launch(launch, entries[launch.kernel], assumed, outcomes, report.unmodelled)
    except PtxError as error:
        report.unmodelled.append(f"PTX: {error}")
    except KeyError as error:
        report.unmodelled.append(f"contract: {error.args[0]}")
    for name in PROPERTIES:
        report.properties[name] = _decided(outcomes[name], report.unmodelled)
    report.seconds = round(time.perf_counter() - start, 3)
    if kept:
        kept.write(key, report)
    return report


def _launch(
    launch: Launch,
    entry: Entry,
    assumed: Domain,
    outcomes: dict[str, list[Outcome]],
    unmodelled: list[str],
) -> None:
    sizes = contract.assume(assumed)
    inputs, place = contract.inputs(launch, assumed, sizes)
    solver = Solver([*sizes.facts, *place], sizes.about)
    if solver.holds([], bits.false()):
        unmodelled.append("no thread runs at any size")
        return
    graph = cfg.build(entry)
    thread = Thread(entry, graph, inputs, solver.holds, exact=solver.exact)
    thread.run()
    unmodelled += [f"{name} ({n} times)" for name, n in thread.unmodelled.items()]
    done: set[Goal] = set()
    for event in thread.events:
        for goal in goals(thread, event):
            if isinstance(goal, Goal):
                if goal in done:
                    continue
                done.add(goal)
                before = solver.steps
                outcome = _goal(goal, launch, entry, graph, assumed, sizes, solver)
                outcomes[goal.property].append(replace(outcome, steps=solver.steps - before))
            else:
                for name in PROPERTIES:
                    outcomes[name].append(Outcome(Verdict.UNKNOWN, goal))


def goals(thread: Thread, event: Event) -> list[Goal | str]:
    """The obligations of one access; a sentence where the address is of no known memory."""
    touch = event.touch
    path = event.path if bits.number(touch.when) == 1 else (*event.path, touch.when)
    out: list[Goal | str] = []
    for condition, address in _selected(touch.address, _MOST_SELECTIONS):
        here = (*path, *(c for c in condition if bits.number(c) != 1))
        found = thread.base(address)
        if found is None:
            out.append(
                f"{site(thread.entry, event.instruction)}: the address is no tensor plus an offset"
            )
            continue
        base, offset = found
        region = thread.inputs.regions[base]
        room = bits.sub(region.size, touch.count)
        zero = bits.const(0, 64)
        inside = bits.negate(bits.less(offset, zero)), bits.negate(bits.less(room, offset))
        rest = bits.and_(address, bits.const(touch.align - 1, address.width))
        aligned = (bits.eq(rest, bits.const(0, address.width)),)
        where = event.instruction, here
        out.append(Goal("bounds", *where, inside, region.name, offset, region.size))
        out.append(Goal("alignment", *where, aligned, region.name, offset, region.size))
    return out


def _selected(address: Term, depth: int) -> list[tuple[tuple[Term, ...], Term]]:
    """An address that is a selection, one case at a time, so that each case has one base."""
    _, parts = bits.linear(address)
    choice = next((a for a in parts if a.op == "ite" and depth), None)
    if choice is None or any(a.op == "var" and str(a.value).startswith("&") for a in parts):
        return [((), address)]
    condition, yes, no = choice.args
    out = []
    for p, value in ((condition, yes), (bits.negate(condition), no)):
        rest = bits.add(bits.sub(address, bits.scale(choice, parts[choice])), value, parts[choice])
        for more, each in _selected(rest, depth - 1):
            out.append(((p, *more), each))
    return out


def site(entry: Entry, instruction: int) -> str:
    """``PTX line 112: ld.global.f32 …``, for people."""
    i = entry.code[instruction]
    return f"PTX line {i.line}: {i.text}"


def _goal(
    goal: Goal,
    launch: Launch,
    entry: Entry,
    graph: cfg.Graph,
    assumed: Domain,
    sizes: contract.Assumed,
    solver: Solver,
) -> Outcome:
    where = site(entry, goal.instruction)
    for part in goal.parts:
        answer = solver.decide(goal.path, part)
        if answer.holds:
            continue
        if answer.holds is None:
            return Outcome(Verdict.UNKNOWN, f"{where}: the solver gave up")
        assert answer.model is not None
        model = solver.smallest(goal.path, part, answer.model, sizes.dims.values())
        point = Point.of(model, sizes.dims)
        seen = replay(launch, entry, graph, assumed, point, goal.instruction, goal.property, goals)
        if seen is None and (unknown := _untracked(goal, part)):
            return Outcome(Verdict.UNKNOWN, f"{where}: {goal.property} depends on {unknown}")
        message = seen or f"{goal.region}: {goal.property} may fail here"
        example = Counterexample(
            goal.property,
            where,
            message,
            sizes=point.sizes,
            block=point.block,
            thread=point.thread,
            buffer=goal.region,
            confirmed=seen is not None,
        )
        verdict = Verdict.ALARM if seen is None else Verdict.REFUTED
        return Outcome(verdict, f"{message} ({where})", example)
    return Outcome(Verdict.PROVED)


def _untracked(goal: Goal, part: Term) -> str:
    """What an access depends on that the route knows nothing of, in words.

    A predicate of the path that is not tracked, such as one of floating-point numbers, may be
    either: it does not count.
    """
    found = [v for v in walk.variables(*goal.path) if v.width > 1] + walk.variables(part)
    return " and ".join(dict.fromkeys(filter(None, map(bits.untracked, found))))


def _decided(outcomes: Sequence[Outcome], unmodelled: Sequence[str]) -> PropertyReport:
    failed = [o for o in outcomes if o.verdict is not Verdict.PROVED]
    verdict = worst(o.verdict for o in outcomes) if outcomes else Verdict.NOT_APPLICABLE
    reasons = list(dict.fromkeys(o.reason for o in failed))
    if unmodelled and verdict in (Verdict.PROVED, Verdict.NOT_APPLICABLE):
        verdict = Verdict.UNKNOWN
        reasons += [f"not modelled: {name}" for name in unmodelled]
    return PropertyReport(
        verdict=verdict,
        obligations=len(outcomes),
        proved=len(outcomes) - len(failed),
        rlimit=sum(o.steps for o in outcomes),
        reasons=reasons[:_MOST_REASONS],
        counterexamples=[o.example for o in failed if o.example is not None][:_MOST_REASONS],
    )
