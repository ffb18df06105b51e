"""quant/fp8_tile_dequant: bit for bit its reference, every byte as code and as scale."""

import pytest
import torch

from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp8_tile_dequant import op

from ..support import ALL, assert_rows_alone
from .checks import assert_matches, assert_same, codes

EDGE = {"N": 67, "K": 160}


def inputs(M, N, K, seed):
    q = codes((M, N, K), torch.float8_e4m3fn, seed)
    return [q, codes((M, -(-K // 128)), torch.float8_e8m0fnu, seed + 1)]


@pytest.mark.parametrize(("M", "N", "K"), [(0, 67, 160), (3, 67, 160), (2, 128, 4096), (9, 1, 32)])
def test_strips_and_shapes(M, N, K, seed):
    assert_matches(op, inputs(M, N, K, seed), N=N, K=K)


@pytest.mark.parametrize("arch", ALL)
def test_architectures(arch, seed):
    assert_matches(op, inputs(7, 67, 160, seed), arch, checked=arch == ALL[0], **EDGE)


def test_a_row_is_dequantised_like_activations(seed):
    q, s = inputs(3, 1, 160, seed)
    assert_same(reference.fp8_tile_dequant(q, s)[:, 0], reference.fp8_dequant(q[:, 0], s, 128))


def test_a_strip_does_not_see_its_neighbours(seed):
    finite = [(t.view(torch.uint8) % 127).view(t.dtype) for t in inputs(3, 67, 160, seed)]
    assert_rows_alone(op, finite, (0, 2), **EDGE)
