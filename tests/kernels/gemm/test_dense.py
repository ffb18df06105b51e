"""gemm/dense against float64, itself alone, and itself on other architectures."""

import pytest
import torch
from hypothesis import given

from tileproof.kernels.gemm.dense import op

from ..support import (
    ACT_UNIT,
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

N = 72
EDGE = {"K": 112, "act": "bf16", "out": "f32"}


def check(inputs, **sizes):
    """Any order of a sum of K products errs by at most K units of the sum of their magnitudes.

    The products of bfloat16 are exact. A float32 is cut into three parts: what the three smallest
    products of parts would add is below 3 units of 2^-24, and the two sums are joined by one more.
    """
    (y,) = run(op, inputs, **sizes)
    x, w = (t.double() for t in inputs)
    steps = sizes["K"] + (4 if sizes["act"] == "f32" else 0)
    magnitude = x.abs() @ w.abs().mT
    bound = magnitude * steps * UNIT
    expected = x @ w.mT
    assert_within(y, expected, bound + ACT_UNIT[sizes["out"]] * (expected.abs() + bound))


@FEW
@given(M=tokens(op, tile=64, cap=130), seed=seeds())
def test_every_number_of_tokens(M, seed):
    check(draw(op.specialize(**EDGE), M, seed, N=N), **EDGE)


@pytest.mark.parametrize(
    ("N", "K", "act", "out"),
    [
        (8, 16, "bf16", "bf16"),
        (64, 64, "f32", "f32"),
        (24, 4096, "bf16", "f32"),
        (136, 1040, "f32", "f32"),
    ],
)
def test_sizes_and_types(N, K, act, out, seed):
    sizes = {"K": K, "act": act, "out": out}
    check(draw(op.specialize(**sizes), 5, seed, N=N), **sizes)


def test_small_integers_are_exact(seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randint(-8, 9, (rows, 112), generator=generator) for rows in (70, 72))
    (y,) = run(op, [x.bfloat16(), w.bfloat16()], **EDGE)
    assert torch.equal(y, (x @ w.mT).float())


def test_nan_and_infinity_stay_in_their_row(seed):
    x, w = draw(op.specialize(**EDGE), 9, seed, N=N)
    (clean,) = run(op, [x, w], **EDGE)
    x[3, 5], x[4, 6] = torch.nan, torch.inf
    (y,) = run(op, [x, w], finite=False, **EDGE)
    assert y[3].isnan().all() and not y[4].isfinite().any()
    others = [m for m in range(9) if m not in (3, 4)]
    assert torch.equal(y[others], clean[others])


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, draw(op.specialize(**EDGE), 67, seed, N=N), (0, 63, 64, 66), **EDGE)


def test_float32_tokens_do_not_see_their_neighbours(seed):
    sizes = {"K": 48, "act": "f32", "out": "f32"}
    assert_rows_alone(op, draw(op.specialize(**sizes), 67, seed, N=16), (0, 66), **sizes)


def test_schedules_agree(seed):
    assert_schedules_agree(op, draw(op.specialize(**EDGE), 9, seed, N=N), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 66, seed, N=N), **EDGE)
