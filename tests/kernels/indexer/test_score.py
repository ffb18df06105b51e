"""indexer/score against fp64: heads, ragged requests, special values; alone and on all archs."""

import pytest
import torch

from tileproof.kernels.indexer import reference
from tileproof.kernels.indexer.score import op

from ..support import (
    UNIT,
    assert_archs_agree,
    assert_schedules_agree,
    assert_within,
    run,
)

EDGE = {"H": 5, "D": 48}
ACT = {"bf16": torch.bfloat16, "f32": torch.float32}


def draw(M, S, L, seed, act="bf16", H=5, D=48):
    """Tokens of two requests, whose keys lie behind each other; each sees some of them."""
    torch.manual_seed(seed)
    q, k = (torch.randn(shape).to(ACT[act]) for shape in ((M, H, D), (L, D)))
    first = torch.where(torch.arange(M) < M // 2, 0, L // 2).to(torch.int32)
    count = torch.randint(0, min(S, L - L // 2) + 1, (M,), dtype=torch.int32)
    return [q, k, torch.randn(M, H), first, count]


def scores(inputs, S, act="bf16", **how):
    H, D = inputs[0].shape[1:]
    (score,) = run(op, inputs, S=S, H=H, D=D, act=act, **how)
    return score


def check(inputs, S, act="bf16", **how):
    got = scores(inputs, S, act, **how)
    q, k, weight, first, count = inputs
    H, D = q.shape[1:]
    expected = reference.score(q.double(), k.double(), weight.double(), first, count, S)
    assert torch.equal(got.isneginf(), expected.isneginf())
    # D products (nine parts each in f32), their sums, and H + 2 roundings of the sum over heads,
    # each relative to the sum of magnitudes
    magnitudes = reference.score(
        q.double().abs(), k.double().abs(), weight.double().abs(), first, count, S
    )
    bound = ((9 if act == "f32" else 1) * D + H + 4) * UNIT * magnitudes
    seen = expected.isfinite()
    assert_within(got[seen], expected[seen], bound[seen])
    return got


@pytest.mark.parametrize("act", ACT)
@pytest.mark.parametrize("S", [4, 64, 132, 516, 1028])
def test_numbers_of_keys(S, act, seed):
    check(draw(5, S, 2 * S + 1, seed, act), S, act, checked=S == 132)


@pytest.mark.parametrize(("H", "D"), [(2, 16), (64, 128)])
@pytest.mark.parametrize("act", ACT)
def test_heads(H, D, act, seed):
    check(draw(3, 132, 300, seed, act, H, D), 132, act)


def test_small_integers_are_exact(seed):
    torch.manual_seed(seed)
    inputs = draw(4, 132, 300, seed, H=4, D=16)  # the scale is 1/8
    inputs[:3] = [torch.randint(-4, 5, t.shape).to(t.dtype) for t in inputs[:3]]
    got = scores(inputs, 132)
    q, k, weight, first, count = inputs
    assert torch.equal(got, reference.score(q, k, weight, first, count, 132))


@pytest.mark.parametrize(("M", "S", "L"), [(0, 8, 8), (3, 0, 8), (3, 8, 0)])
def test_nothing(M, S, L):
    q, k = torch.ones(M, 5, 48).bfloat16(), torch.ones(L, 48).bfloat16()
    none = torch.zeros(M, dtype=torch.int32)
    got = scores([q, k, torch.ones(M, 5), none, none + 8], S)
    assert got.shape == (M, S)
    assert (got[:, L:] == -torch.inf).all()


def test_ranges_outside_the_keys_are_cut(seed):
    q, k, weight, _, _ = draw(6, 132, 200, seed)
    first = torch.tensor([-7, 0, 190, 200, 1 << 30, -(1 << 31)], dtype=torch.int32)
    count = torch.tensor([3, 1 << 30, 132, 5, 5, -(1 << 31)], dtype=torch.int32)
    got = check([q, k, weight, first, count], 132)
    assert got.isfinite().sum(dim=1).tolist() == [3, 132, 10, 0, 0, 0]


def test_nan_and_infinity_reach_the_score_of_their_key_alone(seed):
    q, k, weight, first, count = draw(2, 132, 132, seed)
    first[:], count[:] = 0, 132
    clean = scores([q, k, weight, first, count], 132)
    k[5, 7], k[9, 0], k[11, 3] = torch.nan, torch.inf, -torch.inf
    got = scores([q, k, weight, first, count], 132, finite=False)
    expected = reference.score(q, k, weight, first, count, 132)
    assert got[:, 5].isnan().all()
    bad = [5, 9, 11]
    assert torch.equal(got[:, bad].isnan(), expected[:, bad].isnan())
    others = [s for s in range(132) if s not in bad]
    assert torch.equal(got[:, others], clean[:, others])


@pytest.mark.parametrize("act", ACT)
def test_a_score_does_not_depend_on_batch_or_length(act, seed):
    inputs = draw(4, 260, 600, seed, act)
    together = scores(inputs, 260, act)
    for m in range(4):
        q, k, weight, first, count = inputs
        one = slice(m, m + 1)
        begin, seen = int(first[m]), int(count[m])
        keys = k[begin : begin + seen].contiguous()
        alone = [q[one], keys, weight[one], first[one] * 0, count[one]]
        assert torch.equal(scores(alone, 260, act), together[one])


@pytest.mark.parametrize("act", ACT)
def test_schedules_agree(act, seed):
    assert_schedules_agree(op, draw(3, 132, 300, seed, act), S=132, act=act, **EDGE)


@pytest.mark.parametrize("act", ACT)
def test_architectures_agree(act, seed):
    assert_archs_agree(op, draw(2, 132, 300, seed, act), S=132, act=act, **EDGE)


def test_reference_is_hugging_faces_scorer(seed):
    from transformers.models.deepseek_v4 import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4IndexerScorer

    torch.manual_seed(seed)
    config = DeepseekV4Config(hidden_size=32, index_n_heads=4, index_head_dim=16)
    scorer = DeepseekV4IndexerScorer(config)
    q, k, hidden = torch.randn(1, 6, 4, 16), torch.randn(1, 9, 16), torch.randn(1, 6, 32)
    theirs = scorer(q, k, hidden)[0]
    count = torch.full((6,), 9, dtype=torch.int32)
    ours = reference.score(q[0], k[0], scorer.weights_proj(hidden)[0], count * 0, count, 9)
    torch.testing.assert_close(ours, theirs, rtol=64 * UNIT, atol=64 * UNIT)
