"""The kernels under their name in transformers' registries of attention and experts."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV4ForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tileproof
from tileproof.dsl import ContractError
from tileproof.model import known
from tileproof.model.exact import exact_logits

from .support import error, generate, logits, model, token_ids

BOTH = {"attn_implementation": "tileproof", "experts_implementation": "tileproof"}


@pytest.fixture(params=["reference", "virtual"])
def registered(request):
    tileproof.register(request.param)
    yield request.param
    for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS, ALL_EXPERTS_FUNCTIONS):
        registry._global_mapping.pop("tileproof")


references = pytest.mark.parametrize("registered", ["reference"], indirect=True)


def named(m):
    m.set_attn_implementation("tileproof")
    m.set_experts_implementation("tileproof")
    return m


@pytest.mark.parametrize("length", [5, 131])
def test_logits_err_no_more_than_transformers_do(registered, length, seed):
    m = model(seed)
    ids = token_ids(seed, 2, length)
    exact, theirs = exact_logits(m, ids), logits(m, ids)
    ours = logits(named(m), ids)
    assert not torch.equal(ours, theirs), "transformers' own code ran"
    assert error(ours, exact) <= 2 * error(theirs, exact)


@references
def test_generates_the_text_of_transformers_from_a_padded_batch(registered, seed, tmp_path):
    m = model(seed)
    ids = token_ids(seed, 2, 21)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # those tokens see nothing
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    theirs = m.generate(ids, **options)
    m.save_pretrained(tmp_path)
    loaded = DeepseekV4ForCausalLM.from_pretrained(tmp_path, **BOTH)
    assert loaded.config._attn_implementation == "tileproof"
    assert loaded.config._experts_implementation == "tileproof"
    assert loaded.generate(ids, **options).tolist() == theirs.tolist()


@references
def test_a_patched_model_asks_no_registry(registered, seed):
    m = model(seed)
    ids = token_ids(seed, 1, 9)
    with tileproof.patch(m, "reference"):
        expected = logits(m, ids)
        assert torch.equal(logits(named(m), ids), expected)
    assert generate(m, ids, 2).shape == (1, 2)


@references
def test_another_model_is_refused(registered):
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, attn_implementation="tileproof",
    )  # fmt: skip
    with pytest.raises(ContractError, match="got LlamaAttention, expected DeepseekV4Attention"):
        logits(LlamaForCausalLM(config), torch.ones(1, 3, dtype=torch.int64))


@references
def test_dropout_and_other_activations_are_refused(registered, seed):
    ids = token_ids(seed, 1, 5)
    with pytest.raises(ContractError, match=r"attention_dropout: got 0.5, expected 0"):
        logits(named(model(seed, attention_dropout=0.5)).train(), ids)
    with pytest.raises(ContractError, match="hidden_act: got 'gelu', expected 'silu'"):
        logits(named(model(seed, hidden_act="gelu")), ids)


def test_another_transformers_is_refused(monkeypatch):
    monkeypatch.setitem(known.KNOWN, "eager_attention_forward", ("0",))
    with pytest.raises(ContractError, match=r"eager_attention_forward of transformers .* expected"):
        tileproof.register("reference")
    assert "tileproof" not in ALL_EXPERTS_FUNCTIONS
