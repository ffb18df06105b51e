"""moe/given_gate against fp64, the gate that chooses, itself alone, and other architectures."""

import torch
from hypothesis import given

from tileproof.kernels.moe import reference, topk_gate
from tileproof.kernels.moe.given_gate import op

from ..support import (
    FEW,
    assert_archs_agree,
    assert_rows_alone,
    assert_within,
    draw,
    run,
    seeds,
    tokens,
)
from .support import EDGE, weight_bound


@FEW
@given(M=tokens(op, tile=128), seed=seeds())
def test_every_number_of_tokens(M, seed):
    inputs = draw(op.specialize(**EDGE), M, seed)
    (weight,) = run(op, inputs, **EDGE)
    expected = reference.given_gate(inputs[0].double(), inputs[1])
    assert_within(weight, expected, weight_bound(expected))


def test_what_topk_chose_gets_the_same_bits(seed):
    logits, bias = draw(topk_gate.op.specialize(**EDGE), 33, seed)
    index, expected = run(topk_gate.op, [logits, bias], **EDGE)
    (weight,) = run(op, [logits, index], **EDGE)
    assert torch.equal(weight, expected)


def test_no_expert_has_no_weight(seed):
    logits, index = draw(op.specialize(**EDGE), 3, seed)
    index[0], index[1] = -1, torch.tensor([5, -1, 5, -1, -1, -1, -1])
    (weight,) = run(op, [logits, index], **EDGE)
    assert torch.equal(weight[0], torch.zeros(7))
    assert torch.equal(weight[1], torch.tensor([0.75, 0, 0.75, 0, 0, 0, 0]))


def test_nan_poisons_its_token_alone(seed):
    logits, index = draw(op.specialize(**EDGE), 3, seed)
    index[:] = torch.arange(7)
    logits[1, 100] = torch.nan  # not chosen
    (weight,) = run(op, [logits, index], **EDGE)
    assert weight.isfinite().all()


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, draw(op.specialize(**EDGE), 130, seed), (0, 127, 128), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 131, seed), **EDGE)
