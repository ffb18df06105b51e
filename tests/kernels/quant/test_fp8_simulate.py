"""quant/fp8_simulate: bit for bit fp8_cast and fp8_dequant."""

import pytest
import torch

from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp8_simulate import op

from ..support import assert_archs_agree, assert_rows_alone, run
from .checks import activations, assert_matches, assert_same, with_special

EDGE = {"K": 448, "B": 64, "act": "bf16"}


@pytest.mark.parametrize("M", [0, 1, 4, 5, 33])
def test_numbers_of_tokens_in_rows_of_512(M, seed):
    assert_matches(op, [activations(M, 448, "bf16", seed, pitch=512)], **EDGE)


@pytest.mark.parametrize(
    ("K", "B", "act"), [(96, 32, "f32"), (160, 128, "bf16"), (4096, 128, "bf16")]
)
def test_widths_groups_and_types(K, B, act, seed):
    assert_matches(op, [activations(9, K, act, seed)], K=K, B=B, act=act)


def test_it_is_the_cast_and_back(seed):
    x = activations(9, 448, "bf16", seed)
    (y,) = run(op, [x], **EDGE)
    assert_same(y, reference.fp8_dequant(*reference.fp8_cast(x, 64), 64))


def test_it_changes_nothing_twice(seed):
    (once,) = run(op, [activations(9, 448, "bf16", seed)], **EDGE)
    (twice,) = run(op, [once], **EDGE)
    assert torch.equal(once, twice)


def test_what_is_not_finite_makes_its_group_nan(seed):
    x = with_special(activations(5, 448, "bf16", seed), (0, 63, 64, 447))
    assert_matches(op, [x], **EDGE)
    assert run(op, [x], finite=False, **EDGE)[0].isnan().sum() == 4 * 64


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, [activations(67, 448, "bf16", seed)], (0, 7, 66), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, [activations(13, 448, "bf16", seed)], **EDGE)
