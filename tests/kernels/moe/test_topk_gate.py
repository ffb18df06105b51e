"""moe/topk_gate against fp64, Hugging Face's router, itself alone, and other architectures."""

import pytest
import torch
from hypothesis import given

from tileproof.dsl import ContractError
from tileproof.kernels.moe import reference
from tileproof.kernels.moe.topk_gate import op

from ..support import (
    FEW,
    UNIT,
    assert_archs_agree,
    assert_rows_alone,
    assert_schedules_agree,
    assert_within,
    draw,
    run,
    seeds,
    tokens,
)
from .support import EDGE, SCORE, weight_bound


def check(inputs, E, K, scale=1.5):
    index, weight = run(op, inputs, E=E, K=K, scale=scale)
    logits, bias = inputs
    # the choice is exact on the float32 scores, which differ from float64's in their last bits
    chosen, _ = reference.topk_gate(logits, bias, K, scale)
    biased = reference.scores(logits.double()) + bias
    gap = (biased.gather(1, chosen) - biased.gather(1, index)).abs()
    assert_within(gap, 0 * gap, 2 * (SCORE + 1) * UNIT * biased.abs().amax(1, keepdim=True))
    expected = reference.given_gate(logits.double(), index, scale)
    assert_within(weight, expected, weight_bound(expected))
    return index, weight


@FEW
@given(M=tokens(op), seed=seeds())
def test_every_number_of_tokens(M, seed):
    check(draw(op.specialize(**EDGE), M, seed), **EDGE)


@pytest.mark.parametrize(
    ("E", "K", "scale"), [(8, 2, 1.5), (1, 1, 1.0), (256, 6, 1.5), (384, 6, 2.5), (32, 32, 1.5)]
)
def test_experts_and_choices(E, K, scale, seed):
    sizes = {"E": E, "K": K, "scale": scale}
    index, weight = check(draw(op.specialize(**sizes), 33, seed), **sizes)
    assert all(len(set(row.tolist())) == K for row in index), "an expert was chosen twice"
    assert_within(weight.double().sum(1), torch.full((33,), scale), scale * (K + 4) * UNIT)


def test_of_equal_scores_the_lower_index_is_chosen_first():
    logits = torch.zeros(3, 130)
    logits[1, 5], logits[2, [128, 129, 7]] = 1.0, 2.0
    index, _ = run(op, [logits, torch.zeros(130)], **EDGE)
    assert index[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert index[1].tolist() == [5, 0, 1, 2, 3, 4, 6]
    assert index[2].tolist() == [7, 128, 129, 0, 1, 2, 3]


def test_bias_selects_and_does_not_weigh(seed):
    logits, bias = draw(op.specialize(**EDGE), 5, seed)
    bias[17] = 100.0
    index, weight = check([logits, bias], **EDGE)
    assert (index[:, 0] == 17).all()
    given = reference.given_gate(logits.double(), index)
    assert_within(weight, given, weight_bound(given))


def test_negative_and_infinite_sums_are_ordered_as_numbers():
    logits = torch.zeros(1, 130)
    bias = -torch.arange(130.0)
    bias[100], bias[50] = torch.inf, -torch.inf
    index, _ = run(op, [logits, bias], **EDGE)
    assert index[0].tolist() == [100, 0, 1, 2, 3, 4, 5]
    bias = torch.full((130,), -torch.inf)
    index, _ = run(op, [logits, bias], **EDGE)
    assert index[0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_nan_is_chosen_first_and_poisons_its_token_alone(seed):
    from tileproof.codegen import virtual

    spec = op.specialize(**EDGE)
    logits, bias = draw(spec, 6, seed)
    logits[2, 77] = torch.nan
    logits[2, 12] = -torch.nan
    index, weight = torch.empty(6, 7, dtype=torch.int64), torch.empty(6, 7)
    virtual.compile(spec, "sm_80")(logits, bias, index, weight)
    assert index[2, :2].tolist() == [12, 77]
    assert weight[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert weight[others].isfinite().all()
    expected, _ = reference.topk_gate(logits, bias, 7)
    assert torch.equal(index, expected)


def test_large_logits_stay_finite():
    logits = torch.full((2, 130), 1e30)
    logits[1] = -1e30
    index, weight = run(op, [logits, torch.zeros(130)], **EDGE)
    assert torch.equal(index, torch.arange(7).expand(2, 7))
    assert_within(weight[0], torch.full((7,), 1.5 / 7), 1.5 / 7 * 8 * UNIT)
    assert (weight[1] == 0).all()  # all scores are 0, and so is their share


def test_more_choices_than_experts_are_refused():
    with pytest.raises(ContractError, match="experts of a token: got 9, expected at most E = 8"):
        op.specialize(E=8, K=9).prim_func("sm_80")


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, draw(op.specialize(**EDGE), 67, seed), (0, 3, 4, 66), **EDGE)


def test_schedules_agree(seed):
    assert_schedules_agree(op, draw(op.specialize(**EDGE), 37, seed), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 13, seed), **EDGE)


def test_reference_is_hugging_faces_router(seed):
    from transformers.models.deepseek_v4 import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4TopKRouter

    torch.manual_seed(seed)
    config = DeepseekV4Config(hidden_size=32, n_routed_experts=16, num_experts_per_tok=3)
    router = DeepseekV4TopKRouter(config)
    router.weight.data.normal_()
    router.e_score_correction_bias.normal_()
    logits, weight, index = router(torch.randn(9, 32))
    ours, ours_weight = reference.topk_gate(
        logits, router.e_score_correction_bias, 3, config.routed_scaling_factor
    )
    # Hugging Face leaves the order of the choice open
    order, theirs = ours.argsort(1), index.argsort(1)
    assert torch.equal(ours.gather(1, order), index.gather(1, theirs))
    torch.testing.assert_close(
        ours_weight.gather(1, order), weight.gather(1, theirs), rtol=16 * UNIT, atol=0
    )
