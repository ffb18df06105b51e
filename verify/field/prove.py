"""The route ``values`` of ``tileproof verify``: an execution, reported as what it is."""

from __future__ import annotations

import time

from tileproof.codegen.lower import Lowered
from tileproof.dsl import Facts
from tileproof.verify import cache, domain
from tileproof.verify.domain import Given
from tileproof.verify.model import Counterexample, KernelReport, PropertyReport, Verdict

from .equivalence import Reference, parting
from .memory import FaultError, UnmodelledError


def compare_values(
    lowered: Lowered, *, facts: Given = None, use_cache: cache.Use = True
) -> KernelReport:
    """Whether `lowered` computes what its source says, at sizes that cover its tiles.

    The property ``values`` is TESTED if no element differs, an ALARM where one does, REFUTED where
    the lowered program does what no correct one does, UNKNOWN where a program is not executed. If
    that is the source alone, schedules of the lowered program that part are still an ALARM.
    """
    start = time.perf_counter()
    known = lowered.facts.updated(Facts.read(facts))
    assumed = domain.build(lowered.source, lowered.spec, known)
    program = f"values {cache.ir_hash(lowered)} {lowered.source.script(show_meta=False)}"
    key = cache.key(program, assumed, {}, 0)
    kept = cache.results(use_cache)
    if kept and (found := kept.read(key)) is not None:
        found.kernel, found.arch, found.reused = lowered.name, lowered.arch, True
        found.seconds = round(time.perf_counter() - start, 3)
        return found
    report = KernelReport(
        lowered.name,
        lowered.arch,
        cache.ir_hash(lowered),
        domain=assumed.describe(),
        assumptions=assumed.assumptions(),
        route="values",
    )
    try:
        report.properties["values"] = _values(lowered, known, report)
    except UnmodelledError as error:
        reason = f"not executed over a prime field: {error}"
        report.unmodelled.append(str(error))
        report.properties["values"] = PropertyReport(Verdict.UNKNOWN, reasons=[reason])
    except FaultError as error:
        reason = f"the source program: {error}"
        report.properties["values"] = PropertyReport(Verdict.ALARM, reasons=[reason])
    report.seconds = round(time.perf_counter() - start, 3)
    if kept:
        kept.write(key, report)
    return report


def _values(lowered: Lowered, facts: Facts, report: KernelReport) -> PropertyReport:
    facts = Facts.of(lowered.spec).updated(facts) if lowered.spec is not None else facts
    reference = Reference(lowered, facts, of_source=True)
    try:
        difference = reference.anywhere(lowered)
    except UnmodelledError as error:
        difference = parting(lowered, facts)
        if difference is None:
            raise
        report.unmodelled.append(str(error))
    count = len(reference.sizes)
    if difference is None:
        sizes = "; ".join(", ".join(f"{k}={v}" for k, v in s.items()) for s in reference.sizes)
        report.notes.append(f"executed at {sizes}" if sizes else "executed once: no size varies")
        return PropertyReport(Verdict.TESTED, count, count)
    example = Counterexample(
        "values",
        site=difference.tensor,
        message=difference.message,
        sizes=difference.sizes,
        buffer=difference.tensor,
        offset=difference.index[0] if difference.index else None,
        confirmed=difference.index is None,
    )
    verdict = Verdict.REFUTED if example.confirmed else Verdict.ALARM
    return PropertyReport(verdict, count, 0, reasons=[example.message], counterexamples=[example])
