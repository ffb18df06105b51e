"""quant/fp4_cast: bit for bit its reference and ml_dtypes, at every size, tie and edge."""

import pytest
import torch
from hypothesis import given

from tileproof.dsl import formats
from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp4_cast import op

from ..support import FEW, assert_archs_agree, assert_rows_alone, calls, run, seeds
from .checks import activations, assert_matches, cast_with_ml_dtypes, with_special

EDGE = {"K": 96, "act": "bf16"}


@FEW
@given(call=calls(op, **EDGE), seed=seeds())
def test_every_number_of_tokens_and_distance_of_rows(call, seed):
    assert_matches(op, [activations(call["M"], 96, "bf16", seed, call["P"])], **EDGE)


@pytest.mark.parametrize(("K", "act"), [(32, "f32"), (160, "bf16"), (7168, "bf16")])
def test_widths_and_types(K, act, seed):
    assert_matches(op, [activations(9, K, act, seed)], K=K, act=act)


@pytest.mark.parametrize("act", ["bf16", "f32"])
def test_reference_is_that_of_ml_dtypes(act, seed):
    x = activations(65, 512, act, seed)
    q, s = reference.fp4_cast(x)
    values, scales = cast_with_ml_dtypes(x, 32, formats.E2M1_MAX, 6 * 2.0**-126)
    assert (s.view(torch.uint8).numpy() == scales).all()
    assert (q.numpy() == formats.pack_e2m1(formats.round_e2m1(values))).all()


def test_ties_go_to_the_even_code():
    """Halfway between codes, and the float32 just beside it (spec §6.1)."""
    x = torch.zeros(3, 32)
    x[:, 0] = 6  # the scale is 1
    halfway = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    x[0, 1:8] = halfway.nextafter(torch.tensor(0.0))
    x[1, 1:8] = halfway
    x[2, 1:8] = halfway.nextafter(torch.tensor(9.0))
    x[:, 9:16] = -x[:, 1:8]
    q, _ = run(op, [x], K=32, act="f32")
    codes = torch.from_numpy(formats.unpack_e2m1(q.numpy()))
    assert codes[:, 1:8].tolist() == [[*range(7)], [0, 2, 2, 4, 4, 6, 6], [*range(1, 8)]]
    assert torch.equal(codes[:, 9:16], codes[:, 1:8] + 8)


def test_every_bf16_as_the_largest_of_a_group():
    amax = torch.arange(0x7F80, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = torch.zeros(amax.numel(), 32, dtype=torch.bfloat16)
    x[:, 5] = amax
    _, s = run(op, [x], K=32, act="bf16")
    exact = amax.double().clamp(min=6 * 2.0**-126) / 6
    assert (s.double()[:, 0] >= exact).all()
    assert (s.double()[:, 0] / 2 < exact).all()


def test_what_is_not_finite_makes_its_group_nan(seed):
    x = with_special(activations(5, 96, "bf16", seed), (0, 31, 32, 95))
    q, s = run(op, [x], finite=False, **EDGE)
    expected = torch.zeros(5, 3, dtype=torch.bool)
    expected[0, 0] = expected[1, 0] = expected[2, 1] = expected[3, 2] = True
    assert torch.equal(s.view(torch.uint8) == 255, expected)
    assert (q[expected.repeat_interleave(16, -1)] == 0x77).all()
    assert_matches(op, [x], **EDGE)


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, [activations(67, 96, "bf16", seed)], (0, 31, 32, 66), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, [activations(13, 96, "bf16", seed)], **EDGE)
