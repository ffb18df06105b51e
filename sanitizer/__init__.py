"""The sanitizer: runs a kernel on the virtual GPU under several schedules and reports what it did
wrong, with the line of the CUDA text.

``sanitize`` is the entry point (``run.py``). What counts as a defect is decided by the virtual
GPU's race checker and memory checks (``runtime/virtual/csrc/race.cpp``, ``memory.cpp``).
"""

from .model import Finding, KernelReport, Party, Report, Verdict
from .report import to_json, to_sarif, to_text
from .run import sanitize, sanitize_text

__all__ = [
    "Finding",
    "KernelReport",
    "Party",
    "Report",
    "Verdict",
    "sanitize",
    "sanitize_text",
    "to_json",
    "to_sarif",
    "to_text",
]
