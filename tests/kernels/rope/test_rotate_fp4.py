"""rope/rotate_fp4: byte for byte rotate, then quant/fp4_rotate_cast."""

import pytest
import torch

from tileproof.kernels.quant import fp4_rotate_cast
from tileproof.kernels.rope import rotate
from tileproof.kernels.rope.rotate_fp4 import op

from ..quant.checks import assert_same
from ..support import assert_archs_agree, assert_rows_alone, assert_schedules_agree, run
from .test_rotate import call

TINY = {"H": 2, "D": 128, "Q": 32}


@pytest.mark.parametrize(
    ("M", "H", "D", "Q"),
    [
        (0, 2, 128, 32),
        (7, 2, 128, 32),
        (2, 64, 128, 32),
        (9, 3, 256, 8),
        (2, 33, 128, 64),  # all channels turn; heads are no multiple of those at once
        (3, 11, 384, 4),  # threads are no power of two
    ],
)
def test_it_is_the_reference_and_its_two_parts(M, H, D, Q, seed):
    inputs = call(M, H, D, Q, seed)
    got = run(op, inputs, finite=False, H=H, D=D, Q=Q)
    for mine, expected in zip(got, op.reference(*inputs), strict=True):
        assert_same(mine, expected)
    (turned,) = run(rotate.op, inputs, H=H, D=D, Q=Q)
    parts = run(fp4_rotate_cast.op, [turned.view(M * H, D)], finite=False, K=D)
    for mine, expected in zip(got, parts, strict=True):
        assert_same(mine.flatten(0, 1), expected)


def test_rows_of_cos_are_no_multiple_of_16_bytes(seed):
    inputs = call(9, 3, 256, 6, seed)
    for mine, expected in zip(
        run(op, inputs, finite=False, H=3, D=256, Q=6), op.reference(*inputs), strict=True
    ):
        assert_same(mine, expected)


def test_nan_makes_its_128_channels_nan(seed):
    inputs = call(3, 2, 128, 32, seed)
    inputs[0][1, 1, 100] = float("nan")
    _, s = run(op, inputs, finite=False, **TINY)
    assert (s.view(torch.uint8) == 255).nonzero().tolist() == [[1, 1, g] for g in range(4)]


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, call(9, 2, 128, 32, seed), (0, 7, 8), **TINY)


def test_schedules_and_architectures_agree(seed):
    assert_schedules_agree(op, call(5, 2, 128, 32, seed), **TINY)
    assert_archs_agree(op, call(5, 2, 128, 32, seed), **TINY)
