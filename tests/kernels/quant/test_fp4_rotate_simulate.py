"""quant/fp4_rotate_simulate: bit for bit the rotation and fp4_simulate."""

import pytest

from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp4_rotate_simulate import op

from ..support import assert_archs_agree, assert_rows_alone, assert_schedules_agree, run
from .checks import assert_matches, assert_same
from .test_fp4_rotate_cast import rows

EDGE = {"K": 384}


@pytest.mark.parametrize(("M", "K"), [(0, 384), (1, 384), (33, 128), (9, 1024)])
def test_tokens_and_widths(M, K, seed):
    assert_matches(op, [rows(M, K, seed)], K=K)


def test_it_is_the_cast_and_back(seed):
    x = rows(9, 384, seed)
    expected = reference.fp4_dequant(*reference.fp4_rotate_cast(x))
    assert_same(run(op, [x], **EDGE)[0], expected)


def test_what_is_not_finite_spreads_over_its_128(seed):
    x = rows(3, 384, seed)
    x[1, 128] = float("nan")
    assert run(op, [x], finite=False, **EDGE)[0].isnan().sum() == 128
    assert_matches(op, [x], **EDGE)


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, [rows(67, 384, seed)], (0, 8, 66), **EDGE)


def test_schedules_agree(seed):
    assert_schedules_agree(op, [rows(19, 384, seed)], **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, [rows(13, 384, seed)], **EDGE)
