"""norm/rmsnorm_fp8 is norm/rmsnorm, then quant/fp8_cast of its result, bit for bit."""

import pytest
import torch
from hypothesis import given

from tileproof.kernels.norm import rmsnorm
from tileproof.kernels.norm.rmsnorm_fp8 import op
from tileproof.kernels.quant import fp8_cast

from ..quant.checks import activations, assert_same
from ..support import (
    FEW,
    assert_archs_agree,
    assert_rows_alone,
    assert_schedules_agree,
    calls,
    draw,
    run,
    seeds,
)

EDGE = {"D": 96, "weight": "f32"}


def check(inputs, D, weight):
    got = run(op, inputs, finite=False, D=D, weight=weight)
    (y,) = run(rmsnorm.op, inputs, finite=False, D=D, weight=weight, act="bf16")
    cast = run(fp8_cast.op, [y], finite=False, K=D, B=128, act="bf16")
    for mine, other in zip(got, (y, *cast), strict=True):
        assert_same(mine, other)


@FEW
@given(call=calls(op, **EDGE), seed=seeds())
def test_every_number_of_tokens_and_distance_of_rows(call, seed):
    check(draw(op.specialize(**EDGE), seed=seed, **call), **EDGE)


@pytest.mark.parametrize(
    ("D", "weight"), [(32, "bf16"), (128, "f32"), (1536, "bf16"), (7168, "f32")]
)
def test_widths_and_types(D, weight, seed):
    x = activations(9, D, "bf16", seed % 2**31, pitch=D + 8)
    _, w = draw(op.specialize(D=D, weight=weight), 1, seed)
    check([x, w], D, weight)


def test_a_row_that_is_not_finite_has_no_scale(seed):
    x, w = draw(op.specialize(**EDGE), 5, seed)
    x[1, 3], x[2, 7] = torch.nan, torch.inf
    check([x, w], **EDGE)
    _, q, s = run(op, [x, w], finite=False, **EDGE)
    assert (s.view(torch.uint8)[[1, 2]] == 255).all() and q.float()[[1, 2]].isnan().all()
    assert q.float()[[0, 3, 4]].isfinite().all()


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, draw(op.specialize(**EDGE), 67, seed), (0, 7, 66), **EDGE)


def test_schedules_agree(seed):
    assert_schedules_agree(op, draw(op.specialize(**EDGE), 9, seed), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 33, seed), **EDGE)
