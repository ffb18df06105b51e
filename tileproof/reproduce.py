"""Counterexamples of the prover on the virtual GPU: whether the sanitizer shows the same defect."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tileproof.codegen.lower import Lowered
from tileproof.dsl import Facts
from tileproof.dsl.expression import evaluate
from tileproof.verify import Counterexample, Report

# What the sanitizer calls a violation of each property. The others it does not look for.
_KINDS = {
    "bounds": ("out-of-bounds",),
    "alignment": ("misaligned",),
    "maps": ("launch", "invalid"),
    "blocks": ("race",),
    "races": ("race",),
    "async": ("race", "uninitialised", "proxy-fence"),
    "barriers": ("deadlock", "invalid"),
    "coverage": ("unwritten", "race"),
    "determinism": ("schedule-dependent",),
}
MOST_BYTES = 1 << 30


def reproduce(report: Report, work: Iterable[tuple[Any, str]], facts: Any = None) -> None:
    """Says of every property's first counterexample in `report` whether a run shows it.

    `work` are the kernels proved, with an architecture each, as ``prove_many`` takes them. The run
    has the counterexample's sizes, one draw of inputs and every schedule of the sanitizer.
    """
    from tileproof.codegen import ircache
    from tileproof.codegen.target import Target

    proved = [k for k in report.kernels if k.route == "ir"]
    for found, (kernel, arch) in zip(proved, work, strict=False):  # none, if no IR was read
        if not any(p.counterexamples for p in found.properties.values()):
            continue
        lowered = ircache.lowered(kernel.resolve() if isinstance(kernel, Target) else kernel, arch)
        known = Facts.of(lowered.spec) if lowered.spec is not None else lowered.facts
        runs: dict[tuple[Any, ...], Any] = {}
        for name, p in found.properties.items():
            if name in _KINDS and p.counterexamples:
                example = p.counterexamples[0]
                words = _run(lowered, known.updated(Facts.read(facts)), example, runs)
                p.counterexamples[0] = replace(example, reproduced=words)


def _run(
    lowered: Lowered, facts: Facts, example: Counterexample, runs: dict[tuple[Any, ...], Any]
) -> str:
    from tileproof.sanitizer import sanitize

    shapes = [p.shape for p in lowered.parameters if p.shape is not None]
    named = {str(n) for shape in shapes for n in shape} | {
        p.name for p in lowered.parameters if p.shape is None
    }
    sizes = {name: size for name, size in example.sizes.items() if name in named}
    size = sum(_bytes(p, sizes) for p in lowered.parameters if p.shape is not None)
    if size > MOST_BYTES:
        return f"not run on the virtual GPU: its tensors take {size / 2**30:.1f} GiB"
    key = tuple(sizes.items())
    if key not in runs:
        ends = {name: (n, n) for name, n in sizes.items()}
        narrowed = replace(facts, dims={**facts.dims, **ends})
        (runs[key],) = sanitize(lowered, facts=narrowed, draws=1).kernels
    done = runs[key]
    kinds = _KINDS[example.property]
    alike = [f for f in done.findings if f.kind in kinds]
    if alike:
        # The same thread, if it is among those that do it.
        first = min(alike, key=lambda f: (f.at.block, f.at.thread) != _place(example))
        who = f" (block {first.at.block}, thread {first.at.thread})" if first.at.thread else ""
        return f"the virtual GPU shows it, {first.run}: {first.kind}: {first.message}{who}"
    if done.findings:
        first = done.findings[0]
        return f"the virtual GPU shows another defect: {first.kind}: {first.message}"
    if done.reason:
        return f"not run on the virtual GPU: {done.reason}"
    return f"{done.runs} runs on the virtual GPU do not show it"


def _bytes(parameter: Any, sizes: dict[str, int]) -> int:
    count = 1
    for n in parameter.shape:
        count *= evaluate(str(n), sizes)
    bits = re.search(r"\d+", parameter.dtype)
    return count * int(bits[0]) // 8 if bits else count


def _place(example: Counterexample) -> tuple[Any, Any]:
    at = example.steps[0] if example.steps else example
    return at.block, at.thread
