"""moe/dispatch copies rows; moe/dispatch_fp8 is it and quant/fp8_cast, bit for bit."""

import pytest
import torch

from tileproof.kernels.moe import dispatch, reference
from tileproof.kernels.moe.dispatch import op

from ..support import as_bytes, assert_archs_agree, draw, run
from .support import listed

SIZES = {"K": 3, "R": 32, "D": 160}


@pytest.mark.parametrize(("M", "Q"), [(0, 0), (0, 2), (1, 1), (13, 2), (64, 1)])
@pytest.mark.parametrize("act", ["bf16", "f32"])
def test_rows_are_those_of_their_tokens(M, Q, act, seed):
    sizes = {**SIZES, "act": act}
    x, _ = draw(dispatch.op.specialize(**sizes), M, seed, Q=Q)
    source = listed(M, 3, Q, 32, seed)
    (rows,) = run(op, [x, source], **sizes)
    for q, r in (source >= 0).nonzero().tolist():
        assert torch.equal(rows[q, r], x[source[q, r] // 3])
    assert not rows[source < 0].any()
    assert torch.equal(rows, reference.dispatch(x, source, 3))


def test_bits_are_copied():
    x = torch.randint(-(2**15), 2**15, (5, 160), dtype=torch.int16).view(torch.bfloat16)
    source = listed(5, 3, 1, 32, 1)
    (rows,) = run(op, [x, source], finite=False, **SIZES, act="bf16")
    used = source >= 0
    expected = x[(source[used] // 3).long()].contiguous()
    assert torch.equal(as_bytes(rows[used].contiguous()), as_bytes(expected))


def test_architectures_agree(seed):
    x, _ = draw(op.specialize(**SIZES), 13, seed, Q=2)
    assert_archs_agree(op, [x, listed(13, 3, 2, 32, seed)], **SIZES)
