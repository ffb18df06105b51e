"""Prefill on the CPU: transformers' eager attention beside the `reference` backend.

Every measurement is a process of its own, which runs a short prompt first. Seconds are the
processor's, of one thread, so that others on the machine do not count; memory is the peak over what
the process held before the call: without weights, inputs, and the mask that eager attention takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

MIB = 1 << 20
HF, OURS = "transformers eager", "patched, reference"
WARM = 256  # tokens of the call before, which loads libraries and starts threads

# One CSA layer with V4-Flash's window and index_topk, at 8 heads × 128.
LAYER: dict[str, Any] = {
    "num_hidden_layers": 1,
    "compress_ratios": [4],
    "num_hash_layers": 0,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 256,
    "o_groups": 2,
    "o_lora_rank": 128,
    "sliding_window": 128,
    "index_n_heads": 8,
    "index_head_dim": 128,
    "index_topk": 512,
    "max_position_embeddings": 1 << 16,
}


def layer(side: str, tokens: int) -> dict[str, float]:
    """Seconds and MiB of one CSA layer's attention for a prompt; the mask or plan is there."""
    import torch

    import tileproof
    from tileproof.model.checkpoint import tiny_model
    from tileproof.model.hf_attention import planned

    model = tiny_model(0, 256, **LAYER)
    if side == OURS:
        tileproof.patch(model, "reference")
    inner, part = model.model, model.model.layers[0].self_attn

    def call(S: int) -> Callable[[], Any]:
        x = torch.randn(1, S, LAYER["hidden_size"], generator=torch.Generator().manual_seed(S))
        at = torch.arange(S)[None]
        kinds = ("main", "compress")
        turns = {kind: inner.rotary_emb(x, position_ids=at, layer_type=kind) for kind in kinds}
        if side == OURS:
            seen: Any = planned(inner, x.shape[:2], x.device, None, None, None)
        else:
            near = at[:, None] <= at[..., None]
            near &= at[:, None] > at[..., None] - LAYER["sliding_window"]
            seen = torch.zeros(1, 1, S, S).masked_fill_(~near, -torch.inf)
        return lambda: part(x, turns, at, seen)

    return _measured(call, tokens)


def network(side: str, tokens: int) -> dict[str, float]:
    """Seconds and MiB of a whole small model's prefill, logits of the last token."""
    import torch

    import tileproof
    from tileproof.model.checkpoint import tiny_model

    model = tiny_model(0, 256, max_position_embeddings=1 << 17)
    if side == OURS:
        tileproof.patch(model, "reference")

    def call(S: int) -> Callable[[], Any]:
        ids = torch.randint(256, (1, S), generator=torch.Generator().manual_seed(S))
        return lambda: model(ids, logits_to_keep=1)

    return _measured(call, tokens)


def _measured(call: Callable[[int], Callable[[], Any]], tokens: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        call(WARM)()
        run = call(tokens)
        before = _resident(reset=True)
        start = time.process_time()
        run()
        seconds = time.process_time() - start
    return {"seconds": seconds, "MiB": (_resident() - before) / MIB}


def _resident(reset: bool = False) -> int:
    """Bytes this process held at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # of proc(5): the peak becomes what is now
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def apart(what: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What a fresh process returns."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(what, *arguments).result()


def measure(
    tokens: int = 8192, lengths: Sequence[int] = (8192, 16384, 32768, 65536), rounds: int = 3
) -> list[dict[str, Any]]:
    """Rows of medians: a CSA layer of both sides in turns; ours for a whole model by length.

    `faster` and `smaller` are transformers' seconds and memory over ours.
    """
    taken: dict[str, list[dict[str, float]]] = {HF: [], OURS: []}
    for _ in range(rounds):
        for side, found in taken.items():
            found.append(apart(layer, side, tokens))
    rows = [_row(f"CSA layer, {tokens} tokens, {side}", found) for side, found in taken.items()]
    theirs, ours = rows
    ours["faster"] = theirs["seconds"] / ours["seconds"]
    ours["smaller"] = theirs["MiB"] / ours["MiB"] if ours["MiB"] > 0 else None
    for S in lengths:
        rows.append(_row(f"five layers, {S} tokens, {OURS}", [apart(network, OURS, S)]))
    return rows


def _row(case: str, found: list[dict[str, float]]) -> dict[str, Any]:
    middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
    return {"case": case, **middle, "faster": None, "smaller": None}
