"""attention/sparse against float64, itself alone, in other lists, and on other architectures."""

import pytest
import torch

from tileproof.dsl import ALL, ContractError
from tileproof.kernels.attention import reference
from tileproof.kernels.attention.sparse import op

from ..support import (
    UNIT,
    as_bytes,
    assert_archs_agree,
    assert_rows_alone,
    assert_schedules_agree,
    assert_within,
    run,
)
from .support import bound, draw, wide

EDGE = {"H": 17, "D": 96, "act": "bf16"}
WGMMA = {"H": 17, "D": 64, "act": "bf16", "arch": "sm_90a"}  # chunks of 64 slots
F32 = {**EDGE, "act": "f32"}


def check(inputs, **sizes):
    (out,) = run(op, inputs, **sizes)
    assert_within(out, reference.sparse(*wide(inputs)), bound(inputs, sizes["act"]))
    return out


@pytest.mark.parametrize("sizes", [EDGE, F32], ids=["bf16", "f32"])
@pytest.mark.parametrize(
    ("M", "W", "K"),
    [
        (0, 8, 4),
        (1, 1, 0),
        (3, 0, 1),
        (3, 0, 0),
        (2, 15, 16),
        (5, 31, 33),
        (3, 32, 32),
        (2, 65, 17),
    ],
)
def test_lengths_of_lists(sizes, M, W, K, seed):
    check(draw(M, **sizes, W=W, K=K, seed=seed), **sizes)


@pytest.mark.parametrize(
    ("M", "W", "K"), [(0, 8, 4), (1, 0, 1), (2, 63, 64), (3, 65, 130)], ids=str
)
def test_lengths_of_lists_on_wgmma(M, W, K, seed):
    check(draw(M, 17, 64, "bf16", W=W, K=K, seed=seed), **WGMMA, checked=True)


@pytest.mark.parametrize("act", ["bf16", "f32"])
def test_tiny_model(act, seed):
    sizes = {"H": 8, "D": 32, "act": act}
    check(draw(7, **sizes, seed=seed), **sizes)


def test_heads_of_v4_flash(seed):
    sizes = {"H": 64, "D": 512, "act": "bf16"}
    check(draw(2, **sizes, S=300, W=128, T=100, K=70, seed=seed), **sizes)


def test_float32_is_as_accurate_as_torch(seed):
    inputs = draw(16, **F32, W=33, K=17, seed=seed)
    exact = reference.sparse(*wide(inputs))
    (out,) = run(op, inputs, **F32)
    theirs = (reference.sparse(*inputs) - exact).abs().amax()
    # one rounding more: the matrix units truncate where torch rounds, on partial sums as large
    assert (out - exact).abs().amax() <= 4 * theirs


def test_float32_entries_count_to_their_last_bit(seed):
    """One entry and no sink: the output is that entry."""
    q, window, near, pool, chosen, sink = draw(10, **F32, W=1, T=10, K=0, seed=seed)
    near[:, 0] = torch.arange(10)
    out = check([q, window, near, pool, chosen, sink - torch.inf], **F32)
    torch.testing.assert_close(out, window[:10, None].expand_as(out), rtol=2 * UNIT, atol=0)


def test_tokens_without_entries_are_zero(seed):
    q, window, near, pool, chosen, sink = draw(3, **EDGE, W=33, seed=seed)
    near[1], chosen[1] = -1, -1
    sink[0], sink[1], sink[2] = -torch.inf, torch.inf, 200.0
    out = check([q, window, near, pool, chosen, sink], **EDGE)
    assert (out[1] == 0).all()
    assert (out[:, 1:3] == 0).all()  # a sink beyond all logits takes the whole weight
    assert (out[0, 0] != 0).all()
    empty = [q, window[:0], near * 0 - 1, pool[:0], chosen * 0 - 1, sink]
    assert (check(empty, **EDGE) == 0).all()


def test_an_entry_listed_twice_counts_twice(seed):
    q, window, near, pool, chosen, sink = draw(2, **EDGE, W=3, K=2, seed=seed)
    near[:] = torch.tensor([4, 4, 9])
    chosen[:] = torch.tensor([7, 7])
    out = check([q, window, near, pool, chosen, sink], **EDGE)
    once = run(
        op, [q, window, near[:, 1:].contiguous(), pool, chosen[:, 1:].contiguous(), sink], **EDGE
    )
    assert not torch.equal(out, once[0])


@pytest.mark.parametrize(("sizes", "chunk"), [(EDGE, 32), (WGMMA, 64)], ids=str)
def test_padding_changes_no_bit(sizes, chunk, seed):
    """Slots without an entry behind each list, within a chunk and beyond it."""
    shape = sizes["H"], sizes["D"], sizes["act"]
    q, window, near, pool, chosen, sink = draw(3, *shape, W=chunk, K=20, seed=seed)
    pad = torch.nn.functional.pad
    (expected,) = run(op, [q, window, near, pool, chosen, sink], **sizes)
    for more in (1, 12, 80):
        longer = pad(chosen, (0, more), value=-1)
        (out,) = run(op, [q, window, near, pool, longer, sink], **sizes)
        assert torch.equal(out, expected)
    (out,) = run(op, [q, window, pad(near, (0, 64), value=-1), pool, chosen, sink], **sizes)
    assert torch.equal(out, expected)


def test_where_an_entry_lies_changes_no_bit(seed):
    q, window, near, pool, chosen, sink = draw(3, **EDGE, W=32, K=20, seed=seed)
    (expected,) = run(op, [q, window, near, pool, chosen, sink], **EDGE)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    place = torch.cat([order.argsort(), torch.tensor([-1])]).int()
    (out,) = run(op, [q, window, near, pool[order], place[chosen.long()], sink], **EDGE)
    assert torch.equal(out, expected)


def test_heads_do_not_see_each_other(seed):
    q, *rest, sink = draw(3, **EDGE, W=33, K=20, seed=seed)
    (together,) = run(op, [q, *rest, sink], **EDGE)
    few = {**EDGE, "H": 3}
    (alone,) = run(op, [q[:, 7:10].contiguous(), *rest, sink[7:10].contiguous()], **few)
    assert torch.equal(alone, together[:, 7:10])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("H", [17, 64])
def test_heads_spread_over_blocks_have_the_same_bits(H, arch, seed):
    sizes = {"H": H, "D": 128, "act": "bf16"}
    inputs = draw(2, **sizes, W=33, K=20, seed=seed)
    (one,) = run(op, inputs, arch, **sizes)
    for spread in (2, 4):
        (many,) = run(op, inputs, arch, **sizes, spread=spread)
        assert torch.equal(as_bytes(many), as_bytes(one))


def test_heads_are_spread_by_a_power_of_two():
    sizes = {"H": 64, "D": 128, "act": "bf16"}
    with pytest.raises(ContractError, match="spread of a token's heads: got 3, expected 1, 2 or 4"):
        op.specialize(**sizes, spread=3).prim_func("sm_80")


@pytest.mark.parametrize("sizes", [EDGE, F32], ids=["bf16", "f32"])
def test_nan_stays_with_those_who_listed_it(sizes, seed):
    q, window, near, pool, chosen, sink = draw(4, **sizes, W=33, K=20, seed=seed)
    near[near == 5], chosen[chosen == 2] = 6, 3
    near[1, 32], chosen[2, 0] = 5, 2
    (clean,) = run(op, [q, window, near, pool, chosen, sink], **sizes)
    window[5], pool[2, 7], q[3, 4, 0] = torch.nan, torch.nan, torch.nan
    (out,) = run(op, [q, window, near, pool, chosen, sink], finite=False, **sizes)
    assert torch.equal(out[0], clean[0])
    assert out[1:3].isnan().all()
    assert out[3, 4].isnan().all()
    others = [h for h in range(17) if h != 4]
    assert torch.equal(out[3, others], clean[3, others])


@pytest.mark.parametrize("sizes", [EDGE, WGMMA], ids=str)
def test_a_token_does_not_see_its_neighbours(sizes, seed):
    inputs = draw(9, sizes["H"], sizes["D"], "bf16", W=33, K=20, seed=seed)
    assert_rows_alone(op, inputs, (0, 4, 8), **sizes)


@pytest.mark.parametrize("sizes", [EDGE, WGMMA], ids=str)
def test_schedules_agree(sizes, seed):
    inputs = draw(3, sizes["H"], sizes["D"], "bf16", W=33, K=65, seed=seed)
    assert_schedules_agree(op, inputs, **sizes)


def test_architectures_agree(seed):
    """Also blocks of 64 and of 32 heads; with wgmma sm_90a has longer chunks, so other bits."""
    narrow = {"H": 8, "D": 32, "act": "f32"}
    assert_archs_agree(op, draw(2, **narrow, W=33, K=20, seed=seed), **narrow)
    wide = {"H": 64, "D": 128, "act": "bf16"}
    others = [arch for arch in ALL if arch != "sm_90a"]
    assert_archs_agree(op, draw(2, **wide, W=33, K=20, seed=seed), others, **wide)


def test_reference_gives_a_token_nothing_of_rows_it_does_not_list(seed):
    q, window, near, pool, chosen, sink = wide(draw(4, **F32, W=6, K=5, seed=seed))
    near, chosen = near.clamp(min=1), chosen.clamp(min=1)
    near[0, 2:], chosen[0, :4] = -1, -1  # at any place of a list
    near[1], chosen[1, 1] = -1, -1
    chosen[2] = -1
    near[3], chosen[3] = -1, -1
    inputs = (q, window, near, pool, chosen, sink)
    clean = reference.sparse(*inputs)
    window[0], pool[0] = torch.nan, torch.inf  # what -1 must not become
    assert torch.equal(reference.sparse(*inputs), clean)
    assert clean[3].eq(0).all()
    for m in range(3):
        rows = torch.cat([window[near[m][near[m] > 0]], pool[chosen[m][chosen[m] > 0]]])
        weight = torch.cat([q[m] @ rows.mT * q.shape[-1] ** -0.5, sink[:, None]], 1).softmax(1)
        torch.testing.assert_close(clean[m], weight[:, :-1] @ rows)


def test_reference_works_in_pieces(seed, monkeypatch):
    inputs = draw(9, **F32, seed=seed)
    whole = reference.sparse(*inputs)
    monkeypatch.setattr(reference, "_AT_ONCE", 96 * 12 * 2)
    torch.testing.assert_close(reference.sparse(*inputs), whole, rtol=4 * UNIT, atol=4 * UNIT)


def test_reference_is_hugging_faces_attention(seed):
    from types import SimpleNamespace

    from transformers.models.deepseek_v4.modeling_deepseek_v4 import eager_attention_forward

    q, window, near, pool, chosen, sink = draw(6, **F32, seed=seed)
    near[:] = torch.arange(8)
    chosen[:] = torch.tensor([0, 3, 7, -1])
    seen = torch.zeros(6, 50, dtype=torch.bool)
    seen[:, :8] = seen[:, [40, 43, 47]] = True
    mask = torch.where(seen, 0.0, -torch.inf)[None, None]
    kv = torch.cat([window, pool])[None, None]
    module = SimpleNamespace(sinks=sink, num_key_value_groups=17, training=False)
    theirs, _ = eager_attention_forward(
        module, q.transpose(0, 1)[None], kv, kv, mask, scaling=96**-0.5, dropout=0.0, s_aux=sink
    )
    ours = reference.sparse(q, window, near, pool, chosen, sink)
    torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-6)
    assert as_bytes(ours).any()
