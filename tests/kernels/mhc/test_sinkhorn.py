"""mhc/sinkhorn against fp64, the defining properties, itself alone, and other architectures."""

import pytest
import torch
from hypothesis import given

from tileproof.kernels.mhc import reference
from tileproof.kernels.mhc.sinkhorn import op

from ..support import (
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

EDGE = {"N": 3, "D": 96}


def inputs_of(spec, M, seed):
    """Sums as the projection leaves them: coefficients of a few units after the norm."""
    partial, sqrsum, scale, base = draw(spec, M, seed)
    K = spec.dims["N"] * spec.dims["D"]
    return [3 * partial / len(partial) ** 0.5, sqrsum.abs() * K / len(partial), scale, base]


def check(inputs, N, D, iters=20):
    partial = inputs[0]
    pre, post, comb = run(op, inputs, N=N, D=D, iters=iters)
    wide = [t.double() for t in inputs]
    expected = reference.sinkhorn(*wide, D, iters)
    S = len(partial)
    # z = (sum partial) r scale + base: S sums, and about six more roundings, of these magnitudes
    factor = 1 / torch.sqrt(wide[1].sum(0) / (N * D) + 1e-6)
    size = wide[0].abs().sum(0) * factor[:, None] * wide[2].abs().max() + wide[3].abs()
    z = (2 * S + 8) * UNIT * size.amax(1) if len(size.flatten()) else size.sum(1)
    # a sigmoid and an exponential (2 units) carry an absolute error of z as a relative one
    gate = (z + 8 * UNIT)[:, None]
    assert_within(pre, expected[0], 1.01 * gate * expected[0])
    assert_within(post, expected[1], 1.01 * gate * expected[1])
    # Each normalization is N sums, eps, a reciprocal and a product, and does not expand what came
    # before in the projective metric: entries differ by at most twice the sum of the errors.
    relative = 2 * (2 * z + (2 * iters * (N + 3) + 8) * UNIT)[:, None, None]
    assert_within(comb, expected[2], 1.01 * relative * expected[2])


@FEW
@given(M=tokens(op), seed=seeds())
def test_every_number_of_tokens(M, seed):
    spec = op.specialize(**EDGE)
    check(inputs_of(spec, M, seed), **EDGE)


@pytest.mark.parametrize(("N", "D", "iters"), [(4, 64, 20), (4, 512, 1), (8, 320, 3)])
def test_streams_splits_and_iterations(N, D, iters, seed):
    spec = op.specialize(N=N, D=D, iters=iters)
    check(inputs_of(spec, 35, seed), N=N, D=D, iters=iters)


def test_columns_of_comb_sum_to_one(seed):
    spec = op.specialize(**EDGE)
    _, _, comb = run(op, inputs_of(spec, 65, seed), **EDGE)
    # the last step divides by the column sum + 1e-6, at most 3 units off
    assert_within(comb.sum(1), torch.ones(65, 3), 1.2e-6)


def test_huge_logits_stay_finite():
    spec = op.specialize(**EDGE)
    partial, sqrsum, scale, base = inputs_of(spec, 4, 0)
    for sign in (1, -1):
        outputs = run(op, [partial * 1e6 * sign, sqrsum, scale, base], **EDGE)
        assert all(o.isfinite().all() for o in outputs)


def test_schedules_agree(seed):
    assert_schedules_agree(op, inputs_of(op.specialize(**EDGE), 37, seed), **EDGE)


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = inputs_of(op.specialize(**EDGE), 67, seed)
    assert_rows_alone(op, inputs, (0, 31, 32, 66), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, inputs_of(op.specialize(**EDGE), 37, seed), **EDGE)
