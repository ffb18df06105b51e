"""A patched model computes what transformers computes, to the precision of the type.

The judge is transformers' own code in float64. Both float32 networks err against it by the sum of
their roundings, of which the kernels make as many as transformers does; so their largest errors,
over thousands of logits, agree within a factor of two. A mistake anywhere (comb not transposed, one
Sinkhorn step too few) is seventy times larger or more.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters

import tileproof
from tileproof.model.exact import exact_logits

from .support import error, generate, logits, model, token_ids

# Prompts that leave a partial CSA window, fill the HCA window exactly, and pass it.
LENGTHS = (3, 37, 128, 131)
BACKENDS = ("reference", "virtual")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_logits_err_no_more_than_transformers_do(backend, length, seed):
    m = model(seed)
    ids = token_ids(seed, 2, length)
    exact = exact_logits(m, ids)
    theirs = logits(m, ids)
    with tileproof.patch(m, backend):
        ours = logits(m, ids)
    assert error(ours, exact) <= 2 * error(theirs, exact)
    assert not torch.equal(ours, theirs), "transformers' own code ran"


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_generates_the_same_tokens(backend, seed):
    m = model(seed)
    ids = token_ids(seed, 1, 21)
    theirs = generate(m, ids, 12)
    with tileproof.patch(m, backend):
        ours = generate(m, ids, 12)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_cached_decode_equals_the_whole_sequence_at_once(backend, seed):
    """40 tokens at once take three kernels per mHC; 1 + 33 + 6 × 1 tokens mix both paths."""
    m = model(seed)
    ids = token_ids(seed, 1, 40)
    exact = exact_logits(m, ids)
    bound = 2 * error(logits(m, ids), exact)
    with tileproof.patch(m, backend), torch.no_grad():
        cache, steps = None, []
        for part in ids.split([1, 33, *[1] * 6], dim=1):
            out = m(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    assert error(torch.cat(steps, dim=1), exact) <= bound


@pytest.mark.parametrize("kept", ["checkpoint", "all"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_errs_no_more_than_transformers_does(backend, kept, seed):
    """Root mean square, since rounding flips a router's or indexer's choice here and there.

    `checkpoint` keeps norms and mHC weights in float32, as ``from_pretrained`` does; `all` is
    ``model.to(bfloat16)``, where the kernels get converted copies of fn, base and scale.
    """
    m = model(seed).to(torch.bfloat16)
    if kept == "checkpoint":
        strict = m._keep_in_fp32_modules_strict
        for name, parameter in m.named_parameters():
            if any(part in name.split(".") for part in strict):
                parameter.data = parameter.data.float()
    ids = token_ids(seed, 4, 40)
    exact = exact_logits(m, ids)

    def rms(got):
        return (got.double() - exact).square().mean().sqrt().item()

    theirs = rms(logits(m, ids))
    with tileproof.patch(m, backend):
        ours = logits(m, ids)
    assert ours.dtype == torch.bfloat16
    assert rms(ours) <= 1.5 * theirs


def test_virtual_and_reference_differ_by_rounding_only_in_bfloat16(seed):
    """Each swapped module alone, on the same input: at most one bfloat16 step apart."""
    m = model(seed).to(torch.bfloat16)
    streams = torch.randn(2, 9, 4, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()
    hc = m.model.layers[2].attn_hc

    def outputs(backend):
        with tileproof.patch(m, backend), torch.no_grad():
            post, comb, collapsed = hc(streams)
            head = m.model.hc_head(streams)
            norm = m.model.norm(collapsed)
            mixed = m.model.layers[0]._mixed(streams, norm, post, comb)
        return (post, comb), (collapsed, head, norm, mixed)

    (wide_v, narrow_v), (wide_r, narrow_r) = outputs("virtual"), outputs("reference")
    for got, expected in zip(wide_v, wide_r, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=2**-18, atol=2**-22)
    for got, expected in zip(narrow_v, narrow_r, strict=True):
        assert got.dtype == torch.bfloat16
        steps = got.view(torch.int16).int() - expected.view(torch.int16).int()
        near_zero = (got.float() - expected.float()).abs() < 2**-16
        assert (near_zero | (steps.abs() <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(backend, dtype, seed):
    """mHC, its head, its mix and both norms; 40 rows take the path of many, 1 row that of few."""
    m = model(seed).to(dtype)
    layer = m.model.layers[2]
    generator = torch.Generator().manual_seed(seed)
    streams = torch.randn(1, 40, 4, 64, generator=generator).to(dtype)
    heads = torch.randn(1, 8, 40, 32, generator=generator).to(dtype)

    def outputs(tokens):
        x = streams[:, tokens]
        post, comb, collapsed = layer.attn_hc(x)
        y = layer.input_layernorm(collapsed)
        q = layer.self_attn.q_b_norm(heads[:, :, tokens]).transpose(1, 2)
        return [post, comb, collapsed, y, q, layer._mixed(x, y, post, comb), m.model.hc_head(x)]

    with tileproof.patch(m, backend), torch.no_grad():
        together = outputs(slice(0, 40))
        for t in (0, 17, 39):
            for alone, all_rows in zip(outputs(slice(t, t + 1)), together, strict=True):
                assert torch.equal(alone, all_rows[:, t : t + 1])


def test_tensors_at_odd_addresses_are_copied(seed):
    """``from_pretrained`` maps weights at any multiple of 4 bytes; kernels load 16 at once."""
    m, shifted = model(seed), model(seed)
    for name, parameter in shifted.named_parameters():
        if "norm." not in name and "hc" not in name:
            continue  # torch's own matrix products round differently at odd addresses
        room = torch.empty(parameter.numel() + 5, dtype=parameter.dtype)
        start = next(i for i in range(5) if room[i:].data_ptr() % 16 == 4)
        odd = room[start : start + parameter.numel()].view(parameter.shape)
        parameter.data = odd.copy_(parameter.data)
        assert parameter.data_ptr() % 16 == 4
    ids = token_ids(seed, 1, 36)
    room = torch.randn(1 + 36 * 4 * 64, generator=torch.Generator().manual_seed(seed))
    streams = room[1:].view(1, 36, 4, 64)
    with tileproof.patch(m, "virtual"), tileproof.patch(shifted, "virtual"), torch.no_grad():
        assert torch.equal(logits(shifted, ids), logits(m, ids))
        head = m.model.hc_head(streams)
        assert torch.equal(head, m.model.hc_head(streams.clone()))


def test_weights_may_change_under_the_patch(seed):
    """The float32 copies of bfloat16 mHC weights follow updates in place."""
    m = model(seed).to(torch.bfloat16)
    ids = token_ids(seed, 1, 5)
    with tileproof.patch(m, "reference"):
        before = logits(m, ids)
        again = logits(m, ids)
        with torch.no_grad():
            m.model.layers[0].attn_hc.base.add_(1)
        after = logits(m, ids)
    fresh = copy.deepcopy(m)
    with tileproof.patch(fresh, "reference"):
        expected = logits(fresh, ids)
    assert torch.equal(before, again)
    assert not torch.equal(before, after)
    assert torch.equal(after, expected)


def test_hidden_states_and_router_logits_are_recorded_as_before(seed):
    m = model(seed)
    ids = token_ids(seed, 1, 6)
    arguments = {"output_hidden_states": True, "output_router_logits": True}
    with torch.no_grad():
        theirs = m(ids, **arguments)
        with tileproof.patch(m, "reference"):
            ours = m(ids, **arguments)
    assert len(ours.hidden_states) == len(theirs.hidden_states) > 1
    assert len(ours.router_logits) == len(theirs.router_logits) > 1
    for got, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_no_tokens_at_all(seed):
    m = model(seed)
    with tileproof.patch(m, "reference"), torch.no_grad():
        post, comb, collapsed = m.model.layers[0].attn_hc(torch.empty(2, 0, 4, 64))
        head = m.model.hc_head(torch.empty(2, 0, 4, 64))
        norm = m.model.norm(torch.empty(0, 64))
    assert post.shape == (2, 0, 4)
    assert comb.shape == (2, 0, 4, 4)
    assert collapsed.shape == head.shape == (2, 0, 64)
    assert norm.shape == (0, 64)


def test_torch_compile_traces_around_the_kernels(seed):
    m = model(seed)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))

    def around(x):
        return m.model.norm(x * 2) + 1

    with tileproof.patch(m, "virtual", ops=["norm/rmsnorm"]), torch.no_grad():
        expected = around(x)
        compiled = torch.compile(around, backend="eager")(x)
    assert torch.equal(compiled, expected)


def test_torch_compile_of_a_model_breaks_at_the_ops_alone(seed):
    m = model(seed, num_hidden_layers=2, compress_ratios=[0, 4], num_hash_layers=1)
    ids = token_ids(seed, 2, 9)
    torch._dynamo.reset()
    counters.clear()
    with tileproof.patch(m, "reference"), torch.no_grad():
        compiled = torch.compile(m, backend="aot_eager")
        for part in (ids, ids[:, :7]):
            expected = m(part, use_cache=False).logits
            assert torch.equal(compiled(part, use_cache=False).logits, expected)
    reasons = counters["graph_break"]
    assert counters["stats"]["unique_graphs"] > 1
    assert reasons and all("torch.compiler.disable" in reason for reason in reasons)
