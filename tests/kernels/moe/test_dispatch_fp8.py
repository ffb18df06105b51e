"""moe/dispatch_fp8 is moe/dispatch and quant/fp8_cast, bit for bit."""

import pytest
import torch

from tileproof.kernels.moe import dispatch
from tileproof.kernels.moe.dispatch_fp8 import op
from tileproof.kernels.quant import fp8_cast

from ..support import as_bytes, assert_archs_agree, draw, run
from .support import listed

SIZES = {"K": 3, "R": 32, "D": 160}


def check(x, source, **sizes):
    codes, scales = run(op, [x, source], finite=False, **sizes)
    (rows,) = run(dispatch.op, [x, source], finite=False, **sizes, act="bf16")
    expected = run(fp8_cast.op, [rows.flatten(0, 1)], finite=False, K=sizes["D"], B=128, act="bf16")
    for got, same in zip((codes, scales), expected, strict=True):
        assert torch.equal(as_bytes(got.flatten(0, 1)), as_bytes(same))


@pytest.mark.parametrize(("M", "Q"), [(0, 0), (0, 2), (1, 1), (13, 2)])
@pytest.mark.parametrize("D", [160, 32])
def test_is_dispatch_and_cast(M, Q, D, seed):
    sizes = {**SIZES, "D": D}
    x, _ = draw(op.specialize(**sizes), M, seed, Q=Q)
    check(x, listed(M, 3, Q, 32, seed), **sizes)


def test_a_wide_row_takes_more_blocks(seed):
    sizes = {**SIZES, "D": 7168, "R": 16}
    x, _ = draw(op.specialize(**sizes), 2, seed, Q=1)
    check(x, listed(2, 3, 1, 16, seed), **sizes)


def test_nan_and_infinity_stay_in_their_group(seed):
    x, _ = draw(op.specialize(**SIZES), 13, seed, Q=2)
    x[3, 5], x[4, 150] = torch.nan, torch.inf
    check(x, listed(13, 3, 2, 32, seed), **SIZES)


def test_architectures_agree(seed):
    x, _ = draw(op.specialize(**SIZES), 13, seed, Q=2)
    assert_archs_agree(op, [x, listed(13, 3, 2, 32, seed)], **SIZES)
