"""norm/rmsnorm against fp64, HF's module, itself alone, and itself on other architectures."""

import pytest
import torch
from hypothesis import given

from tileproof.kernels.norm import reference
from tileproof.kernels.norm.rmsnorm import op

from ..support import (
    ACT_UNIT,
    FEW,
    UNIT,
    assert_archs_agree,
    assert_rows_alone,
    assert_schedules_agree,
    assert_within,
    calls,
    draw,
    run,
    seeds,
)

EDGE = {"D": 96, "act": "bf16", "weight": "f32"}


def bound(expected, D, act):
    """Any order of a sum of D squares errs by at most D units; half of that reaches its root.

    Six more roundings: mean, eps, root, reciprocal, two products; then the cast, whose own unit is
    relative to a value already off by the rest (hence the 1.01).
    """
    return expected.abs() * 1.01 * ((D / 2 + 6) * UNIT + ACT_UNIT[act])


def check(inputs, D, act, weight):
    (y,) = run(op, inputs, D=D, act=act, weight=weight)
    x, w = inputs
    expected = reference.rmsnorm(x.double(), w)
    assert_within(y, expected, bound(expected, D, act))


@FEW
@given(call=calls(op, **EDGE), seed=seeds())
def test_every_number_of_tokens_and_distance_of_rows(call, seed):
    check(draw(op.specialize(**EDGE), seed=seed, **call), **EDGE)


@pytest.mark.parametrize(
    ("D", "act", "weight"),
    [
        (16, "bf16", "f32"),
        (64, "f32", "bf16"),
        (512, "bf16", "bf16"),
        (4096, "bf16", "f32"),
        (7168, "f32", "f32"),
    ],
)
def test_widths_and_types(D, act, weight, seed):
    sizes = {"D": D, "act": act, "weight": weight}
    check(draw(op.specialize(**sizes), 9, seed), **sizes)


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = draw(op.specialize(**EDGE), 67, seed)
    assert_rows_alone(op, inputs, (0, 7, 8, 66), **EDGE)


def test_schedules_agree(seed):
    sizes = {"D": 4096, "act": "bf16", "weight": "f32"}
    assert_schedules_agree(op, draw(op.specialize(**sizes), 9, seed), **sizes)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 13, seed), **EDGE)


def test_reference_is_the_formula_of_hugging_face(seed):
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RMSNorm

    torch.manual_seed(seed)
    module = DeepseekV4RMSNorm(96, eps=1e-5)
    module.weight.data.normal_()
    x = torch.randn(5, 96)
    # HF takes rsqrt, we the reciprocal of the root: one unit apart, in bf16 the same but for ties
    torch.testing.assert_close(
        reference.rmsnorm(x, module.weight, 1e-5), module(x), rtol=8 * UNIT, atol=0
    )


def test_zero_row_stays_zero():
    x = torch.zeros(3, 96, dtype=torch.bfloat16)
    (y,) = run(op, [x, torch.ones(96)], **EDGE)
    assert torch.equal(y, x)
