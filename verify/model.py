"""What the prover says: verdicts, counterexamples, reports; plain data that survives JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

SCHEMA = 1


class Verdict(str, Enum):
    """Outcome of one property, one kernel or one run, as documented in the architecture."""

    PROVED = "PROVED"
    REFUTED = "REFUTED"
    ALARM = "ALARM"
    UNKNOWN = "UNKNOWN"
    NOT_APPLICABLE = "N/A"


# The most serious verdict of a set speaks for the set.
_SEVERITY = (
    Verdict.REFUTED,
    Verdict.ALARM,
    Verdict.UNKNOWN,
    Verdict.PROVED,
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
class Counterexample:
    """One concrete violation. `confirmed` means the IR, re-executed at these values, shows it.

    `offset` and `extent` count elements of `buffer`; `other` describes the second access of a
    property that relates two.
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
    confirmed: bool = False


@dataclass
class PropertyReport:
    """One property of one kernel: how many obligations were met, and why any was not."""

    verdict: Verdict
    obligations: int = 0
    proved: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)
    counterexamples: list[Counterexample] = field(default_factory=list)


@dataclass
class KernelReport:
    """One kernel on one architecture."""

    kernel: str
    arch: str
    ir_hash: str
    properties: dict[str, PropertyReport]
    domain: dict[str, str]
    assumptions: list[str]
    notes: list[str]
    unmodelled: list[str]
    seconds: float
    lower_seconds: float = 0.0
    reused: bool = False

    @property
    def verdict(self) -> Verdict:
        """The most serious verdict of any property."""
        return worst(p.verdict for p in self.properties.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the kernel's verdict spelled out."""
        return {"verdict": self.verdict.value, **_plain(asdict(self))}

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
        """The most serious verdict of any kernel."""
        return worst(k.verdict for k in self.kernels)

    @property
    def exit_code(self) -> int:
        """0 all proved, 1 refuted, 2 alarm or unknown."""
        if self.verdict is Verdict.REFUTED:
            return 1
        return 0 if self.verdict in (Verdict.PROVED, Verdict.NOT_APPLICABLE) else 2

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "tools": self.tools,
            "kernels": [k.to_dict() for k in self.kernels],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Inverse of :meth:`to_dict`."""
        return cls([KernelReport.from_dict(k) for k in data["kernels"]], dict(data["tools"]))


def _property(entry: Mapping[str, Any]) -> PropertyReport:
    examples = []
    for example in entry["counterexamples"]:
        tuples = {k: tuple(example[k]) for k in ("block", "thread")}
        examples.append(Counterexample(**{**example, **tuples}))
    verdict = Verdict(entry["verdict"])
    return PropertyReport(**{**entry, "verdict": verdict, "counterexamples": examples})


def _plain(value: Any) -> Any:
    if isinstance(value, Verdict):
        return value.value
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
