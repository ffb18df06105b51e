"""quant/fp4_simulate: bit for bit fp4_cast and fp4_dequant."""

import pytest

from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp4_simulate import op

from ..support import assert_archs_agree, assert_rows_alone, run
from .checks import activations, assert_matches, assert_same, with_special

EDGE = {"K": 96, "act": "bf16"}


@pytest.mark.parametrize("M", [0, 1, 32, 33])
def test_numbers_of_tokens_in_wider_rows(M, seed):
    assert_matches(op, [activations(M, 96, "bf16", seed, pitch=104)], **EDGE)


@pytest.mark.parametrize(("K", "act"), [(32, "f32"), (3072, "bf16")])
def test_widths_and_types(K, act, seed):
    assert_matches(op, [activations(9, K, act, seed)], K=K, act=act)


def test_it_is_the_cast_and_back(seed):
    x = activations(9, 96, "bf16", seed)
    assert_same(run(op, [x], **EDGE)[0], reference.fp4_dequant(*reference.fp4_cast(x)))


def test_what_is_not_finite_makes_its_group_nan(seed):
    x = with_special(activations(5, 96, "bf16", seed), (0, 31, 32, 95))
    assert_matches(op, [x], **EDGE)
    assert run(op, [x], finite=False, **EDGE)[0].isnan().sum() == 4 * 32


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, [activations(67, 96, "bf16", seed)], (0, 32, 66), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, [activations(13, 96, "bf16", seed)], **EDGE)
