"""transformers' DeepSeek-V4 attention on lists of rows, with its model and caches (spec §15)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from tileproof.dsl import check

from .attention import Attention, Batch, Compressor, Indexer, Rope, attention
from .cache import Chunk
from .dispatch import Kernels
from .hf_cache import StateLayer, layers


class Plan:
    """What one forward of the model has for its layers, in the place of a mask.

    Attributes:
        batch: the tokens that are not padding.
        real: their numbers in the flattened [B, S], None where all are.
        layers: of the cache; temporary ones where the caller keeps none.
        ropes: by kind of layer.
    """

    def __init__(self, model: Any, columns: torch.Tensor | None, shape: torch.Size, cache: Any,
                 device: torch.device) -> None:  # fmt: skip
        config = model.config
        rows, width = shape
        self.layers: list[StateLayer] = layers(cache, config, rows)
        seen = self.layers[0].seen
        counts = [width] * rows
        self.real: torch.Tensor | None = None
        if columns is not None and not bool(columns.all()):
            counts = columns.sum(1).tolist()
            self.real = columns.flatten().nonzero()[:, 0].to(device)
        chunks = [Chunk(r, seen[r], n) for r, n in enumerate(counts) if n]
        self.end = [s + n for s, n in zip(seen, counts, strict=True)]
        self.places = self.layers[0].reserve(self.end)
        self.batch = Batch(chunks, rows, config.sliding_window, self.places, device)
        rotary = model.rotary_emb
        self.ropes = {
            kind: Rope(
                getattr(rotary, f"{kind}_inv_freq"), getattr(rotary, f"{kind}_attention_scaling")
            )
            for kind in ("main", "compress")
        }

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, D] → [M, D], the rows of tokens that are not padding."""
        flat = x.reshape(-1, x.shape[-1])
        return flat if self.real is None else flat[self.real]

    def scattered(self, y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """[M, D] → [B, S, D], zeros for padding."""
        if self.real is None:
            return y.view(like.shape)
        return (
            torch.zeros_like(like).view(-1, y.shape[1]).index_copy(0, self.real, y).view(like.shape)
        )


def rope_of(rotary: Any, kind: str) -> Rope:
    """The rotations that a ``DeepseekV4RotaryEmbedding`` has for ``"main"`` or ``"compress"``."""
    return Rope(getattr(rotary, f"{kind}_inv_freq"), getattr(rotary, f"{kind}_attention_scaling"))


def weights_of(run: Kernels, module: Any, rope: Rope, dtype: torch.dtype) -> Attention:
    """The weights of a ``DeepseekV4Attention``, as the engine takes them."""

    def matrix(*linears: Any) -> torch.Tensor:
        return run.matrix(*(m.weight for m in linears), dtype=dtype)

    def norm(of: Any) -> torch.Tensor:
        return run.weight(of.weight, torch.bfloat16)

    def compressor(of: Any) -> Compressor:
        return Compressor(
            matrix(of.kv_proj, of.gate_proj), run.weight(of.position_bias), norm(of.kv_norm)
        )

    own, indexer = module.compressor, getattr(module.compressor, "indexer", None)
    grouped = module.o_a_proj
    return Attention(
        q_a=matrix(module.q_a_proj),
        q_norm=norm(module.q_a_norm),
        q_b=matrix(module.q_b_proj),
        kv=matrix(module.kv_proj),
        kv_norm=norm(module.kv_norm),
        o_a=matrix(grouped).view(grouped.n_groups, -1, grouped.in_features),
        o_b=matrix(module.o_b_proj),
        sink=run.weight(module.sinks),
        rope=rope,
        eps=module.q_a_norm.variance_epsilon,
        compressor=None if own is None else compressor(own),
        indexer=None if indexer is None else Indexer(
            compressor(indexer),
            matrix(indexer.q_b_proj),
            matrix(indexer.scorer.weights_proj),
            indexer.index_topk,
        ),
    )  # fmt: skip


@torch.compiler.disable  # lists of rows hang on lengths
def attend(module: Any, run: Kernels, x: torch.Tensor, plan: Any) -> torch.Tensor:
    """Attention [B, S, D] → [B, S, D] of `module` for the tokens of `plan`."""
    got = type(plan).__name__
    check(isinstance(plan, Plan), "attention_mask", got=got, expected="what a patched model hands"
          " to its layers: call the model, not its layers alone")  # fmt: skip
    layer = plan.layers[module.layer_idx]
    layer.cumulative_length += x.shape[1]
    layer.seen = plan.end
    if not len(plan.batch):
        return torch.zeros_like(x)
    weights = weights_of(run, module, plan.ropes[module.rope_layer_type], x.dtype)
    state = layer.opened(weights, plan.places)
    return plan.scattered(attention(run, weights, state, plan.batch, plan.gathered(x)), x)


@torch.compiler.disable
def planned(
    model: Any,
    shape: torch.Size,
    device: torch.device,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    cache: Any,
) -> Plan:
    """The plan of a call of `model` with [B, S] tokens.

    Args:
        model: the ``DeepseekV4Model``.
        attention_mask: [B, columns so far + S], 0 for padding, or None.
        position_ids: [B or 1, S]; must count each row's tokens one by one.
        cache: a DynamicCache, or None for one that is forgotten.

    Raises ContractError for any other mask, for positions with gaps, and for other caches.
    """
    columns = real_columns(shape, attention_mask, position_ids)
    cache = DynamicCache(config=model.config) if cache is None else cache
    return Plan(model, columns, shape, cache, device)


def real_columns(
    shape: torch.Size, attention_mask: Any, position_ids: torch.Tensor | None
) -> torch.Tensor | None:
    """Which of [B, S] tokens are no padding, None if all; checks as :func:`planned` says."""
    columns = None
    if attention_mask is not None:
        is_flat = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        got = list(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else (
            type(attention_mask).__name__
        )  # fmt: skip
        check(is_flat, "attention_mask", got=got, expected="[batch, columns] or None: patched"
              " attention takes lists and no dense mask")  # fmt: skip
        columns = attention_mask[:, -shape[1] :].bool().cpu() if shape[1] else None
    if position_ids is not None and shape[1] > 1:
        steps = position_ids.cpu().diff(dim=-1)
        fine = steps == 1
        if columns is not None:
            fine = fine | ~(columns[:, 1:] & columns[:, :-1])
        check(bool(fine.all()), "position_ids", got="positions with gaps",
              expected="each row's tokens counted one by one")  # fmt: skip
    return columns
