"""The tensors a DeepSeek-V4 model has: names, shapes and how official checkpoints store them.

Names and formats are those of the official checkpoints (spec §1): FP8 matrices with a ue8m0 scale
per 128×128 (``.scale`` beside ``.weight``), FP4 experts with a scale per 1×32, bfloat16 and float32
for the rest. transformers has other names, stacks experts and knows plain matrices only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

if TYPE_CHECKING:
    from transformers import DeepseekV4Config

Stored = Literal["fp8", "fp4", "bf16", "f32", "i64"]
TILE, GROUP = 128, 32  # edges of a scale's block: 128×128 of FP8, 1×32 of FP4
PLAIN = {"bf16": torch.bfloat16, "f32": torch.float32, "i64": torch.int64}


class Part(NamedTuple):
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def scale_name(weight: str) -> str:
    """``….weight`` → ``….scale``"""
    return weight.removesuffix("weight") + "scale"


@dataclass(frozen=True)
class Entry:
    """One matrix or vector of a model: its logical shape and how official checkpoints store it."""

    shape: tuple[int, ...]
    stored: Stored

    def parts(self, name: str) -> Iterator[Part]:
        """The tensors of an official checkpoint that make up `name`: itself, then its scales."""
        if self.stored in PLAIN:
            yield Part(name, self.shape, PLAIN[self.stored])
            return
        rows, columns = self.shape
        if self.stored == "fp8":
            yield Part(name, self.shape, torch.float8_e4m3fn)
            scales = (-(-rows // TILE), -(-columns // TILE))
        else:
            yield Part(name, (rows, columns // 2), torch.int8)  # two e2m1 codes a byte
            scales = (rows, columns // GROUP)
        yield Part(scale_name(name), scales, torch.float8_e8m0fnu)


def entries(config: DeepseekV4Config) -> dict[str, Entry]:
    """Every tensor of the model `config` describes, by official name (spec §1).

    Blocks of multi-token prediction (spec §13) come as ``mtp.0.…``; a checkpoint may lack them.
    """
    D, N, V = config.hidden_size, config.hc_mult, config.vocab_size
    found = {
        "embed.weight": Entry((V, D), "bf16"),
        "norm.weight": Entry((D,), "bf16"),
        "head.weight": Entry((V, D), "bf16"),
        **_mixing("hc_head", N, N, 1, D),
    }
    for i, (kind, routing) in enumerate(
        zip(config.layer_types, config.mlp_layer_types, strict=True)
    ):
        block = _block(config, kind, routing == "hash_moe")
        found |= {f"layers.{i}.{name}": entry for name, entry in block.items()}
    for i in range(config.num_nextn_predict_layers or 0):
        block = _block(config, "sliding_attention", hashed=False)
        block |= {"e_proj.weight": Entry((D, D), "fp8"), "h_proj.weight": Entry((D, D), "fp8")}
        block |= {f"{n}.weight": Entry((D,), "bf16") for n in ("enorm", "hnorm", "norm")}
        block |= _mixing("hc_head", N, N, 1, D)
        found |= {f"mtp.{i}.{name}": entry for name, entry in block.items()}
    return found


def _mixing(prefix: str, N: int, outputs: int, scales: int, D: int) -> dict[str, Entry]:
    return {
        f"{prefix}_fn": Entry((outputs, N * D), "f32"),
        f"{prefix}_base": Entry((outputs,), "f32"),
        f"{prefix}_scale": Entry((scales,), "f32"),
    }


def _block(config: DeepseekV4Config, kind: str, hashed: bool) -> dict[str, Entry]:
    D, N, V = config.hidden_size, config.hc_mult, config.vocab_size
    H, head, rank = config.num_attention_heads, config.head_dim, config.q_lora_rank
    G, lora = config.o_groups, config.o_lora_rank
    E, I = config.n_routed_experts, config.moe_intermediate_size  # noqa: E741
    found = {
        **_mixing("hc_attn", N, (2 + N) * N, 3, D),
        **_mixing("hc_ffn", N, (2 + N) * N, 3, D),
        "attn_norm.weight": Entry((D,), "bf16"),
        "ffn_norm.weight": Entry((D,), "bf16"),
        "attn.wq_a.weight": Entry((rank, D), "fp8"),
        "attn.q_norm.weight": Entry((rank,), "bf16"),
        "attn.wq_b.weight": Entry((H * head, rank), "fp8"),
        "attn.wkv.weight": Entry((head, D), "fp8"),
        "attn.kv_norm.weight": Entry((head,), "bf16"),
        "attn.wo_a.weight": Entry((G * lora, H * head // G), "fp8"),
        "attn.wo_b.weight": Entry((D, G * lora), "fp8"),
        "attn.attn_sink": Entry((H,), "f32"),
        "ffn.gate.weight": Entry((E, D), "bf16"),
    }
    if kind != "sliding_attention":
        streams = 2 if kind == "compressed_sparse_attention" else 1
        ratio = config.compress_rates[kind]
        found |= _compressor("attn.compressor", ratio, streams, head, D)
    if kind == "compressed_sparse_attention":
        HI, DI = config.index_n_heads, config.index_head_dim
        found |= _compressor("attn.indexer.compressor", ratio, streams, DI, D)
        found["attn.indexer.wq_b.weight"] = Entry((HI * DI, rank), "fp8")
        found["attn.indexer.weights_proj.weight"] = Entry((HI, D), "bf16")
    if hashed:
        found["ffn.gate.tid2eid"] = Entry((V, config.num_experts_per_tok), "i64")
    else:
        found["ffn.gate.bias"] = Entry((E,), "f32")
    for owner, stored in (*((f"experts.{e}", "fp4") for e in range(E)), ("shared_experts", "fp8")):
        found[f"ffn.{owner}.w1.weight"] = Entry((I, D), stored)  # gate
        found[f"ffn.{owner}.w2.weight"] = Entry((D, I), stored)  # down
        found[f"ffn.{owner}.w3.weight"] = Entry((I, D), stored)  # up
    return found


def _compressor(prefix: str, ratio: int, streams: int, head: int, D: int) -> dict[str, Entry]:
    return {
        f"{prefix}.wkv.weight": Entry((streams * head, D), "bf16"),
        f"{prefix}.wgate.weight": Entry((streams * head, D), "bf16"),
        f"{prefix}.ape": Entry((ratio, streams * head), "f32"),
        f"{prefix}.norm.weight": Entry((head,), "bf16"),
    }


# transformers' names, in files and in state dicts → official ones; the first that fits a part wins.
_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^model\.", ""),
        (r"^embed_tokens\.", "embed."),
        (r"^lm_head\.", "head."),
        (r"^hc_head\.hc_", "hc_head_"),
        (r"\.self_attn\.", ".attn."),
        (r"\.mlp\.", ".ffn."),
        (r"\.input_layernorm\.", ".attn_norm."),
        (r"\.post_attention_layernorm\.", ".ffn_norm."),
        (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
        (r"\.sinks$", ".attn_sink"),
        (r"\.compressor\.indexer\.(q_b_proj|wq_b)\.", ".indexer.wq_b."),
        (r"\.compressor\.indexer\.scorer\.", ".indexer."),
        (r"\.compressor\.indexer\.", ".indexer.compressor."),
        (r"\.q_a_proj\.", ".wq_a."),
        (r"\.q_a_norm\.", ".q_norm."),
        (r"\.q_b_proj\.", ".wq_b."),
        (r"\.o_a_proj\.", ".wo_a."),
        (r"\.o_b_proj\.", ".wo_b."),
        (r"\.shared_experts\.gate_proj\.", ".shared_experts.w1."),
        (r"\.shared_experts\.down_proj\.", ".shared_experts.w2."),
        (r"\.shared_experts\.up_proj\.", ".shared_experts.w3."),
        (r"\.compressor\.kv_proj\.", ".compressor.wkv."),
        (r"\.compressor\.gate_proj\.", ".compressor.wgate."),
        (r"\.compressor\.kv_norm\.", ".compressor.norm."),
        (r"\.position_bias$", ".ape"),
        (r"\.kv_proj\.", ".wkv."),
        (r"\.attn\.norm\.", ".attn.kv_norm."),
        (r"\.gate\.e_score_correction_bias$", ".gate.bias"),
    )
)


def official_name(name: str) -> str:
    """The official name of a tensor that transformers may call otherwise."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def canonical(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` under official names; experts that transformers stacks [E, …] are taken apart."""
    found: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        name = official_name(key)
        owner, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                found |= {f"{owner}.{e}.w1.weight": gate, f"{owner}.{e}.w3.weight": up}
        elif leaf == "down_proj" and tensor.ndim == 3:
            found |= {f"{owner}.{e}.w2.weight": down for e, down in enumerate(tensor)}
        else:
            found[name] = tensor
    return found
