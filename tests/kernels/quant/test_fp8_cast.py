"""quant/fp8_cast: bit for bit its reference and ml_dtypes, at every size, format and edge."""

import pytest
import torch
from hypothesis import given

from tileproof.dsl import ContractError, formats
from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp8_cast import op

from ..support import (
    FEW,
    assert_archs_agree,
    assert_rows_alone,
    assert_schedules_agree,
    calls,
    run,
    seeds,
)
from .checks import activations, assert_matches, cast_with_ml_dtypes, with_special

EDGE = {"K": 448, "B": 64, "act": "bf16"}


@FEW
@given(call=calls(op, **EDGE), seed=seeds())
def test_every_number_of_tokens_and_distance_of_rows(call, seed):
    assert_matches(op, [activations(call["M"], 448, "bf16", seed, call["P"])], **EDGE)


@pytest.mark.parametrize(
    ("K", "B", "act"),
    [
        (32, 32, "f32"),
        (96, 32, "bf16"),
        (160, 128, "bf16"),
        (1536, 128, "f32"),
        (7168, 128, "bf16"),
    ],
)
def test_widths_groups_and_types(K, B, act, seed):
    assert_matches(op, [activations(9, K, act, seed)], K=K, B=B, act=act)


@pytest.mark.parametrize("act", ["bf16", "f32"])
def test_reference_is_that_of_ml_dtypes(act, seed):
    x = activations(65, 512, act, seed)
    q, s = reference.fp8_cast(x, 128)
    values, scales = cast_with_ml_dtypes(x, 128, formats.E4M3_MAX, 1e-4)
    assert (s.view(torch.uint8).numpy() == scales).all()
    assert (q.view(torch.uint8).numpy() == formats.round_e4m3(values)).all()


def test_every_bf16_as_the_largest_of_a_group():
    """All finite amax of bfloat16, from 0 to 3.4e38: the scale is rounded up before the codes."""
    amax = torch.arange(0x7F80, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = torch.zeros(amax.numel(), 32, dtype=torch.bfloat16)
    x[:, 5] = amax
    q, s = run(op, [x], K=32, B=32, act="bf16")
    exact = amax.double().clamp(min=1e-4) / 448
    scale = s.double()[:, 0]
    assert (scale >= exact).all()
    assert (scale / 2 < exact).all()
    assert (q.float().abs().amax(-1) <= 448).all()


def test_what_is_not_finite_makes_its_group_nan(seed):
    x = with_special(activations(5, 448, "bf16", seed), (0, 63, 64, 447))
    q, s = run(op, [x], finite=False, **EDGE)
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[0, 0] = expected[1, 0] = expected[2, 1] = expected[3, 6] = True
    assert torch.equal(s.view(torch.uint8) == 255, expected)
    assert torch.equal(q.view(torch.uint8) == 0x7F, expected.repeat_interleave(64, -1))
    assert_matches(op, [x], **EDGE)


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, [activations(67, 448, "bf16", seed)], (0, 7, 8, 66), **EDGE)


def test_schedules_agree(seed):
    assert_schedules_agree(op, [activations(9, 448, "bf16", seed)], **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, [activations(13, 448, "bf16", seed)], **EDGE)


def test_groups_are_powers_of_two():
    with pytest.raises(ContractError, match="elements of a group: got 96, expected 32, 64 or 128"):
        op.specialize(K=96, B=96)
