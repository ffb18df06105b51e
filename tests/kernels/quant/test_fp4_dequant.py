"""quant/fp4_dequant: every pair of codes with every scale, bit for bit."""

import pytest
import torch

from tileproof.dsl import formats
from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp4_dequant import op

from ..support import ALL, assert_rows_alone
from .checks import assert_matches, assert_same, codes

EVERY = torch.arange(256, dtype=torch.uint8)
UE8M0 = torch.float8_e8m0fnu


def inputs(M, K, seed):
    return [codes((M, K // 2), torch.uint8, seed), codes((M, K // 32), UE8M0, seed + 1)]


@pytest.mark.parametrize(("M", "K"), [(0, 96), (1, 96), (33, 96), (9, 7168)])
def test_tokens_and_widths(M, K, seed):
    assert_matches(op, inputs(M, K, seed), K=K)


@pytest.mark.parametrize("arch", ALL)
def test_every_pair_with_every_scale(arch):
    both = [EVERY.repeat(256, 1), EVERY[:, None].repeat(1, 16).view(UE8M0)]
    assert_matches(op, both, arch, checked=arch == ALL[0], K=512)


def test_reference_is_that_of_ml_dtypes():
    q, s = EVERY.repeat(256, 1), EVERY[:, None].repeat(1, 16)
    values = formats.e2m1_to_float(formats.unpack_e2m1(q.numpy())).astype("float64")
    exact = values * formats.ue8m0_to_float(s.numpy()).repeat(32, -1)
    expected = torch.from_numpy(exact).float().bfloat16()  # exact in float32, so rounded once
    assert_same(reference.fp4_dequant(q, s.view(UE8M0)), expected)


def test_a_token_does_not_see_its_neighbours(seed):
    q, s = inputs(67, 96, seed)
    finite = (s.view(torch.uint8) % 250).view(UE8M0)
    assert_rows_alone(op, [q, finite], (0, 32, 66), K=96)
