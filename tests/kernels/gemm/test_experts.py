"""gemm/experts is gemm/dense of each tile and its expert's weight, bit for bit."""

import pytest
import torch

from tileproof.kernels.gemm import dense, reference
from tileproof.kernels.gemm.experts import op

from ..support import assert_archs_agree, assert_schedules_agree, run

E, N = 3, 72
EDGE = {"R": 64, "K": 112, "act": "bf16", "out": "f32"}


def inputs_of(Q, seed, **sizes):
    """Every expert, and none."""
    generator = torch.Generator().manual_seed(seed)
    R, K = sizes["R"], sizes["K"]
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[sizes["act"]]
    x, w = (torch.randn(s, generator=generator).to(kind) for s in ((Q, R, K), (E, N, K)))
    return [x, (torch.arange(Q) % (E + 1) - 1).int(), w]


@pytest.mark.parametrize("Q", [0, 1, 5])
@pytest.mark.parametrize(("act", "out"), [("bf16", "bf16"), ("f32", "f32")])
def test_is_dense_of_every_tile(Q, act, out, seed):
    sizes = EDGE | {"act": act, "out": out}
    x, expert, w = inputs_of(Q, seed, **sizes)
    (y,) = run(op, [x, expert, w], **sizes)
    alike = {key: sizes[key] for key in ("K", "act", "out")}
    for q, e in enumerate(expert.tolist()):
        expected = run(dense.op, [x[q], w[e]], **alike)[0] if e >= 0 else torch.zeros(64, 72)
        assert torch.equal(y[q], expected.to(y.dtype))


@pytest.mark.parametrize("R", [16, 32, 128])
def test_rows_of_a_tile_change_no_bit(R, seed):
    x, expert, w = inputs_of(4, seed, **EDGE)
    expert[:] = 1
    (y,) = run(op, [x, expert, w], **EDGE)
    cut = x.view(-1, R, 112)
    (other,) = run(op, [cut, torch.ones(len(cut)).int(), w], **EDGE | {"R": R})
    assert torch.equal(other.view_as(y), y)


def test_small_integers_are_exact(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = EDGE | {"R": 16}
    x = torch.randint(-8, 9, (4, 16, 112), generator=generator).bfloat16()
    w = torch.randint(-8, 9, (3, 72, 112), generator=generator).bfloat16()
    expert = torch.tensor([2, -1, 0, 2], dtype=torch.int32)
    (y,) = run(op, [x, expert, w], **sizes)
    assert torch.equal(y, reference.experts(x, expert, w, "f32"))


def test_schedules_agree(seed):
    sizes = EDGE | {"R": 16}
    assert_schedules_agree(op, inputs_of(3, seed, **sizes), **sizes)


def test_architectures_agree(seed):
    sizes = EDGE | {"R": 16}
    assert_archs_agree(op, inputs_of(4, seed, **sizes), **sizes)
