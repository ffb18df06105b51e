"""quant/fp8_dequant: every code with every scale, bit for bit."""

import pytest
import torch

from tileproof.dsl import formats
from tileproof.kernels.quant import reference
from tileproof.kernels.quant.fp8_dequant import op

from ..support import ALL, assert_rows_alone
from .checks import assert_matches, assert_same, codes

E4M3, UE8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
EDGE = {"K": 448, "B": 64}


def inputs(M, K, B, seed):
    return [codes((M, K), E4M3, seed), codes((M, -(-K // B)), UE8M0, seed + 1)]


@pytest.mark.parametrize("M", [0, 1, 4, 5, 33])
def test_numbers_of_tokens(M, seed):
    assert_matches(op, inputs(M, 448, 64, seed), **EDGE)


@pytest.mark.parametrize(("K", "B"), [(32, 32), (160, 128), (7168, 128)])
def test_widths_and_groups(K, B, seed):
    assert_matches(op, inputs(9, K, B, seed), K=K, B=B)


@pytest.mark.parametrize("arch", ALL)
def test_every_code_with_every_scale(arch):
    every = torch.arange(256, dtype=torch.uint8)
    q = every.repeat(256, 1).view(E4M3)
    s = every[:, None].repeat(1, 2).view(UE8M0)
    assert_matches(op, [q, s], arch, checked=arch == ALL[0], K=256, B=128)


def test_reference_is_that_of_ml_dtypes():
    every = torch.arange(256, dtype=torch.uint8)
    q, s = every.repeat(256, 1), every[:, None].repeat(1, 2)
    values = formats.e4m3_to_float(q.numpy()).astype("float64")
    exact = values * formats.ue8m0_to_float(s.numpy()).repeat(128, -1)
    expected = torch.from_numpy(exact).float().bfloat16()  # exact in float32, so rounded once
    assert_same(reference.fp8_dequant(q.view(E4M3), s.view(UE8M0), 128), expected)


def test_a_token_does_not_see_its_neighbours(seed):
    q, s = inputs(67, 448, 64, seed)
    finite = [(t.view(torch.uint8) % 127).view(t.dtype) for t in (q, s)]
    assert_rows_alone(op, finite, (0, 7, 66), **EDGE)
