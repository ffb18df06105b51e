"""A report as text, as JSON, and as SARIF 2.1.0 for code hosts."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from tileproof import sarif
from tileproof.codegen.origins import Origin

from .model import KINDS, Finding, KernelReport, Party, Report, Verdict

_SHOWN = 10


def to_json(report: Report) -> str:
    """The whole report."""
    return json.dumps(report.to_dict(), indent=1)


def to_text(report: Report) -> str:
    """What a person reads: one line per kernel and architecture, then its findings."""
    lines = []
    for kernel in report.kernels:
        runs = f"{kernel.runs} run{'s' if kernel.runs != 1 else ''}, {kernel.seconds:.2f} s"
        place = f" {kernel.origin}" if kernel.origin is not None else ""
        lines.append(f"{kernel.verdict.value:7} {kernel.kernel} {kernel.arch}{place} ({runs})")
        if kernel.reason:
            lines.append(f"    {kernel.reason}")
        for finding in kernel.findings[:_SHOWN]:
            lines += _describe(finding, kernel)
        more = len(kernel.findings) - _SHOWN + kernel.dropped
        if more > 0:
            lines.append(f"    and {more} more (JSON lists them)")
    counts = {v: sum(k.verdict is v for k in report.kernels) for v in Verdict}
    lines.append(", ".join(f"{n} {v.value}" for v, n in counts.items() if n) or "nothing to run")
    return "\n".join(lines)


def _describe(finding: Finding, kernel: KernelReport) -> list[str]:
    lines = [f"  {finding.kind}: {finding.message}"]
    lines += _party("at", finding.at)
    if finding.other is not None:
        lines += _party("and", finding.other)
    dims = ", ".join(f"{k}={v}" for k, v in finding.dims.items())
    times = f", met {finding.count} times" if finding.count > 1 else ""
    sizes = f"sizes {dims}; " if dims else ""
    lines.append(f"    {sizes}schedule {finding.run}; --seed {kernel.seed} replays it{times}")
    return lines


def _party(word: str, party: Party) -> list[str]:
    parts = [party.what] if party.what else []
    if party.block is not None:
        parts.append(f"block {party.block}")
    if party.thread is not None:
        parts.append(f"thread {party.thread}")
    place = ", ".join(parts)
    if party.line is None:
        return [f"    {word} {place}"] if place else []
    lines = [f"    {word} {place}, line {party.line}: {party.text}"]
    if party.origin is not None:
        lines.append(f"      from {party.origin}")
    return lines


def to_sarif(report: Report) -> str:
    """SARIF: one run, the CUDA texts as embedded artifacts, one result per finding.

    A result lies in the TileLang program where its line is known; the places in the CUDA text are
    related locations then.
    """
    artifacts: list[dict[str, Any]] = []
    results = []
    for kernel in report.kernels:
        index = len(artifacts)
        uri = f"{kernel.kernel}.{kernel.arch}.cu"
        location = {"uri": uri, "index": index}
        artifacts.append({"location": {"uri": uri}, "contents": {"text": kernel.cuda}})
        results += [_result(finding, kernel, location) for finding in kernel.findings]
    unknown = [f"{k.kernel} {k.arch}: {k.reason}" for k in report.kernels if k.reason]
    return sarif.log("tileproof sanitize", KINDS, results, unknown, artifacts)


def _result(finding: Finding, kernel: KernelReport, artifact: dict[str, Any]) -> dict[str, Any]:
    parties = [finding.at, *([finding.other] if finding.other is not None else [])]
    locations = [_in_cuda(party, kernel, artifact) for party in parties]
    origin = finding.at.origin or kernel.origin
    if origin is not None:
        locations.insert(0, _in_program(origin))
    result: dict[str, Any] = {
        "ruleId": finding.kind,
        "ruleIndex": list(KINDS).index(finding.kind),
        "level": "error",
        "message": {"text": f"{kernel.kernel} {kernel.arch}: {finding.message}"},
        "locations": locations[:1],
        "properties": {
            "dims": dict(finding.dims),
            "seed": kernel.seed,
            "schedule": finding.run,
            "late": finding.late,
            "count": finding.count,
        },
    }
    if locations[1:]:
        result["relatedLocations"] = locations[1:]
    return result


def _in_program(origin: Origin) -> dict[str, Any]:
    path = PurePath(origin.file)
    uri = path.as_uri() if path.is_absolute() else quote(path.as_posix())
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": uri},
            "region": {"startLine": origin.line},
        }
    }


def _in_cuda(party: Party, kernel: KernelReport, artifact: dict[str, Any]) -> dict[str, Any]:
    # A place without a line is the kernel's as a whole, which starts the text.
    physical = {"artifactLocation": artifact, "region": {"startLine": party.line or 1}}
    words = "; ".join(line.strip() for line in _party("", party))
    return {"physicalLocation": physical, "message": {"text": words or kernel.kernel}}
