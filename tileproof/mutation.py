"""How many seeded bugs the verifier and the sanitizer find: the check of the checkers.

Whether a mutant is a bug at all is decided by running it beside the original: over a prime field,
with warps that run ahead and copies that come late, and where that shows nothing or only `values`,
which shares its executor, finds the mutant, as CUDA text on the virtual GPU too (``twins.py``). So
nobody's find counts on the finder's own word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from tileproof.codegen.lower import Lowered, cuda_text
from tileproof.dsl import Facts
from tileproof.runtime.cache import atomic_write, cache_dir

from . import twins
from .twins import Twins

# equivalent: no run shows a change; unseen: nor here, but the proofs complain; undecided: the prime
# field does not know it and the virtual GPU shows nothing. Of bugs, what finds them first: proofs
# (refuted or an alarm), values (another value than the source's), sanitize (a run).
Fate = Literal["equivalent", "unseen", "undecided", "proofs", "values", "sanitize", "escaped"]
FATES = get_args(Fate)


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant. `why` is the first complaint, or what it does unnoticed.

    field, device: whether the prime-field run and the virtual GPU tell it from the original; None
    if they cannot or were not asked.
    """

    kernel: str
    arch: str
    mutant: str
    kind: str
    site: str
    fate: Fate
    why: str
    field: bool | None = None
    device: bool | None = None


def examine(
    lowered: Lowered,
    facts: Facts,
    *,
    kinds: Collection[str] = (),
    most: int | None = None,
    run: bool = True,
) -> Iterator[Outcome]:
    """Every mutant of `lowered` (of some `kinds`; `most` of a class) and what finds it first.

    Asked in this order: the proofs, then the values, then the sanitizer. Without `run` neither it
    nor the second judge, which need a C++ compiler. What is wrong with `lowered` itself finds no
    mutant. Fates are kept in the cache by everything they hang on,
    so that a campaign that was stopped goes on where it was. Raises UnmodelledError for a kernel
    the prime-field run does not know.
    """
    from tileproof.verify.mutate import mutants

    checkers = _Checkers(lowered, facts, run)
    for mutant in mutants(lowered, kinds, most):
        known = _kept(
            checkers.key(mutant.lowered, mutant.kind), lambda m=mutant: list(checkers.fate(m))
        )
        yield Outcome(lowered.name, lowered.arch, mutant.name, mutant.kind, mutant.site, *known)


def _kept(key: str, find: Callable[[], Any]) -> Any:
    path = cache_dir("mutants") / f"{key}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        found = find()
        atomic_write(path, json.dumps(found))
        return found


class _Checkers:
    """Whatever looks at the mutants of one kernel."""

    def __init__(self, lowered: Lowered, facts: Facts, run: bool) -> None:
        from tileproof.verify.field import Reference

        self.lowered, self.facts, self.run = lowered, facts, run
        # Other numbers for the judge than for `values`, which is under test.
        self.judge = Reference(lowered, facts, of_source=False, seed=1)
        self.source_values = Reference(lowered, facts, of_source=True)
        self.twins = Twins(lowered, facts)

    def key(self, lowered: Lowered, of: str) -> str:
        """Of all that decides a fate: programs that are the same on two archs share it."""
        from tileproof.verify import cache
        from tileproof.verify.props import limits

        parts = [
            of,
            cache.ir_hash(lowered),
            cache.ir_hash(self.lowered),
            self.lowered.source.script(show_meta=False),
            asdict(self.facts),
            list(limits.decisive(self.lowered)),
            self.run,
            cache.tools(),
            cache.sources("codegen", "runtime", "sanitizer"),
            *(path.read_text() for path in (Path(__file__), Path(twins.__file__))),
        ]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def fate(self, mutant: Any) -> tuple[Fate, str, bool | None, bool | None]:
        """The fate, why, and what each of the two judges says."""
        from tileproof.verify import first_complaint
        from tileproof.verify.changes import is_of_numbers
        from tileproof.verify.field import UnmodelledError

        field: bool | None = None
        why = unknown = ""
        try:
            if (difference := self.judged(mutant)) is not None:
                why = f"at {dict(difference.sizes)}: {difference.message}"
            field = bool(why)
        except UnmodelledError as error:
            unknown = str(error)
        complaint = None
        if not is_of_numbers(mutant.kind):
            complaint = first_complaint(mutant.lowered, self.given, self.known)
        if complaint is not None and field:
            return "proofs", ": ".join(complaint), field, None
        shown = self.twins.difference(mutant.lowered) if self.run else None
        device = None if shown is None else bool(shown)
        if not field and not device:
            if complaint is not None:
                return "unseen", ": ".join(complaint), field, device
            fate: Fate = "undecided" if field is None else "equivalent"
            return fate, unknown, field, device
        return *self._finder(mutant.lowered, complaint, why or str(shown)), field, device

    def _finder(
        self, lowered: Lowered, complaint: tuple[str, str] | None, unnoticed: str
    ) -> tuple[Fate, str]:
        """What finds a bug first."""
        from tileproof.verify.field import UnmodelledError

        if complaint is not None:
            return "proofs", ": ".join(complaint)
        try:
            if (other := self.valued(lowered)) is not None:
                return "values", other.message
        except UnmodelledError:
            pass
        if self.run and self.runs and (words := self.sanitized(lowered)):
            return "sanitize", words
        return "escaped", unnoticed

    def judged(self, mutant: Any) -> Any:
        """What a mutant does that the original does not, None if nothing."""
        from tileproof.verify.changes import is_ordered
        from tileproof.verify.field import EVERY

        found = self.judge.difference(mutant.lowered)
        if found is None and is_ordered(mutant.kind):
            found = self.judge.difference(mutant.lowered, EVERY[1:], largest=2)
        return found

    def valued(self, lowered: Lowered) -> Any:
        """What ``verify --route values`` complains of, None if it does not."""
        from tileproof.verify.field import parting

        if self.of_source:
            return self.source_values.anywhere(lowered)
        return parting(lowered, self.facts) if self.of_schedules else None

    @cached_property
    def of_source(self) -> bool:
        """Whether `values` knows the source and is content with the original."""
        from tileproof.verify.field import UnmodelledError

        def find() -> bool:
            try:
                return self.source_values.difference(self.lowered) is None
            except UnmodelledError:
                return False

        return bool(_kept(self.key(self.lowered, "source"), find))

    @cached_property
    def of_schedules(self) -> bool:
        """Whether at least schedules of the original do not part, whatever its source is."""
        from tileproof.verify.field import parting

        return parting(self.lowered, self.facts) is None

    @cached_property
    def known(self) -> Collection[str]:
        """The properties that are refuted or an alarm in the original."""
        from tileproof.verify import Verdict, prove_lowered

        report = prove_lowered(self.lowered, facts=self.given)
        bad = (Verdict.REFUTED, Verdict.ALARM)
        return [name for name, p in report.properties.items() if p.verdict in bad]

    @property
    def given(self) -> Facts | None:
        """Facts to prove with: an op brings its own."""
        return None if self.lowered.spec is not None else self.facts

    @cached_property
    def runs(self) -> bool:
        """Whether the sanitizer is content with the original."""
        return not self.sanitized(self.lowered)

    def sanitized(self, lowered: Lowered) -> str:
        from tileproof.sanitizer import sanitize

        text = cuda_text(lowered.device_mod, lowered.arch)
        (report,) = sanitize(replace(lowered, written=text), facts=self.facts, draws=2).kernels
        return report.findings[0].message if report.findings else ""


def table(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """A row per class and one for all: how many mutants had each fate.

    confirmed: those of `values` that the virtual GPU, which shares no code with it, tells from the
    original. by_verify, by_both: shares of the bugs found by proofs and values, and with the
    sanitizer; by_proofs: by the proofs alone; by_others_word: like by_verify, of the bugs that an
    engine other than the finder's own shows.
    """
    rows: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        for name in (outcome.kind, "all"):
            zeros = dict.fromkeys((*FATES, "confirmed"), 0)
            row = rows.setdefault(name, {"class": name, "seeded": 0, **zeros})
            row["seeded"] += 1
            row[outcome.fate] += 1
            row["confirmed"] += outcome.fate == "values" and outcome.device is True
    for row in rows.values():
        bugs = sum(row[fate] for fate in ("proofs", "values", "sanitize", "escaped"))
        found = row["proofs"] + row["values"]
        confirmed = row["proofs"] + row["confirmed"]
        row["by_proofs"] = _share(row["proofs"], bugs)
        row["by_verify"] = _share(found, bugs)
        row["by_both"] = _share(found + row["sanitize"], bugs)
        row["by_others_word"] = _share(confirmed, bugs - row["values"] + row["confirmed"])
    return [*(row for name, row in rows.items() if name != "all"), *filter(None, [rows.get("all")])]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
