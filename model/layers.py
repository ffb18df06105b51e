"""Subclasses of transformers' DeepSeek-V4 modules whose forward runs tileproof ops.

They keep the names of their bases, because accelerate, FSDP and transformers itself find modules
by class name. Nothing is constructed: :func:`tileproof.patch` changes the class of modules that
exist and gives each the attribute `_tileproof`.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

from .dispatch import FUSED_TOKENS, Kernels, by_rows


class Patched:
    """A module that runs tileproof ops; copies and pickles of it are plain Hugging Face modules."""

    _tileproof: Kernels
    # What the config must say for the ops to compute what the original does.
    REQUIRES: ClassVar[Mapping[str, object]] = {}

    @classmethod
    def original(cls) -> type:
        """The Hugging Face class this one stands in for."""
        return cls.__mro__[cls.__mro__.index(Patched) + 1]

    def __reduce_ex__(self, protocol: int) -> Any:
        state = {k: v for k, v in vars(self).items() if k != "_tileproof"}
        # What pickle itself uses for plain objects, so loading one does not need tileproof.
        return copyreg._reconstructor, (self.original(), object, None), state


class DeepseekV4RMSNorm(Patched, hf.DeepseekV4RMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """x [..., D] → [..., D]; the weight is used in the type it is stored in."""
        weight, eps = self._tileproof.weight(self.weight, torch.bfloat16), self.variance_epsilon
        return by_rows(hidden_states, lambda x: self._tileproof("norm_rmsnorm", x, weight, eps=eps))


class DeepseekV4UnweightedRMSNorm(Patched, hf.DeepseekV4UnweightedRMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., D] → [..., D]."""
        return by_rows(x, lambda r: self._tileproof("norm_rmsnorm_unweighted", r, eps=self.eps))


class DeepseekV4HyperConnection(Patched, hf.DeepseekV4HyperConnection):
    def forward(
        self, hidden_streams: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [B, S, N, D] → post [B, S, N], comb [B, S, N, N] in f32 and collapsed [B, S, D]."""
        run = self._tileproof
        B, S, N, D = hidden_streams.shape
        x = hidden_streams.reshape(B * S, N, D)
        fn, base, scale = (run.weight(p) for p in (self.fn, self.base, self.scale))
        params = {
            "iters": self.hc_sinkhorn_iters,
            "eps": self.hc_eps,
            "norm_eps": self.input_norm.eps,
        }
        if B * S <= FUSED_TOKENS:
            post, comb, collapsed = run("mhc_pre", x, fn, scale, base, **params)
        else:
            partial, sqrsum = run("mhc_prenorm_gemm", x.flatten(1), fn)
            pre, post, comb = run("mhc_sinkhorn", partial, sqrsum, scale, base, D=D, **params)
            collapsed = run("mhc_collapse", x, pre)
        return post.view(B, S, N), comb.view(B, S, N, N), collapsed.view(B, S, D)


class DeepseekV4HyperHead(Patched, hf.DeepseekV4HyperHead):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, S, N, D] → [B, S, D]."""
        run = self._tileproof
        B, S, N, D = x.shape
        rows = x.reshape(B * S, N, D)
        fn, base, scale = (run.weight(p) for p in (self.hc_fn, self.hc_base, self.hc_scale))
        partial, sqrsum = run("mhc_prenorm_gemm", rows.flatten(1), fn)
        eps = {"eps": self.eps, "norm_eps": self.input_norm.eps}
        return run("mhc_head", rows, partial, sqrsum, scale, base, **eps).view(B, S, D)


class DeepseekV4DecoderLayer(Patched, hf.DeepseekV4DecoderLayer):
    def forward(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """X [B, S, N, D] → [B, S, N, D]: attention, then experts, each between mHC pre and post."""
        post, comb, collapsed = self.attn_hc(hidden_states)
        attended, _ = self.self_attn(self.input_layernorm(collapsed), **kwargs)
        hidden_states = self._mixed(hidden_states, attended, post, comb)
        post, comb, collapsed = self.ffn_hc(hidden_states)
        output = self.mlp(self.post_attention_layernorm(collapsed), input_ids=input_ids)
        return self._mixed(hidden_states, output, post, comb)

    def _mixed(
        self, x: torch.Tensor, y: torch.Tensor, post: torch.Tensor, comb: torch.Tensor
    ) -> torch.Tensor:
        """``post_k y + sum_j comb_{jk} X_j``; unlike the original, post and comb stay float32."""
        B, S, N, D = x.shape
        rows = x.reshape(B * S, N, D)
        y = y.reshape(B * S, D)
        post = post.reshape(B * S, N).float()
        comb = comb.reshape(B * S, N, N).float()
        return self._tileproof("mhc_post", rows, y, post, comb).view(B, S, N, D)


class DeepseekV4TopKRouter(Patched, hf.DeepseekV4TopKRouter):
    REQUIRES: ClassVar[Mapping[str, object]] = {"scoring_func": "sqrtsoftplus"}

    def forward(
        self, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [..., D] → logits [M, E] in f32, weights [M, K] as x, experts [M, K] best first."""
        run = self._tileproof
        logits = _logits(self, hidden_states)
        bias, scale = run.weight(self.e_score_correction_bias), self.routed_scaling_factor
        index, weight = run("moe_topk_gate", logits, bias, K=self.top_k, scale=scale)
        return logits, weight.to(hidden_states.dtype), index


class DeepseekV4HashRouter(Patched, hf.DeepseekV4HashRouter):
    REQUIRES: ClassVar[Mapping[str, object]] = {"scoring_func": "sqrtsoftplus"}

    def forward(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [..., D], ids → logits [M, E] in f32, weights [M, K] as x, the ids' experts [M, K]."""
        logits = _logits(self, hidden_states)
        tokens, scale = input_ids.reshape(-1).long(), self.routed_scaling_factor
        index, weight = self._tileproof("moe_hash_gate", logits, tokens, self.tid2eid, scale=scale)
        return logits, weight.to(hidden_states.dtype), index


def _logits(router: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """x W^T [M, E] in float32, also of bfloat16 activations (spec §5.1)."""
    flat = hidden_states.reshape(-1, router.hidden_dim)
    return torch.nn.functional.linear(flat.float(), router._tileproof.weight(router.weight))


# Op the user names → the class that runs it. `mhc/pre` stands for prenorm_gemm, sinkhorn and
# collapse as well: which path runs depends on the number of tokens and never changes a bit.
REPLACEMENTS: dict[str, type[Patched]] = {
    "norm/rmsnorm": DeepseekV4RMSNorm,
    "norm/rmsnorm_unweighted": DeepseekV4UnweightedRMSNorm,
    "mhc/pre": DeepseekV4HyperConnection,
    "mhc/post": DeepseekV4DecoderLayer,
    "mhc/head": DeepseekV4HyperHead,
    "moe/topk_gate": DeepseekV4TopKRouter,
    "moe/hash_gate": DeepseekV4HashRouter,
}

# Every kernel a replacement may launch.
KERNELS: dict[str, tuple[str, ...]] = {
    "mhc/pre": ("mhc/pre", "mhc/prenorm_gemm", "mhc/sinkhorn", "mhc/collapse"),
    "mhc/head": ("mhc/prenorm_gemm", "mhc/head"),
}
