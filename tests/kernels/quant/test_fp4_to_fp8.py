"""quant/fp4_to_fp8: bit for bit its reference; lossless exactly where spec §5.3 says so."""

import pytest
import torch

from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp4_to_fp8 import op

from ..support import assert_archs_agree, assert_rows_alone, run
from .checks import assert_matches, codes

UE8M0 = torch.float8_e8m0fnu
EDGE = {"N": 67, "K": 160}
EVERY = torch.arange(256, dtype=torch.uint8)


def scales(shape, seed, lo, hi):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(lo, hi + 1, shape, generator=draw, dtype=torch.uint8).view(UE8M0)


def inputs(M, N, K, seed, lo=110, hi=125):
    return [codes((M, N, K // 2), torch.uint8, seed), scales((M, N, K // 32), seed + 1, lo, hi)]


@pytest.mark.parametrize("M", [0, 1, 3])
@pytest.mark.parametrize(("lo", "hi"), [(110, 124), (110, 125), (0, 254), (0, 5), (0, 255)])
def test_strips_and_scales(M, lo, hi, seed):
    assert_matches(op, inputs(M, 67, 160, seed, lo, hi), **EDGE)


@pytest.mark.parametrize(("N", "K"), [(128, 512), (1, 32)])
def test_shapes(N, K, seed):
    assert_matches(op, inputs(2, N, K, seed), N=N, K=K)


@pytest.mark.parametrize("apart", range(17))
def test_exact_for_all_codes_up_to_2_to_the_14(apart):
    """One group of a tile has a scale 2^apart below the others."""
    p = EVERY[:16].repeat(1, 128, 4)  # every code in every group
    s = torch.full((1, 128, 4), 130, dtype=torch.uint8)
    s[0, 77, 2] -= apart
    q, t, exact = run(op, [p, s.view(UE8M0)], N=128, K=128)
    assert t.view(torch.uint8).item() == 124
    assert exact.item() == (apart <= 14)
    groups = s.view(UE8M0).reshape(1, -1)
    before = reference.fp4_dequant(p.reshape(1, -1), groups).view(1, 128, 128)
    after = reference.fp8_tile_dequant(q, t)
    assert torch.equal(before, after) == (apart <= 14)


def test_a_group_of_zeros_loses_nothing():
    """Its scale may be as small as it likes (spec §5.3)."""
    p, s = EVERY[:16].repeat(1, 128, 4), torch.full((1, 128, 4), 130, dtype=torch.uint8)
    p[0, 5, 16:32], s[0, 5, 1] = 0, 1
    _, _, exact = run(op, [p, s.view(UE8M0)], N=128, K=128)
    assert exact.item() == 1


def test_a_nan_scale_makes_its_tile_nan(seed):
    p, s = inputs(2, 67, 160, seed)
    s.view(torch.uint8)[1, 66, 4] = 255
    q, t, exact = run(op, [p, s], finite=False, **EDGE)
    assert t.view(torch.uint8).eq(255).tolist() == [[False, False], [False, True]]
    assert q.view(torch.uint8)[1, :, 128:].eq(0x7F).all()
    assert exact[1, 1] == 0


def test_a_strip_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, inputs(3, 67, 160, seed), (0, 2), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, inputs(2, 67, 160, seed), **EDGE)
