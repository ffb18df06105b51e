"""A report as text that fits 80 columns, or as JSON."""

from __future__ import annotations

import json
import textwrap

from .model import Counterexample, KernelReport, Report, Step, Verdict

_WIDTH = 80
_SHOWN = 2
_ROUTES = {"ptx": "PTX", "values": "execution"}


def to_json(report: Report) -> str:
    """The whole report; :meth:`Report.from_dict` reads it back."""
    return json.dumps(report.to_dict(), indent=1)


def to_text(report: Report) -> str:
    """What a person reads: one line per kernel and architecture, then why any is not proved."""
    lines: list[str] = []
    for kernel in report.kernels:
        seconds = f"{kernel.seconds + kernel.lower_seconds:.2f} s"
        counts = ", ".join(f"{n} {p.proved}/{p.obligations}" for n, p in kernel.properties.items())
        route = f" by {_ROUTES[kernel.route]}, {counts}" if kernel.route in _ROUTES else ""
        route = "" if kernel.error else route
        head = f"{kernel.verdict.value:8} {kernel.kernel} {kernel.arch}{route} ({seconds})"
        lines += textwrap.wrap(head, _WIDTH, subsequent_indent=" " * 9)
        lines += _details(kernel)
    for sentence in report.disagreements:
        lines += textwrap.wrap(sentence, _WIDTH, subsequent_indent=" " * 9)
    verdicts = {v: sum(k.verdict is v for k in report.kernels) for v in Verdict}
    total = ", ".join(f"{n} {v.value}" for v, n in verdicts.items() if n)
    lines.append(total or "nothing to prove")
    return "\n".join(lines)


def _details(kernel: KernelReport) -> list[str]:
    if kernel.error:
        return _wrap(kernel.error)
    lines: list[str] = []
    for name, p in kernel.properties.items():
        if p.verdict.passed:
            continue
        waived = ", waived" if p.waived else ""
        lines.append(f"  {name}: {p.verdict.value}{waived} ({p.proved}/{p.obligations} proved)")
        if p.waived:
            lines += _wrap(f"waived: {p.waived}")
        shown = {e.message for e in p.counterexamples}
        for example in p.counterexamples[:_SHOWN]:
            lines += _example(example)
        if len(p.counterexamples) > _SHOWN:
            lines += _wrap(f"and {p.obligations - p.proved - _SHOWN} more (JSON lists the first)")
        for reason in p.reasons:
            if not any(reason.startswith(message) for message in shown):
                lines += _wrap(reason)
    # What was assumed without being told is said of a proof too.
    notes = kernel.notes if lines else [n for n in kernel.notes if "is assumed" in n]
    for note in notes:
        lines += _wrap(f"note: {note}")
    return lines


def _example(example: Counterexample) -> list[str]:
    return _where(example) + (_wrap(example.reproduced) if example.reproduced else [])


def _where(example: Counterexample) -> list[str]:
    lines = _wrap(example.message)
    sizes = ", ".join(f"{k}={v}" for k, v in example.sizes.items())
    if example.steps:
        lines += _wrap(f"at {sizes}" if sizes else "at any size")
        for step in example.steps:
            lines += _wrap(f"{place(step)}: {step.message} in {step.site}")
        return lines
    at = "; ".join(filter(None, [sizes, place(example)]))
    lines += _wrap(f"at {at}" if at else "at any size")
    if example.other:
        lines += _wrap(f"and {example.other}")
    return lines + _wrap(f"in {example.site}")


def place(at: Step | Counterexample) -> str:
    """Block, thread and loop variables in words."""
    parts = [f"block {_index(at.block)}"] if at.block else []
    parts += [f"thread {_index(at.thread)}"] if at.thread else []
    parts += [", ".join(f"{k}={v}" for k, v in at.loops.items())] if at.loops else []
    return "; ".join(parts)


def _index(values: tuple[int, ...]) -> str:
    while len(values) > 1 and values[-1] == 0:
        values = values[:-1]
    return str(values[0]) if len(values) == 1 else str(values)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="      ")
