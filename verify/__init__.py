"""The prover: obligations from a kernel's final device and host IR, discharged for every size.

``prove`` is the entry point; the pipeline reads top to bottom in ``prove.py``. What must be trusted
is listed in ``intrinsics.py`` (what each device call does) and ``domain.py`` (what is assumed).
"""

from .encode import LONG as RLIMIT
from .html import to_html
from .model import Counterexample, KernelReport, Report, Route, Step, Verdict
from .pool import prove_many
from .prove import first_complaint, not_lowered, prove, prove_lowered
from .report import to_json, to_text
from .sarif import to_sarif

__all__ = [
    "RLIMIT",
    "Counterexample",
    "KernelReport",
    "Report",
    "Route",
    "Step",
    "Verdict",
    "first_complaint",
    "not_lowered",
    "prove",
    "prove_lowered",
    "prove_many",
    "to_html",
    "to_json",
    "to_sarif",
    "to_text",
]
