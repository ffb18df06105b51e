"""gemm/grouped is gemm/dense of each group, bit for bit."""

import pytest
import torch

from tileproof.kernels.gemm import dense
from tileproof.kernels.gemm.grouped import op

from ..support import assert_archs_agree, assert_rows_alone, assert_schedules_agree, draw, run

N = 72
EDGE = {"G": 3, "K": 80, "act": "bf16", "out": "f32"}


@pytest.mark.parametrize("M", [0, 1, 65])
@pytest.mark.parametrize(("act", "out"), [("bf16", "bf16"), ("f32", "f32")])
def test_is_dense_of_every_group(M, act, out, seed):
    sizes = EDGE | {"act": act, "out": out}
    x, w = draw(op.specialize(**sizes), M, seed, N=N)
    (y,) = run(op, [x, w], **sizes)
    del sizes["G"]
    for g in range(3):
        (alone,) = run(dense.op, [x[:, g].contiguous(), w[g]], **sizes)
        assert torch.equal(y[:, g], alone)


def test_a_token_does_not_see_its_neighbours(seed):
    assert_rows_alone(op, draw(op.specialize(**EDGE), 67, seed, N=N), (0, 63, 64, 66), **EDGE)


def test_schedules_agree(seed):
    assert_schedules_agree(op, draw(op.specialize(**EDGE), 9, seed, N=N), **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, draw(op.specialize(**EDGE), 66, seed, N=N), **EDGE)
