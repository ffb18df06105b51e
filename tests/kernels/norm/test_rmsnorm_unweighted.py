"""norm/rmsnorm_unweighted against fp64, HF's module, itself alone, and other architectures."""

import pytest
import torch
from hypothesis import given

from tileproof.kernels.norm import reference
from tileproof.kernels.norm.rmsnorm_unweighted import op

from ..support import (
    FEW,
    UNIT,
    assert_archs_agree,
    assert_rows_alone,
    assert_within,
    calls,
    draw,
    run,
    seeds,
)
from .test_rmsnorm import bound

EDGE = {"D": 96, "act": "bf16"}


def check(inputs, D, act):
    (y,) = run(op, inputs, D=D, act=act)
    expected = reference.rmsnorm_unweighted(inputs[0].double())
    assert_within(y, expected, bound(expected, D, act))


@FEW
@given(call=calls(op, **EDGE), seed=seeds())
def test_every_number_of_tokens_and_distance_of_rows(call, seed):
    check(draw(op.specialize(**EDGE), seed=seed, **call), **EDGE)


@pytest.mark.parametrize(("D", "act"), [(32, "f32"), (512, "bf16")])
def test_widths_and_types(D, act, seed):
    check(draw(op.specialize(D=D, act=act), 65, seed), D, act)


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = draw(op.specialize(**EDGE), 67, seed)
    assert_rows_alone(op, inputs, (0, 7, 8, 66), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 13, seed), **EDGE)


def test_reference_is_the_formula_of_hugging_face(seed):
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4UnweightedRMSNorm

    torch.manual_seed(seed)
    x = torch.randn(5, 96)
    expected = DeepseekV4UnweightedRMSNorm(1e-5)(x)
    torch.testing.assert_close(
        reference.rmsnorm_unweighted(x, 1e-5), expected, rtol=8 * UNIT, atol=0
    )
