"""Findings and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from tileproof.codegen.origins import Origin

# What each kind of finding means, as SARIF rules and the documentation list them.
KINDS = {
    "race": "Two accesses of one memory, at least one a write, that nothing orders.",
    "proxy-fence": "Memory written by ordinary stores and read by the async proxy without a fence.",
    "tensor-fence": "Accesses of tensor memory by two threads without tcgen05.fence on both sides.",
    "out-of-bounds": "An access outside the arguments, the shared memory or a local array.",
    "uninitialised": "A read of shared memory or of an output that nothing has written.",
    "misaligned": "A vector access at an address it may not have.",
    "cluster-lifetime": "Use of another block's shared memory before it began or after it exited.",
    "const-write": "A write to an argument the kernel declares const.",
    "leak": "Tensor memory that is still allocated when its block ends.",
    "use-after-free": "An access of tensor memory that has been freed.",
    "deadlock": "Threads that wait for something nobody will do.",
    "endless": "A kernel that does not come to an end within its budget.",
    "unwritten": "Elements of an output that are left unwritten, against its contract.",
    "schedule-dependent": "Outputs whose bits depend on the order of execution.",
    "launch": "A launch no GPU of this architecture would take.",
    "invalid": "Something the programming model leaves undefined or forbids.",
}


class Verdict(str, Enum):
    """What a report says of one kernel."""

    CLEAN = "CLEAN"
    DEFECT = "DEFECT"
    UNKNOWN = "UNKNOWN"  # it could not be run: something is not modelled


def schedule_words(schedule: str, seed: int, late: bool) -> str:
    """The name of a schedule, the seed of a random one, and when asynchronous work is done."""
    number = f" {seed}" if schedule in ("ahead", "interleave") else ""
    return f"{schedule}{number}, {'late' if late else 'eager'}"


@dataclass(frozen=True)
class Party:
    """One side of a finding. `thread` is None for a whole block, `line` counts in the CUDA text.

    origin: the innermost statement of the TileLang program known to contain what the line does.
    """

    block: tuple[int, int, int] | None = None
    thread: tuple[int, int, int] | None = None
    line: int | None = None
    text: str = ""
    what: str = ""
    origin: Origin | None = None


@dataclass(frozen=True)
class Finding:
    """One defect, as first met. `count` equal ones were met in all runs.

    dims, draw: sizes and number of the inputs; schedule, seed, late: how it ran, see
    `VirtualOptions`. Together they replay it.
    """

    kind: str
    kernel: str
    message: str
    at: Party
    other: Party | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    draw: int = 0
    schedule: str = "ring"
    seed: int = 0
    late: bool = True
    count: int = 1

    @property
    def run(self) -> str:
        """The schedule in words: "ring, late"."""
        return schedule_words(self.schedule, self.seed, self.late)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for findings that are the same defect."""
        other = self.other.line if self.other else None
        words = (self.at.what or self.message) if self.at.line is None else ""
        return self.kind, self.kernel, self.at.line, other, words


@dataclass
class KernelReport:
    """One kernel on one architecture. `reason` says why a verdict is UNKNOWN.

    origin: where the TileLang program defines it; origins: of each line of `cuda`.
    """

    kernel: str
    arch: str
    seed: int = 0
    runs: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    dropped: int = 0
    reason: str = ""
    cuda: str = ""
    origin: Origin | None = None
    origins: Sequence[Origin | None] = ()

    @property
    def verdict(self) -> Verdict:
        if self.findings:
            return Verdict.DEFECT
        return Verdict.UNKNOWN if self.reason else Verdict.CLEAN


@dataclass
class Report:
    """What a sanitize run found."""

    kernels: list[KernelReport] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 clean, 1 a defect, 2 something could not be run or did not end."""
        kinds = {f.kind for k in self.kernels for f in k.findings}
        if kinds - {"endless"}:
            return 1
        return 2 if kinds or any(k.reason for k in self.kernels) else 0

    def to_dict(self) -> dict[str, Any]:
        kernels = []
        for kernel in self.kernels:
            entry = {"verdict": kernel.verdict.value, **asdict(kernel)}
            del entry["cuda"], entry["origins"]
            kernels.append(entry)
        return {"kernels": kernels, "exit_code": self.exit_code}
