"""How many seeded bugs the verifier and the sanitizer find: the check of the checkers.

Whether a mutant is a bug at all is decided by running it beside the original over a prime field,
with warps that run ahead and copies that come late; no checker under test has a say in that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from tileproof.codegen.lower import Lowered, cuda_text
from tileproof.dsl import Facts

# equivalent: changes nothing; undecided: what the prime-field run does not know.
# verify: refuted or an alarm; values: another value than the source's; sanitize: found by a run.
Fate = Literal["equivalent", "undecided", "verify", "values", "sanitize", "escaped"]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant. `why` is the first complaint, or what it does unnoticed."""

    kernel: str
    arch: str
    mutant: str
    kind: str
    site: str
    fate: Fate
    why: str


def examine(
    lowered: Lowered,
    facts: Facts,
    *,
    kinds: Collection[str] = (),
    most: int | None = None,
    run: bool = True,
) -> Iterator[Outcome]:
    """Every mutant of `lowered` (of some `kinds`; `most` of a class) and what finds it.

    `run` sends what the verifier misses to the sanitizer. What is wrong with `lowered` itself finds
    no mutant. Raises UnmodelledError for a kernel the prime-field run does not know.
    """
    from tileproof.verify.mutate import mutants

    checkers = _Checkers(lowered, facts, run)
    for mutant in mutants(lowered, kinds, most):
        fate, why = checkers.fate(mutant)
        yield Outcome(lowered.name, lowered.arch, mutant.name, mutant.kind, mutant.site, fate, why)


class _Checkers:
    """Whatever looks at the mutants of one kernel."""

    def __init__(self, lowered: Lowered, facts: Facts, run: bool) -> None:
        from tileproof.verify.field import Reference, UnmodelledError, parting

        self.facts = facts
        self.lowered_values = Reference(lowered, facts, of_source=False)
        self.source_values = Reference(lowered, facts, of_source=True)
        try:
            self.of_source = self.source_values.difference(lowered) is None
            self.of_schedules = False
        except UnmodelledError:  # only what is wrong whatever the source is left
            self.of_source, self.of_schedules = False, parting(lowered, facts) is None
        self.known = self.complaints(lowered)
        self.run = run and not self.sanitized(lowered)

    def fate(self, mutant: Any) -> tuple[Fate, str]:
        from tileproof.verify.changes import is_ordered
        from tileproof.verify.field import EVERY, UnmodelledError

        try:
            difference = self.lowered_values.difference(mutant.lowered)
            if difference is None and is_ordered(mutant.kind):
                difference = self.lowered_values.difference(mutant.lowered, EVERY[1:], largest=2)
        except UnmodelledError as error:
            return "undecided", str(error)
        if difference is None:
            return "equivalent", ""
        for name, words in self.complaints(mutant.lowered).items():
            if name not in self.known:
                return "verify", f"{name}: {words}"
        if (other := self.valued(mutant.lowered)) is not None:
            return "values", other.message
        if self.run and (words := self.sanitized(mutant.lowered)):
            return "sanitize", words
        return "escaped", f"at {dict(difference.sizes)}: {difference.message}"

    def valued(self, lowered: Lowered) -> Any:
        """What ``verify --route values`` complains of, None if it does not."""
        from tileproof.verify.field import parting

        if self.of_source:
            return self.source_values.anywhere(lowered)
        return parting(lowered, self.facts) if self.of_schedules else None

    def complaints(self, lowered: Lowered) -> dict[str, str]:
        """The properties that are refuted or an alarm, each with a reason."""
        from tileproof.verify import Verdict, prove_lowered

        report = prove_lowered(lowered, facts=self.given(lowered), use_cache=False)
        bad = (Verdict.REFUTED, Verdict.ALARM)
        found = {
            name: next(iter(p.reasons), "")
            for name, p in report.properties.items()
            if p.verdict in bad
        }
        return {**found, "error": report.error} if report.error else found

    def given(self, lowered: Lowered) -> Facts | None:
        """Facts to prove with: an op brings its own."""
        return None if lowered.spec is not None else self.facts

    def sanitized(self, lowered: Lowered) -> str:
        from tileproof.sanitizer import sanitize

        text = cuda_text(lowered.device_mod, lowered.arch)
        (report,) = sanitize(replace(lowered, cuda=text), facts=self.facts, draws=2).kernels
        return report.findings[0].message if report.findings else ""


def table(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """A row per class and one for all: how many mutants had each fate."""
    fates = ("equivalent", "undecided", "verify", "values", "sanitize", "escaped")
    rows: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        for name in (outcome.kind, "all"):
            row = rows.setdefault(name, {"class": name, "seeded": 0, **dict.fromkeys(fates, 0)})
            row["seeded"] += 1
            row[outcome.fate] += 1
    for row in rows.values():
        bugs = row["seeded"] - row["equivalent"] - row["undecided"]
        found = row["verify"] + row["values"]
        row["by_verify"] = found / bugs if bugs else None
        row["by_both"] = (found + row["sanitize"]) / bugs if bugs else None
    return [*(row for name, row in rows.items() if name != "all"), *filter(None, [rows.get("all")])]
