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
from transformers import DynamicCache
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

from tileproof.dsl import check

from .attention import linear
from .dispatch import FUSED_TOKENS, Kernels, by_rows
from .hf_attention import attend, planned
from .moe import experts


class Patched:
    """A module that runs tileproof ops; copies and pickles of it are plain Hugging Face modules."""

    _tileproof: Kernels
    # What the config must say for the ops to compute what the original does.
    REQUIRES: ClassVar[Mapping[str, object]] = {}
    # What it computes besides the original's forward: classes by their forward, and functions.
    STANDS_FOR: ClassVar[tuple[Any, ...]] = ()
    # Classes that are swapped with it.
    WITH: ClassVar[tuple[type[Patched], ...]] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A plain Hugging Face module too, where code constructs ``type(module)(config)``."""
        return cls.original()(*args, **kwargs)

    @classmethod
    def original(cls) -> type:
        """The Hugging Face class this one stands in for."""
        return cls.__mro__[cls.__mro__.index(Patched) + 1]

    @classmethod
    def check_fits(cls, module: Any) -> None:
        """Raise ContractError for a `module` of the original class that this one cannot run."""

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
            partial, sqrsum = run("mhc_prenorm_gemm", x, fn)
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
        partial, sqrsum = run("mhc_prenorm_gemm", rows, fn)
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
    return _linear(router._tileproof, flat, router.weight, "f32")


def _linear(
    run: Kernels, x: torch.Tensor, weight: torch.Tensor, out: str | None = None
) -> torch.Tensor:
    """x W^T [M, N] of a parameter W [N, K], in the type of `x` or as `out` says."""
    return linear(run, x, run.matrix(weight, dtype=x.dtype), out)[:, : len(weight)]


class Linear(Patched, torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x [..., K] → [..., N]."""
        y = _linear(self._tileproof, input.reshape(-1, self.in_features), self.weight)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*input.shape[:-1], self.out_features)


def routed(
    module: Any, run: Kernels, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """What a ``DeepseekV4Experts`` gives for x [M, D]; expert E is none."""
    index = index.where(index != module.num_experts, -1)
    matrices = (run.stack(w, x.dtype) for w in (module.gate_up_proj, module.down_proj))
    return experts(run, x, index, weight.float(), *matrices, torch.zeros_like(x), module.limit)


class DeepseekV4Experts(Patched, hf.DeepseekV4Experts):
    REQUIRES: ClassVar[Mapping[str, object]] = {"hidden_act": "silu"}
    STANDS_FOR: ClassVar[tuple[Any, ...]] = (hf.DeepseekV4Experts._apply_gate,)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """x [M, D], experts [M, K] and their weights → [M, D], summed in the order of the slots."""
        return routed(self, self._tileproof, hidden_states, top_k_index, top_k_weights)


class DeepseekV4Model(Patched, hf.DeepseekV4Model):
    __module__ = hf.__name__  # what transformers finds the outputs to record by

    @classmethod
    def check_fits(cls, module: Any) -> None:
        """The angle of a token must be its position's alone."""
        moving = {"dynamic", "longrope"} & {*module.rotary_emb.rope_type.values()}
        check(not moving, "attention/sparse: RoPE", got=", ".join(moving),
              expected="frequencies that do not change with the length")  # fmt: skip

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the original, with a plan where layers get a mask; no mask is built."""
        given = input_ids if input_ids is not None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        if given is not None and (input_ids is None) != (inputs_embeds is None):
            plan = planned(
                self, given.shape[:2], given.device, attention_mask, position_ids, past_key_values
            )
            attention_mask = {"plan": plan}
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class DeepseekV4Attention(Patched, hf.DeepseekV4Attention):
    STANDS_FOR: ClassVar[tuple[Any, ...]] = (
        hf.DeepseekV4CSACompressor,
        hf.DeepseekV4HCACompressor,
        hf.DeepseekV4Indexer,
        hf.DeepseekV4IndexerScorer,
        hf.DeepseekV4GroupedLinear,
        hf.DeepseekV4RMSNorm,
        hf.DeepseekV4UnweightedRMSNorm,
        hf.DeepseekV4RotaryEmbedding,
        hf.apply_rotary_pos_emb,
        hf.rotate_half,
        hf.eager_attention_forward,
    )
    WITH: ClassVar[tuple[type[Patched], ...]] = (DeepseekV4Model,)

    @classmethod
    def check_fits(cls, module: Any) -> None:
        """Projections must be plain matrices: their weights are read, their forwards do not run."""
        kinds = (torch.nn.Linear, hf.DeepseekV4GroupedLinear)
        for name, part in module.named_modules():
            plain = type(part) in kinds or not name.endswith("_proj")
            where, got = f"{type(module).__name__}.{name}", type(part).__name__
            check(
                plain, where, got=got, expected="torch.nn.Linear, or ops without attention/sparse"
            )

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Any,
        position_ids: torch.Tensor,
        attention_mask: Any,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """x [B, S, D] → [B, S, D] and no weights; positions and cache are in the plan."""
        return attend(self, self._tileproof, hidden_states, attention_mask), None


# Op the user names → the class that runs it; `moe/experts` is a group of ops. `mhc/pre` stands for
# prenorm_gemm, sinkhorn and collapse as well: which path runs depends on the number of tokens and
# never changes a bit.
REPLACEMENTS: dict[str, type[Patched]] = {
    "norm/rmsnorm": DeepseekV4RMSNorm,
    "norm/rmsnorm_unweighted": DeepseekV4UnweightedRMSNorm,
    "mhc/pre": DeepseekV4HyperConnection,
    "mhc/post": DeepseekV4DecoderLayer,
    "mhc/head": DeepseekV4HyperHead,
    "moe/topk_gate": DeepseekV4TopKRouter,
    "moe/hash_gate": DeepseekV4HashRouter,
    "attention/sparse": DeepseekV4Attention,
    "gemm/dense": Linear,
    "moe/experts": DeepseekV4Experts,
}

# Every kernel a replacement may launch, where that is not the op it is named by.
KERNELS: dict[str, tuple[str, ...]] = {
    "mhc/pre": ("mhc/pre", "mhc/prenorm_gemm", "mhc/sinkhorn", "mhc/collapse"),
    "mhc/head": ("mhc/prenorm_gemm", "mhc/head"),
    "moe/topk_gate": ("gemm/dense", "moe/topk_gate"),
    "moe/hash_gate": ("gemm/dense", "moe/hash_gate"),
    "moe/experts": (
        "moe/permute",
        "moe/source",
        "moe/dispatch",
        "gemm/experts",
        "moe/swiglu",
        "moe/combine",
    ),
    "attention/sparse": (
        "gemm/dense",
        "norm/rmsnorm",
        "attention/q_prologue",
        "norm/kv_row",
        "compressor/pool_row",
        "compressor/keep",
        "rope/rotate",
        "indexer/score",
        "indexer/topk",
        "attention/sparse",
        "attention/out_rope",
        "gemm/grouped",
    ),
}


def products(op: str, config: Mapping[str, Any]) -> set[tuple[int, str]]:
    """(columns, type of the result) of every weight that `op` multiplies by."""
    D, hidden, R = (config[k] for k in ("hidden_size", "moe_intermediate_size", "q_lora_rank"))
    found = {
        "moe/topk_gate": {(D, "f32")},
        "moe/hash_gate": {(D, "f32")},
        "gemm/dense": {(D, "act"), (hidden, "act")},
        "attention/sparse": {
            (D, "act"),
            (R, "act"),
            (config["o_groups"] * config["o_lora_rank"], "act"),
            (D, "f32"),
        },
    }
    return found.get(op, set())


def replacements(op: str) -> tuple[type[Patched], ...]:
    """The class that runs `op`, and those swapped with it."""
    return (REPLACEMENTS[op], *REPLACEMENTS[op].WITH)
