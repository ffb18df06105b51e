"""mhc/prenorm_gemm: exact where it can be exact, bounded elsewhere, one order everywhere."""

import pytest
import torch
from hypothesis import given

from tileproof.kernels.mhc import _prenorm, reference
from tileproof.kernels.mhc.prenorm_gemm import op

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

EDGE = {"N": 3, "D": 96, "C": 15, "act": "bf16"}


def check(inputs, **sizes):
    x, fn = inputs
    partial, sqrsum = run(op, inputs, **sizes)
    expected, squares = reference.prenorm_gemm(x.double(), fn.double())
    terms, _ = reference.prenorm_gemm(x.double().abs(), fn.double().abs())
    # The matrix instruction adds products one at a time at worst, each time off by less than one
    # unit in the last place (hardware truncates: two units of rounding); f32 activations bring
    # three times as many products.
    N = sizes["N"]
    length = N * _prenorm.split_length(N, sizes["D"]) * (3 if sizes["act"] == "f32" else 1)
    assert_within(partial, expected, 2 * (length + 3) * UNIT * terms)
    # a running sum takes an eighth of the columns; then seven more sums, and the products
    assert_within(sqrsum, squares, (length / 8 + 8) * UNIT * squares)


@FEW
@given(M=tokens(op, tile=64), seed=seeds())
def test_every_number_of_tokens(M, seed):
    check(draw(op.specialize(**EDGE), M, seed), **EDGE)


@pytest.mark.parametrize(
    ("N", "D", "C", "act"), [(4, 288, 24, "f32"), (4, 544, 4, "bf16"), (8, 32, 80, "bf16")]
)
def test_splits_widths_and_types(N, D, C, act, seed):
    sizes = {"N": N, "D": D, "C": C, "act": act}
    check(draw(op.specialize(**sizes), 37, seed), **sizes)


@pytest.mark.parametrize("act", ["bf16", "f32"])
def test_weights_are_exact_to_the_last_bit_of_float32(act, seed):
    """One-hot activations pick single weights: every part of a float32 must take part."""
    N, D, C = 4, 288, 24
    _, fn = draw(op.specialize(N=N, D=D, C=C, act=act), 1, seed)
    columns = torch.arange(0, N * D, 11)
    x = torch.zeros(len(columns), N * D, dtype=torch.bfloat16 if act == "bf16" else torch.float32)
    x[torch.arange(len(columns)), columns] = 1
    partial, sqrsum = run(op, [x.view(-1, N, D), fn], N=N, D=D, C=C, act=act)
    assert torch.equal(partial.sum(0), fn[:, columns].T)
    assert torch.equal(sqrsum.sum(0), torch.ones(len(columns)))


def test_activations_are_exact_to_the_last_bit_of_float32(seed):
    """A one-hot weight row picks single activations."""
    N, D, C = 4, 288, 24
    x, fn = draw(op.specialize(N=N, D=D, C=C, act="f32"), 5, seed)
    columns = torch.arange(C) * 47
    fn = torch.zeros_like(fn)
    fn[torch.arange(C), columns] = 1
    partial, _ = run(op, [x, fn], N=N, D=D, C=C, act="f32")
    torch.testing.assert_close(partial.sum(0), x.flatten(1)[:, columns], rtol=2 * UNIT, atol=0)


def test_squares_are_summed_in_the_stated_order(seed):
    N, D = 4, 288
    x, fn = draw(op.specialize(N=N, D=D, C=24, act="f32"), 5, seed)
    _, sqrsum = run(op, [x, fn], N=N, D=D, C=24, act="f32")
    length = _prenorm.split_length(N, D)
    padded = torch.nn.functional.pad(x, (0, length * len(sqrsum) - D))
    groups = padded.square().view(5, N, len(sqrsum), length // 64, 8, 8)
    running = torch.zeros(5, len(sqrsum), 8)
    for t in range(length // 64):
        for n in range(N):
            for e in range(8):
                running = running + groups[:, n, :, t, :, e]
    total = running[..., 0]
    for g in range(1, 8):
        total = total + running[..., g]
    assert torch.equal(sqrsum, total.T)


@pytest.mark.parametrize("N", range(2, 9))
def test_splits_cover_the_channels(N):
    for D in range(32, 16416, 32):
        S, length = _prenorm.splits(N, D), _prenorm.split_length(N, D)
        assert length % 64 == 0 and (S - 1) * length < D <= S * length and N * length <= 1024


def test_schedules_agree(seed):
    assert_schedules_agree(op, draw(op.specialize(**EDGE), 131, seed), **EDGE)


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = draw(op.specialize(**EDGE), 131, seed)
    assert_rows_alone(op, inputs, (0, 31, 64, 130), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 67, seed), **EDGE)
