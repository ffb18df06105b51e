"""transformers' model in the official precision: bits of the dense reference of that policy."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import tileproof
from tileproof.dsl import ContractError
from tileproof.model import weights
from tileproof.model.checkpoint import OFFICIAL, tiny_model
from tileproof.model.names import canonical

from .official import Official
from .rounded import Rounded
from .support import VOCABULARY, logits, token_ids

LENGTH = 40


@pytest.fixture(scope="module")
def made():
    """A patched model, and the reference of its weights."""
    m = tiny_model(7, VOCABULARY, **OFFICIAL, compress_rate_hca=16)
    state = weights.official(m.config, canonical(m.state_dict()))
    with tileproof.patch(m, "reference", precision="official"):
        m.model._tileproof.run = Rounded()
        yield m, Official(m.config, state, LENGTH + 1)


def test_logits_of_a_batch_have_the_bits_of_the_reference(made):
    m, reference = made
    ids = token_ids(1, 3, LENGTH)
    got = logits(m, ids)
    assert got.dtype == torch.float32
    for row, prompt in zip(got, ids, strict=True):
        assert torch.equal(row, reference(prompt)[0])


def test_chunks_and_steps_have_them_while_the_cache_grows(made):
    m, reference = made
    ids = token_ids(2, 2, LENGTH)
    cache, parts = DynamicCache(config=m.config), []
    with torch.no_grad():
        for part in ids.split([3, 1, 30, 1, 1, 4], dim=1):
            parts.append(m(part, past_key_values=cache).logits)
    for row, prompt in zip(torch.cat(parts, 1), ids, strict=True):
        assert torch.equal(row, reference(prompt)[0])
    assert cache.get_seq_length() == LENGTH
    cache.reset()
    with torch.no_grad():
        assert torch.equal(m(ids[:, :3], past_key_values=cache).logits, parts[0])


def test_a_padded_batch_continues_as_each_row_alone(made):
    m, reference = made
    ids, mask = token_ids(3, 2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask[1, :5] = 0
    texts = m.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    for row, start in enumerate((0, 5)):
        text = ids[row, start:].tolist()
        for _ in range(6):
            text.append(int(reference(torch.tensor(text))[0][-1].argmax()))
        assert texts[row, start:].tolist() == text


def test_pools_grow_with_what_they_hold(made):
    """More pages than a cache begins with: 2 rows of a page of 256 tokens, then a second each."""
    m, _ = made
    ids = token_ids(4, 2, 262)
    network, cache, parts = m.model._tileproof, DynamicCache(config=m.config), []
    with torch.no_grad():
        whole = m(ids).logits
        for part in ids.split([250, 12], dim=1):
            parts.append(m(part, past_key_values=cache).logits)
            pages = cache.layers[0].held.pages
            assert all(len(pages.table[r]) == len(parts) for r in range(2))
    assert network.blocks[2].attention.indexer is not None
    assert torch.equal(torch.cat(parts, 1), whole)


def test_undo_restores(seed):
    m = tiny_model(seed, VOCABULARY, **OFFICIAL)
    ids = token_ids(seed, 1, 5)
    theirs, before = logits(m, ids), {n: type(x) for n, x in m.named_modules()}
    with tileproof.patch(m, "reference", precision="official") as patch:
        assert not torch.equal(logits(m, ids), theirs)
        assert {n for n, x in m.named_modules() if type(x) is not before[n]} == {"model", "lm_head"}
        assert patch.library.backend == "reference"
        with pytest.raises(ContractError, match="patched already"):
            tileproof.patch(m, "reference")
    assert {n: type(x) for n, x in m.named_modules()} == before
    assert torch.equal(logits(m, ids), theirs)


def refuse(message, m, **options):
    with pytest.raises(ContractError, match=message):
        tileproof.patch(m, "reference", precision="official", **options)


def test_what_has_no_official_form_is_refused(seed):
    m = tiny_model(seed, VOCABULARY, **OFFICIAL)
    before = [type(x) for x in m.modules()]
    refuse("ops: got .'mhc/post'., expected None", m, ops=["mhc/post"])
    refuse("on_missing of .* got 'reference', expected 'compile' or", m, on_missing="reference")
    refuse("got DeepseekV4Model, expected DeepseekV4ForCausalLM", m.model)
    refuse("head_dim - qk_rope_head_dim of an official model", tiny_model(seed, VOCABULARY))
    with pytest.raises(ContractError, match="precision: got 'fp8', expected 'exact' or 'official'"):
        tileproof.patch(m, precision="fp8")
    assert [type(x) for x in m.modules()] == before


def test_what_its_cache_cannot_do_is_refused(made):
    m, _ = made
    ids = token_ids(5, 2, 6)
    with pytest.raises(ContractError, match="got embeddings, expected input_ids"):
        m(inputs_embeds=torch.zeros(1, 2, 128))
    with pytest.raises(ContractError, match="got a change of a paged cache's rows, expected none"):
        m.generate(ids, num_beams=2, max_new_tokens=3, do_sample=False, pad_token_id=0)
    cache = DynamicCache(config=m.config)
    with torch.no_grad():
        m(ids, past_key_values=cache)
    with pytest.raises(ContractError, match="got a cache of 2 rows, expected 1 rows"):
        m(ids[:1], past_key_values=cache)
    with pytest.raises(ContractError, match="past_key_values: got str, expected a DynamicCache"):
        m(ids, past_key_values="none")
