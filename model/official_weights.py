"""Weights of DeepSeek-V4 as the ops of the official precision take them (spec §1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from tileproof.dsl import check
from tileproof.kernels.kv_cache import GROUP as KV_GROUP

from .attention import Compressor, Rope
from .names import TILE
from .rope import frequencies
from .weights import fp8_values

if TYPE_CHECKING:
    from transformers import DeepseekV4Config

ALIGNMENT = 16  # bytes
HADAMARD = 128  # channels rotated together
SLIDING = "sliding_attention"


class Codes(NamedTuple):
    """A quantised tensor: e4m3 or packed e2m1, and its ue8m0 scales."""

    codes: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True, eq=False)
class Mixing:
    """Weights of one manifold-constrained hyper-connection (spec §4)."""

    fn: torch.Tensor
    scale: torch.Tensor
    base: torch.Tensor


@dataclass(frozen=True, eq=False)
class Indexer:
    """Weights of the lightning indexer (spec §3.1); `top_k` entries are chosen for a token."""

    keys: Compressor
    wq_b: Codes
    weights: torch.Tensor
    top_k: int


@dataclass(frozen=True, eq=False)
class Attention:
    """Weights of one layer's attention (spec §1); names are the official ones.

    `wo_a` [G, N, H K / G] is bfloat16, as the official code dequantises it. `compressor` is None in
    a layer with a sliding window only, `indexer` where tokens see all compressed entries.
    """

    wq_a: Codes
    q_norm: torch.Tensor
    wq_b: Codes
    wkv: Codes
    kv_norm: torch.Tensor
    wo_a: torch.Tensor
    wo_b: Codes
    sink: torch.Tensor
    rope: Rope
    compressor: Compressor | None = None
    indexer: Indexer | None = None


@dataclass(frozen=True, eq=False)
class Experts:
    """Weights of one layer's experts (spec §5).

    Attributes:
        gate: [E, D] bf16.
        bias: [E] f32; None where `table` [V, K] i64 says which experts a token id has.
        w13, w2: of the routed experts, [E, 2 I, D / 2] and [E, D, I / 2], gate above up.
        shared_w13, shared_w2: of the expert every token has.
    """

    gate: torch.Tensor
    bias: torch.Tensor | None
    table: torch.Tensor | None
    w13: Codes
    w2: Codes
    shared_w13: Codes
    shared_w2: Codes


@dataclass(frozen=True, eq=False)
class Block:
    """Weights of one layer, its two sublayers each between mHC's two halves."""

    attn_mixing: Mixing
    attn_norm: torch.Tensor
    attention: Attention
    ffn_mixing: Mixing
    ffn_norm: torch.Tensor
    experts: Experts


class Head(NamedTuple):
    """Weights from residual streams to logits but for the vocabulary's own (spec §1.1)."""

    mixing: Mixing
    norm: torch.Tensor


class Predictor(NamedTuple):
    """Weights of the block of multi-token prediction (spec §13)."""

    e_norm: torch.Tensor
    h_norm: torch.Tensor
    e_proj: Codes
    h_proj: Codes
    block: Block
    head: Head


class Reader:
    """Weights of a model out of the tensors of an official checkpoint.

    Raises ContractError for sizes that the official formats have no blocks for.
    """

    def __init__(
        self,
        config: DeepseekV4Config,
        state: Mapping[str, torch.Tensor],
        device: torch.device | str,
    ) -> None:
        rope, hidden = config.qk_rope_head_dim, config.moe_intermediate_size
        for name, size, multiple in (
            ("head_dim - qk_rope_head_dim", config.head_dim - rope, KV_GROUP),
            ("qk_rope_head_dim", rope, 8),
            ("index_head_dim", config.index_head_dim, HADAMARD),
            ("moe_intermediate_size", hidden, TILE),  # gate and up share no scale
        ):
            where, expected = f"{name} of an official model", f"a multiple of {multiple}"
            check(size > 0 and size % multiple == 0, where, got=size, expected=expected)
        self.config, self.state, self.device = config, state, device
        self.ropes = {
            kind: Rope(frequencies(config.rope_parameters[kind], rope).to(device))
            for kind in ("main", "compress")
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor as kernels take it: contiguous and aligned, also out of a mapped file."""
        tensor = self.state[name].to(self.device).contiguous()
        return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()

    def codes(self, *names: str) -> Codes:
        """Quantised matrices one above the other."""
        parts = [(self[f"{n}.weight"], self[f"{n}.scale"]) for n in names]
        codes, scale = (torch.cat(t) for t in zip(*parts, strict=True))
        return Codes(codes.view(torch.uint8) if codes.dtype == torch.int8 else codes, scale)

    def mixing(self, prefix: str) -> Mixing:
        return Mixing(*(self[f"{prefix}_{name}"] for name in ("fn", "scale", "base")))

    def head(self, prefix: str) -> Head:
        return Head(self.mixing(f"{prefix}hc_head"), self[f"{prefix}norm.weight"])

    def block(self, prefix: str, kind: str) -> Block:
        return Block(
            self.mixing(f"{prefix}hc_attn"),
            self[f"{prefix}attn_norm.weight"],
            self.attention(f"{prefix}attn.", kind),
            self.mixing(f"{prefix}hc_ffn"),
            self[f"{prefix}ffn_norm.weight"],
            self.experts(f"{prefix}ffn."),
        )

    def attention(self, prefix: str, kind: str) -> Attention:
        compressor = indexer = None
        if kind != SLIDING:
            compressor = self.compressor(f"{prefix}compressor.")
        if f"{prefix}indexer.wq_b.weight" in self.state:
            indexer = Indexer(
                self.compressor(f"{prefix}indexer.compressor."),
                self.codes(f"{prefix}indexer.wq_b"),
                self[f"{prefix}indexer.weights_proj.weight"],
                self.config.index_topk,
            )
        groups = self.config.o_groups
        wo_a = fp8_values(*self.codes(f"{prefix}wo_a"))
        return Attention(
            self.codes(f"{prefix}wq_a"),
            self[f"{prefix}q_norm.weight"],
            self.codes(f"{prefix}wq_b"),
            self.codes(f"{prefix}wkv"),
            self[f"{prefix}kv_norm.weight"],
            wo_a.unflatten(0, (groups, -1)),
            self.codes(f"{prefix}wo_b"),
            self[f"{prefix}attn_sink"],
            self.ropes["main" if kind == SLIDING else "compress"],
            compressor,
            indexer,
        )

    def compressor(self, prefix: str) -> Compressor:
        both = torch.cat([self[f"{prefix}{name}.weight"] for name in ("wkv", "wgate")])
        return Compressor(both, self[f"{prefix}ape"], self[f"{prefix}norm.weight"])

    def experts(self, prefix: str) -> Experts:
        routed = [f"{prefix}experts.{e}." for e in range(self.config.n_routed_experts)]
        w13 = [self.codes(f"{e}w1", f"{e}w3") for e in routed]
        w2 = [self.codes(f"{e}w2") for e in routed]
        shared = f"{prefix}shared_experts."
        hashed = f"{prefix}gate.tid2eid" in self.state
        return Experts(
            self[f"{prefix}gate.weight"],
            None if hashed else self[f"{prefix}gate.bias"],
            self[f"{prefix}gate.tid2eid"] if hashed else None,
            Codes(*(torch.stack(t) for t in zip(*w13, strict=True))),
            Codes(*(torch.stack(t) for t in zip(*w2, strict=True))),
            self.codes(f"{shared}w1", f"{shared}w3"),
            self.codes(f"{shared}w2"),
        )

    def predictor(self, prefix: str) -> Predictor:
        return Predictor(
            self[f"{prefix}enorm.weight"],
            self[f"{prefix}hnorm.weight"],
            self.codes(f"{prefix}e_proj"),
            self.codes(f"{prefix}h_proj"),
            self.block(prefix, SLIDING),
            self.head(prefix),
        )
