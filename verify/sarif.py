"""A report as SARIF 2.1.0: one result per counterexample, or per property that stays open."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tileproof import sarif

from .model import Counterexample, KernelReport, PropertyReport, Report, Step, Verdict
from .report import place

RULES = {
    "overflow": "No machine integer in an index, a guard or the host's grid arithmetic wraps.",
    "bounds": "Every access to global, shared or local memory lies in its buffer.",
    "alignment": "Every vector access is aligned to its width.",
    "blocks": "No element is touched by two blocks, one of which writes it.",
    "maps": "The driver accepts every tensor map that the host encodes.",
    "coverage": "Every element of an output is written, by one thread where that is declared.",
    "asserts": "Every device_assert holds and every assume follows from the contracts.",
    "limits": "Threads, shared memory and grid are what the architecture takes.",
    "determinism": "The same bits every time, for a row of a batch whatever lies beside it.",
    "races": "No two threads touch the same shared bytes without a barrier between, one writing.",
    "async": "What is copied asynchronously is waited for before it is read or overwritten.",
    "barriers": "Every thread of a block reaches the same barriers.",
    "values": "The lowered program computes what its source says, over a prime field.",
}
# A tool that cannot decide says so with a kind and no level (SARIF 2.1.0, 3.27.9 and 3.27.10).
_WEIGHT = {
    Verdict.REFUTED: {"kind": "fail", "level": "error"},
    Verdict.ALARM: {"kind": "fail", "level": "warning"},
    Verdict.UNKNOWN: {"kind": "open", "level": "none"},
}


def to_sarif(report: Report) -> str:
    """The report as a SARIF log; waived results carry a suppression with the waiver's reason."""
    results = [r for kernel in report.kernels for r in _results(kernel)]
    met = [name for kernel in report.kernels for name in kernel.properties]
    rules = {name: RULES.get(name, name) for name in dict.fromkeys(met)}
    failures = [f"{k.kernel} {k.arch}: {k.error}" for k in report.kernels if k.error]
    return sarif.log("tileproof verify", rules, results, failures)


def _results(kernel: KernelReport) -> Iterator[dict[str, Any]]:
    for name, p in kernel.properties.items():
        if p.verdict not in _WEIGHT:
            continue
        for example in p.counterexamples:
            yield _result(kernel, name, p, example.message, example)
        if not p.counterexamples:
            yield _result(kernel, name, p, "; ".join(p.reasons) or p.verdict.value, None)


def _result(
    kernel: KernelReport, name: str, p: PropertyReport, words: str, example: Counterexample | None
) -> dict[str, Any]:
    seen = f"{kernel.kernel} {kernel.arch} {name} {example.site if example else words}"
    result: dict[str, Any] = {
        "ruleId": name,
        **_WEIGHT[p.verdict],
        "message": {"text": f"{kernel.kernel} {kernel.arch}: {p.verdict.value}: {words}"},
        "locations": [_location(kernel, example.site if example else "", words)],
        "partialFingerprints": {"site/v1": hashlib.sha256(seen.encode()).hexdigest()[:32]},
        "properties": {"kernel": kernel.kernel, "arch": kernel.arch, "verdict": p.verdict.value},
    }
    if example is not None:
        result["properties"] |= {"sizes": dict(example.sizes), "replayed": example.confirmed}
        if example.reproduced:
            result["properties"]["reproduced"] = example.reproduced
        steps = example.steps or (_single(example),)
        result["codeFlows"] = [_flow(kernel, steps)]
    if p.waived:
        result["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": p.waived}
        ]
    return result


def _single(example: Counterexample) -> Step:
    return Step(example.message, example.site, example.block, example.thread, example.loops)


def _flow(kernel: KernelReport, steps: tuple[Step, ...]) -> dict[str, Any]:
    """One thread flow per GPU thread; the order of execution runs across all of them."""
    threads: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for order, step in enumerate(steps, 1):
        words = f"{place(step)}: {step.message}" if place(step) else step.message
        entry = {"executionOrder": order, "location": _location(kernel, step.site, words)}
        threads.setdefault((step.block, step.thread), []).append(entry)
    flows = [
        {"id": f"block {block} thread {thread}", "locations": locations}
        for (block, thread), locations in threads.items()
    ]
    return {"threadFlows": flows}


def _location(kernel: KernelReport, site: str, words: str) -> dict[str, Any]:
    """The kernel's definition (its IR has no line numbers), and the access in words."""
    where: dict[str, Any] = {"message": {"text": words}}
    name = f"{kernel.kernel}: {site}" if site else kernel.kernel
    where["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "function"}]
    if kernel.file:
        file = Path(kernel.file)
        uri = file.as_uri() if file.is_absolute() else file.as_posix()
        region = {"startLine": kernel.line}
        where["physicalLocation"] = {"artifactLocation": {"uri": uri}, "region": region}
    return where
