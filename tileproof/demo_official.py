"""The last step of ``make demo``: the whole network on kernels, in the official precision.

A checkpoint in the official formats (FP8, FP4 experts) is written and loaded; a text goes through
it at once, and in pieces beside another text, over FP8 pages. Every logit must have the same bits
both times, and so the tokens are the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PIECE = 16  # tokens of each text in one batch
TOKENS = 1024  # there is room for in the cache


class Official(NamedTuple):
    """What the step found; `failures` are the promises that do not hold."""

    lines: list[str]
    failures: list[str]


def run(folder: Path, seed: int, arch: str, text: list[int], count: int) -> Official:
    """Run the step in `folder`; `count` tokens follow `text`."""
    import torch

    from tileproof.cli.progress import bar
    from tileproof.model.cache import Chunk
    from tileproof.model.checkpoint import official_config, write_tiny_official_checkpoint
    from tileproof.model.deepseek_v4 import DeepseekV4, specializations
    from tileproof.model.library import built

    path = write_tiny_official_checkpoint(folder, seed)
    needed = specializations(official_config())
    with bar("compiling", len(needed)) as advance:
        bundle = built(needed, [arch], lambda e: advance(f"{e.symbol} {e.arch}"))
    model = DeepseekV4.load(path, "virtual", bundle=bundle, arch=arch, on_missing="error")
    ids, other = torch.tensor(text), torch.tensor(text[::-1])
    with bar("generating", 3) as advance:
        held = model.cache(2, TOKENS)
        whole, _ = model.forward([Chunk(0, 0, len(ids))], ids, held, every=True)
        advance("in pieces, beside another text")
        held = model.cache(2, TOKENS)
        pieces = []
        for start in range(0, len(ids), PIECE):
            parts = [t[start : start + PIECE] for t in (other, ids)]
            chunks = [Chunk(slot, start, len(part)) for slot, part in enumerate(parts)]
            logits = model.forward(chunks, torch.cat(parts), held, every=True).logits
            pieces.append(logits[len(parts[0]) :])
        advance("greedy text")
        alone, seconds = _timed(lambda: model.generate([text], count))
        beside = model.generate([text[::-1], text], count, chunk=PIECE)
        advance("")
    calls = _calls(model, lambda: model.forward([Chunk(1, len(ids), 1)], ids[:1], held))
    same = torch.equal(torch.cat(pieces), whole)
    lines = [
        f"official precision (FP8, FP4, FP8 pages), {len(needed)} kernels, virtual {arch}:",
        f"  logits of {len(ids)} tokens at once, and {PIECE} at a time beside another text: "
        + ("the same bits" if same else "other bits"),
        f"  {count} tokens more in {seconds:.1f} s; one token takes {calls} kernel calls"
        f" in {len(model.blocks)} layers",
    ]
    failures = [] if same else ["official precision: logits of pieces have other bits"]
    if beside[1] != alone[0]:
        failures.append(f"official precision: got {beside[1]}, expected {alone[0]}")
    return Official(lines, failures)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _calls(model: Any, step: Callable[[], Any]) -> int:
    """How many ops a call of the model runs."""
    ops, calls = model.run, Counter[str]()

    def counted(op: str, *tensors: Any, **params: Any) -> Any:
        calls[op] += 1
        return ops(op, *tensors, **params)

    model.run = counted
    try:
        step()
    finally:
        model.run = ops
    return calls.total()
