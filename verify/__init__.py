"""The prover: obligations from a kernel's final device and host IR, discharged for every size.

``prove`` is the entry point; the pipeline reads top to bottom in ``prove.py``. What must be trusted
is listed in ``intrinsics.py`` (what each device call does) and ``domain.py`` (what is assumed).
"""

from .model import Counterexample, KernelReport, Report, Verdict
from .pool import prove_many
from .prove import prove, prove_lowered
from .report import to_json, to_text

__all__ = [
    "Counterexample",
    "KernelReport",
    "Report",
    "Verdict",
    "prove",
    "prove_lowered",
    "prove_many",
    "to_json",
    "to_text",
]
