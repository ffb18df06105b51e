"""What the prover says: verdicts, counterexamples, reports; plain data that survives JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Literal

SCHEMA = 2

Route = Literal["ir", "ptx", "values"]


class Verdict(str, Enum):
    """Outcome of one property, one kernel or one run, as documented in docs/proofs.md.

    A property is never WAIVED itself: it keeps its verdict, and the waiver stands beside it. TESTED
    is what an execution at some sizes can say, less than PROVED.
    """

    ERROR = "ERROR"
    WAIVED = "WAIVED"
    PROVED = "PROVED"
    TESTED = "TESTED"
    REFUTED = "REFUTED"
    ALARM = "ALARM"
    UNKNOWN = "UNKNOWN"
    NOT_APPLICABLE = "N/A"

    @property
    def passed(self) -> bool:
        """Whether there is nothing to complain about."""
        return self in (Verdict.PROVED, Verdict.TESTED, Verdict.NOT_APPLICABLE)


# The most serious verdict of a set speaks for the set.
_SEVERITY = (
    Verdict.ERROR,
    Verdict.REFUTED,
    Verdict.ALARM,
    Verdict.UNKNOWN,
    Verdict.WAIVED,
    Verdict.PROVED,
    Verdict.TESTED,
    Verdict.NOT_APPLICABLE,
)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that speaks for all of them; of nothing at all, nothing is known."""
    found = set(verdicts)
    for verdict in _SEVERITY:
        if verdict in found:
            return verdict
    return Verdict.UNKNOWN


@dataclass(frozen=True)
class Step:
    """What one thread does at one place. `loops` are the loop variables there."""

    message: str
    site: str
    block: tuple[int, ...] = ()
    thread: tuple[int, ...] = ()
    loops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Counterexample:
    """One concrete violation. `confirmed` means the IR, re-executed at these values, shows it.

    `offset` and `extent` count elements of `buffer`; `other` describes the second access of a
    property that relates two. A violation that takes several threads lists what they do in `steps`,
    in an order of execution that shows it: the two accesses of a race, the path to a deadlock.
    `reproduced` says what a run at these sizes showed, "" if there was none.
    """

    property: str
    site: str
    message: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    block: tuple[int, ...] = ()
    thread: tuple[int, ...] = ()
    loops: Mapping[str, int] = field(default_factory=dict)
    buffer: str = ""
    offset: int | None = None
    extent: int | None = None
    other: str = ""
    steps: tuple[Step, ...] = ()
    confirmed: bool = False
    reproduced: str = ""


@dataclass
class PropertyReport:
    """One property of one kernel: how many obligations were met, and why any was not.

    `rlimit` counts the solver's steps. `waived` says why a verdict is tolerated, "" if it is not.
    """

    verdict: Verdict
    obligations: int = 0
    proved: int = 0
    seconds: float = 0.0
    rlimit: int = 0
    waived: str = ""
    reasons: list[str] = field(default_factory=list)
    counterexamples: list[Counterexample] = field(default_factory=list)


@dataclass
class KernelReport:
    """One kernel on one architecture.

    `error` says why nothing could be asked about it: it was not lowered, or no argument at all
    meets its contracts. `file` and `line` are where it is defined, if that is known. `route` is the
    program that was read: TileLang's device IR or nvcc's PTX.
    """

    kernel: str
    arch: str
    ir_hash: str = ""
    properties: dict[str, PropertyReport] = field(default_factory=dict)
    domain: dict[str, str] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unmodelled: list[str] = field(default_factory=list)
    seconds: float = 0.0
    lower_seconds: float = 0.0
    reused: bool = False
    error: str = ""
    file: str = ""
    line: int = 1
    route: Route = "ir"

    @property
    def verdict(self) -> Verdict:
        """The most serious verdict of any property, where a waiver counts as WAIVED."""
        if self.error:
            return Verdict.ERROR
        return worst(Verdict.WAIVED if p.waived else p.verdict for p in self.properties.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the kernel's verdict spelled out."""
        return {"verdict": self.verdict.value, **_plain(asdict(self))}

    def evidence(self) -> dict[str, Any]:
        """What a bundle says of this proof: verdicts, assumptions and the program's hash, without
        times, so that two builds of one commit have the same bytes."""
        counted = {
            name: {"verdict": p.verdict.value, "obligations": p.obligations, "proved": p.proved}
            for name, p in self.properties.items()
        }
        return {
            "verdict": self.verdict.value,
            "route": self.route,
            "properties": counted,
            "domain": dict(self.domain),
            "assumptions": list(self.assumptions),
            "unmodelled": list(self.unmodelled),
            "ir_hash": self.ir_hash,
            "error": self.error,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KernelReport:
        """Inverse of :meth:`to_dict`."""
        fields = {k: v for k, v in data.items() if k != "verdict"}
        fields["properties"] = {
            name: _property(entry) for name, entry in fields["properties"].items()
        }
        return cls(**fields)


@dataclass
class Report:
    """What one call of the prover found, with the versions of the tools that found it."""

    kernels: list[KernelReport]
    tools: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The most serious verdict of any kernel.

        Where another route knows less than the IR's did, the verdict of the IR's stands.
        """
        first = {(k.kernel, k.arch) for k in self.kernels if k.route == "ir"}
        counted = [
            k
            for k in self.kernels
            if k.route == "ir"
            or (k.kernel, k.arch) not in first
            or k.verdict is not Verdict.UNKNOWN
        ]
        return worst(k.verdict for k in counted)

    @property
    def disagreements(self) -> list[str]:
        """One sentence for each property that one route proved and the other refuted."""
        verdicts: dict[tuple[str, str, str], dict[str, Verdict]] = {}
        for k in self.kernels:
            for name, p in k.properties.items():
                verdicts.setdefault((k.kernel, k.arch, name), {})[k.route] = p.verdict
        return [
            f"the routes disagree: {name} of {kernel} on {arch} is {by['ir'].value} in the IR and "
            f"{by['ptx'].value} in the PTX; one of compiler, prover and contract is wrong"
            for (kernel, arch, name), by in verdicts.items()
            if {by.get("ir"), by.get("ptx")} == {Verdict.PROVED, Verdict.REFUTED}
        ]

    @property
    def exit_code(self) -> int:
        """0 all proved or waived, 1 refuted (or the routes disagree), 2 unsure, 3 not asked."""
        if self.disagreements:
            return 1
        codes = {Verdict.ERROR: 3, Verdict.REFUTED: 1, Verdict.ALARM: 2, Verdict.UNKNOWN: 2}
        return codes.get(self.verdict, 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "tools": self.tools,
            "disagreements": self.disagreements,
            "kernels": [k.to_dict() for k in self.kernels],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Inverse of :meth:`to_dict`."""
        return cls([KernelReport.from_dict(k) for k in data["kernels"]], dict(data["tools"]))


def _property(entry: Mapping[str, Any]) -> PropertyReport:
    examples = []
    for example in entry["counterexamples"]:
        steps = tuple(Step(**_places(step)) for step in example["steps"])
        examples.append(Counterexample(**{**_places(example), "steps": steps}))
    verdict = Verdict(entry["verdict"])
    return PropertyReport(**{**entry, "verdict": verdict, "counterexamples": examples})


def _places(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, **{k: tuple(entry[k]) for k in ("block", "thread")}}


def _plain(value: Any) -> Any:
    if isinstance(value, Verdict):
        return value.value
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
