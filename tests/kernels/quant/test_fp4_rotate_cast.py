"""quant/fp4_rotate_cast: bit for bit its reference, whose rotation is Sylvester's matrix."""

import pytest
import torch

from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp4_rotate_cast import op

from ..support import assert_archs_agree, assert_rows_alone, assert_schedules_agree, run
from .checks import activations, assert_matches, assert_same

EDGE = {"K": 384}


def rows(M, K, seed, pitch=None):
    """Sums of 128 must not overflow: at most 2^60."""
    return activations(M, K, "bf16", seed, pitch).clamp(-(2.0**60), 2.0**60)


@pytest.mark.parametrize(("M", "K"), [(0, 384), (1, 384), (33, 384), (67, 128), (9, 1024)])
def test_tokens_and_widths(M, K, seed):
    assert_matches(op, [rows(M, K, seed)], K=K)


def test_rows_of_wider_ones(seed):
    assert_matches(op, [rows(9, 128, seed, pitch=192)], K=128)


def test_rotation_is_sylvesters_matrix(seed):
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < 128:
        H = torch.cat((torch.cat((H, H), 1), torch.cat((H, -H), 1)))
    # a sum of 128 small integers is exact; the factor and the cast round
    x = torch.randint(-8, 9, (33, 128), generator=torch.Generator().manual_seed(seed)).bfloat16()
    exact = (x.double() @ H).float() * torch.tensor(128**-0.5)
    assert torch.equal(reference.rotate(x), exact.bfloat16())


def test_what_is_not_finite_spreads_over_its_128(seed):
    x = rows(3, 384, seed)
    x[0, 127], x[1, 128], x[2, 383] = float("inf"), float("nan"), -float("inf")
    _, s = run(op, [x], finite=False, **EDGE)
    expected = torch.eye(3, dtype=torch.bool).repeat_interleave(4, -1)
    assert torch.equal(s.view(torch.uint8) == 255, expected)
    assert_matches(op, [x], **EDGE)


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, [rows(67, 384, seed)], (0, 8, 66), **EDGE)


def test_schedules_agree(seed):
    assert_schedules_agree(op, [rows(19, 384, seed)], **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, [rows(13, 384, seed)], **EDGE)


def test_zero_stays_zero():
    q, s = run(op, [torch.zeros(3, 384, dtype=torch.bfloat16)], **EDGE)
    assert not q.any()
    assert_same(s, torch.full((3, 12), 1, dtype=torch.uint8).view(torch.float8_e8m0fnu))
