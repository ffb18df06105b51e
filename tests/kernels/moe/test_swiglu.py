"""moe/swiglu against float64, itself alone, and other architectures."""

import pytest
import torch
from hypothesis import given

from tileproof.kernels.moe import reference
from tileproof.kernels.moe.swiglu import op

from ..support import (
    ACT_UNIT,
    FEW,
    UNIT,
    assert_archs_agree,
    assert_rows_alone,
    assert_within,
    draw,
    run,
    seeds,
    tokens,
)

EDGE = {"I": 96, "act": "bf16"}
# exp errs by two units and its sum with 1 by another, the quotient and the product by one each
ROUNDINGS = 2 + 1 + 1 + 1


def check(h, **sizes):
    (a,) = run(op, [h], **sizes)
    expected = reference.swiglu(h.double(), sizes.get("limit", 10.0))
    bound = 1.01 * ROUNDINGS * UNIT * expected.abs()
    assert_within(a, expected, bound + ACT_UNIT[sizes["act"]] * (expected.abs() + bound))


@FEW
@given(M=tokens(op), seed=seeds())
def test_every_number_of_tokens(M, seed):
    check(draw(op.specialize(**EDGE), M, seed)[0], **EDGE)


@pytest.mark.parametrize(
    ("I", "act", "limit"), [(32, "f32", 10.0), (2048, "bf16", 7.0), (3072, "f32", 10.0)]
)
def test_sizes_types_and_limits(I, act, limit, seed):  # noqa: E741
    sizes = {"I": I, "act": act, "limit": limit}
    check(draw(op.specialize(**sizes), 3, seed)[0] * 8, **sizes)


def test_the_gate_has_no_lower_bound_and_the_other_half_has():
    h = torch.zeros(4, 192)
    h[0, :96], h[0, 96:] = 50.0, 50.0
    h[1, :96], h[1, 96:] = 50.0, -50.0
    h[2, :96], h[2, 96:] = -12.0, 1.0
    h[3, :96], h[3, 96:] = -torch.inf, 1.0
    a = run(op, [h], finite=False, I=96, act="f32")[0][:, 0]
    largest = 10 / (1 + torch.exp(torch.tensor(-10.0, dtype=torch.float64)))
    below = -12 / (1 + torch.exp(torch.tensor(12.0, dtype=torch.float64)))
    expected = torch.stack([10 * largest, -10 * largest, below])
    assert_within(a[:3], expected, 6 * UNIT * expected.abs())
    assert a[3].isnan()  # as of torch's silu


def test_nan_and_infinity_stay_in_their_place():
    h = torch.ones(3, 192, dtype=torch.bfloat16)
    h[0, 5], h[1, 96 + 7], h[2, 9] = torch.nan, torch.nan, torch.inf
    (a,) = run(op, [h], finite=False, **EDGE)
    assert a.isnan().nonzero().tolist() == [[0, 5], [1, 7]]
    assert a[2, 9] == 10


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, draw(op.specialize(**EDGE), 9, seed), (0, 8), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 9, seed), **EDGE)
