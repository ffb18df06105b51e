"""A patched model across calls: prefill, chunks, decoding, padding and beams with one cache.

On kernels nothing may change a bit. The reference backend sums as torch's matrix products do, whose
order hangs on the number of rows, so only what it does not compute is compared there.
"""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, StaticSlidingWindowLayer

import tileproof
from tileproof.dsl import ContractError
from tileproof.model.exact import exact_logits

from .support import VOCABULARY, error, generate, logits, model, token_ids

LENGTH = 133  # past the first window of 128 and into the next of 4


@pytest.fixture(scope="module")
def virtual():
    """A model on the virtual GPU."""
    m = model(5)
    with tileproof.patch(m, "virtual"):
        yield m


@pytest.fixture(scope="module")
def small():
    """One with a layer of each kind."""
    m = model(5, num_hidden_layers=3, compress_ratios=[0, 4, 128], num_hash_layers=1)
    with tileproof.patch(m, "virtual"):
        yield m


def run(m, ids, sizes):
    """Logits of all tokens, in calls of so many, and the cache behind the last."""
    cache, parts = DynamicCache(config=m.config), []
    with torch.no_grad():
        for part in ids.split(sizes, dim=1):
            parts.append(m(part, past_key_values=cache).logits)
    return torch.cat(parts, dim=1), cache


def contents(cache):
    """Every bit of a cache that a later token may see, by layer."""
    found = []
    for layer in cache.layers:
        state, seen = layer.state, torch.tensor(layer.seen)
        parts = [state.window.view(len(seen), layer.sliding_window, -1)]
        for branch in (state.main, state.index):
            if branch is not None:
                parts.append(branch.state.view(len(seen), -1, branch.state.shape[1]))
                parts.append(branch.entries.view(len(seen), -1, branch.entries.shape[1]))
        found.append((layer.seen, layer.cumulative_length, parts))
    return found


def assert_same(one, other):
    """Two caches hold the same bits; a pool may have more room than the other."""
    for a, b in zip(contents(one), contents(other), strict=True):
        assert a[:2] == b[:2]
        for x, y in zip(a[2], b[2], strict=True):
            room = min(x.shape[1], y.shape[1])
            assert torch.equal(x[:, :room], y[:, :room])
            assert not x[:, room:].any() and not y[:, room:].any()


def test_prefill_leaves_what_decoding_leaves_for_every_length(small):
    """prefill(P) and P single tokens leave the same cache and the same next logits for every P mod
    128, so by induction any mixture of the two does."""
    ids = token_ids(5, 1, LENGTH)
    cache = DynamicCache(config=small.config)
    with torch.no_grad():
        for P in range(1, LENGTH + 1):
            decoded = small(ids[:, P - 1 : P], past_key_values=cache).logits
            at_once, prefilled = run(small, ids[:, :P], [P])
            assert torch.equal(at_once[:, -1:], decoded), P
            assert_same(prefilled, cache)


@pytest.mark.parametrize("sizes", [[1, 132], [5, 3, 1, 124], [127, 1, 1, 4], [64, 64, 5]])
def test_chunks_give_the_bits_of_one_call(virtual, sizes):
    ids = token_ids(6, 2, LENGTH)
    whole, cache = run(virtual, ids, [LENGTH])
    chunked, other = run(virtual, ids, sizes)
    assert torch.equal(chunked, whole)
    assert_same(other, cache)


def test_rows_of_a_padded_batch_have_the_bits_they_have_alone(virtual):
    """Padding on the left, as generate() pads, which transformers itself counts into windows."""
    lengths = [37, 1, 140, 9]
    width = max(lengths)
    ids, mask = torch.zeros(4, width, dtype=torch.int64), torch.zeros(4, width, dtype=torch.int64)
    for row, n in enumerate(lengths):
        ids[row, width - n :], mask[row, width - n :] = token_ids(row, 1, n)[0], 1

    def continued(ids, mask):
        return virtual.generate(
            ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip

    together = continued(ids, mask)
    for row, n in enumerate(lengths):
        alone = continued(token_ids(row, 1, n), torch.ones(1, n, dtype=torch.int64))
        assert together.sequences[row, width:].tolist() == alone.sequences[0, n:].tolist()
        for a, b in zip(together.logits, alone.logits, strict=True):
            assert torch.equal(a[row], b[0])


@pytest.mark.parametrize(("batch", "length"), [(2, 21), (7, 21), (64, 2)])
def test_a_row_has_the_bits_it_has_alone_at_any_slot(virtual, batch, length):
    ids = token_ids(8, batch, length)
    together = logits(virtual, ids)
    for row in {0, batch // 2, batch - 1}:
        assert torch.equal(together[row], logits(virtual, ids[row : row + 1])[0])


def test_a_row_of_padding_changes_no_other(virtual):
    ids = token_ids(9, 3, 12)
    mask = torch.ones_like(ids)
    mask[1] = 0
    with torch.no_grad():
        got = virtual(ids, attention_mask=mask).logits
    assert torch.equal(got[[0, 2]], logits(virtual, ids)[[0, 2]])
    assert got[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_rows_and_no_tokens(shape, seed):
    m = model(seed)
    with tileproof.patch(m, "reference"):
        assert logits(m, torch.zeros(shape, dtype=torch.int64)).shape == (*shape, VOCABULARY)


EDGES = (1, 3, 4, 5, 7, 8, 126, 127, 129, 130, 255, 256, 257)  # spec §15.2


@pytest.mark.parametrize("length", EDGES)
@pytest.mark.parametrize("backend", ["reference", "virtual"])
def test_edge_lengths_err_no_more_than_transformers_does(backend, length, virtual, seed):
    m = model(5)
    ids = token_ids(seed, 1, length)
    exact = exact_logits(m, ids)
    bound = 2 * error(logits(m, ids), exact)
    if backend == "virtual":
        ours = logits(virtual, ids)
    else:
        with tileproof.patch(m, "reference"):
            ours = logits(m, ids)
    assert error(ours, exact) <= bound


def test_beams_are_reordered_as_transformers_reorders_them(seed):
    m = model(seed)
    ids = token_ids(seed, 2, 19)
    options = {"num_beams": 3, "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    theirs = m.generate(ids, **options)
    with tileproof.patch(m, "reference"):
        ours = m.generate(ids, **options)
    assert ours.tolist() == theirs.tolist()


def test_a_copied_cache_goes_on_by_itself(virtual):
    ids = token_ids(9, 1, 20)
    _, cache = run(virtual, ids[:, :13], [13])
    other = copy.deepcopy(cache)
    with torch.no_grad():
        first = virtual(ids[:, 13:], past_key_values=cache).logits
        again = virtual(ids[:, 13:], past_key_values=other).logits
    assert torch.equal(first, again)


def test_a_reset_cache_is_a_new_one(virtual):
    ids = token_ids(10, 1, 14)
    whole, cache = run(virtual, ids, [14])
    cache.reset()
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        assert torch.equal(virtual(ids, past_key_values=cache).logits, whole)


def test_rows_are_repeated_and_selected(seed):
    m = model(seed)
    ids = token_ids(seed, 2, 15)
    with tileproof.patch(m, "reference"), torch.no_grad():
        _, cache = run(m, ids[:, :11], [11])
        expected = m(ids[:, 11:], past_key_values=copy.deepcopy(cache)).logits
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        got = m(ids[[1, 0]][:, 11:], past_key_values=cache).logits
    assert torch.equal(got, expected[[1, 0]])


def test_no_mask_is_built(seed, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a mask")

    monkeypatch.setattr(
        "transformers.models.deepseek_v4.modeling_deepseek_v4.create_sliding_window_causal_mask",
        refuse,
    )
    m = model(seed)
    with tileproof.patch(m, "reference"):
        generate(m, token_ids(seed, 1, 9), 3)


def test_without_a_cache_nothing_is_kept(seed):
    m = model(seed)
    ids = token_ids(seed, 2, 12)
    with tileproof.patch(m, "reference"), torch.no_grad():
        out = m(ids, use_cache=False)
        assert out.past_key_values is None
        assert torch.equal(out.logits, logits(m, ids))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.ones(1, 1, 6, 6)}, r"attention_mask: got \[1, 1, 6, 6\], expect"),
        ({"position_ids": torch.tensor([[0, 1, 2, 4, 5, 6]])}, "got positions with gaps, expected"),
        ({"past_key_values": "static"}, "past_key_values: got Cache, expected a DynamicC"),
        ({"past_key_values": "unpatched"}, "got one that an unpatched model began, expected"),
        ({"past_key_values": "rows"}, "got a cache of 2 rows, expected 1 rows"),
    ],
    ids=["mask", "positions", "static", "unpatched", "rows"],
)
def test_what_lists_cannot_serve_is_refused_in_one_sentence(arguments, message, seed):
    m = model(seed)
    ids = token_ids(seed, 1, 6)
    unpatched = m(ids, use_cache=True).past_key_values
    with tileproof.patch(m, "reference"), torch.no_grad():
        caches = {
            "static": Cache(layers=[StaticSlidingWindowLayer(16, 8)]),
            "unpatched": unpatched,
            "rows": run(m, ids.expand(2, -1), [6])[1],
        }
        given = arguments.get("past_key_values")
        if given is not None:
            arguments = {"past_key_values": caches[given]}
        with pytest.raises(ContractError, match=message):
            m(ids, **arguments)


def test_a_cache_of_a_patched_model_does_not_outlive_the_patch(seed):
    m = model(seed)
    ids = token_ids(seed, 1, 6)
    with tileproof.patch(m, "reference"):
        _, cache = run(m, ids, [6])
    with pytest.raises(ContractError, match="that a patched model began"), torch.no_grad():
        m(ids, past_key_values=cache)
    with pytest.raises(ContractError, match="crop: got -1, expected 0 tokens"):
        cache.crop(-1)
