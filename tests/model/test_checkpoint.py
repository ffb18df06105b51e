"""The tiny checkpoint: reproducible, small, and with nothing left at its initial value."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from tileproof.model import write_tiny_checkpoint
from tileproof.model.checkpoint import VOCABULARY, tiny_config, tiny_model

from .support import logits, token_ids


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(seed):
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    first, again, other = tiny_model(5, 64), tiny_model(5, 64), tiny_model(6, 64)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(first.parameters(), other.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_no_parameter_keeps_a_constant(seed):
    for name, parameter in tiny_model(seed, 64).named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 0, name
        assert (parameter != 0).all(), name


def test_hash_layers_have_distinct_experts_per_token(seed):
    tables = [b for n, b in tiny_model(seed, 64).named_buffers() if n.endswith("tid2eid")]
    assert len(tables) == 2
    for table in tables:
        assert all(len(set(row)) == len(row) for row in table.tolist())
        assert table.unique().numel() == 8


def test_it_has_every_kind_of_layer():
    config = tiny_config()
    assert config.vocab_size == VOCABULARY
    assert set(config.layer_types) == {
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
    }
    assert set(config.mlp_layer_types) == {"hash_moe", "moe"}


def test_it_loads_as_it_was_written(seed, tmp_path):
    path = write_tiny_checkpoint(tmp_path / "tiny", seed, vocabulary=64)
    assert (path / "model.safetensors").stat().st_size < 2 << 20
    loaded, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = token_ids(seed, 1, 9) % 64
    assert torch.equal(logits(loaded, ids), logits(tiny_model(seed, 64), ids))
