"""gemm/fp4_experts is gemm/fp4 of every tile with its expert's weight, bit for bit."""

import pytest
import torch

from tileproof.kernels.gemm import fp4
from tileproof.kernels.gemm.fp4_experts import op

from ..support import (
    as_bytes,
    assert_archs_agree,
    assert_schedules_agree,
    run,
)
from .codes import e2m1, e4m3, generator, ue8m0

E, N = 3, 136
EDGE = {"R": 32, "K": 160, "B": 128, "out": "f32"}


def inputs(expert, seed, R=32, K=160, B=128, out="f32"):
    draw = generator(seed)
    Q = len(expert)
    return [
        e4m3((Q, R, K), draw),
        ue8m0((Q, R, -(-K // B)), draw),
        torch.tensor(expert, dtype=torch.int32),
        e2m1((E, N, K), draw),
        ue8m0((E, N, K // 32), draw),
    ]


@pytest.mark.parametrize(
    "expert", [[], [2], [0, 0, 1, 2, -1], [1, 1, 1], [-1, -1]], ids=lambda e: str(len(e))
)
@pytest.mark.parametrize(("B", "arch"), [(32, "sm_80"), (128, "sm_90a")])  # mma.sync, wgmma
def test_is_fp4_of_every_tile(expert, B, arch, seed):
    sizes = EDGE | {"B": B}
    x, xs, _, w, ws = operands = inputs(expert, seed, **sizes)
    (y,) = run(op, operands, arch, **sizes)
    assert y.shape == (len(expert), 32, 136)
    for q, e in enumerate(expert):
        if e < 0:
            assert not y[q].any()
            continue
        alone = {k: v for k, v in sizes.items() if k != "R"}
        (expected,) = run(fp4.op, [x[q], xs[q], w[e], ws[e]], arch, **alone)
        assert torch.equal(y[q], expected)


def test_a_row_does_not_see_its_neighbours(seed):
    """Its bits hang neither on the tile, nor on its place in it, nor on how high a tile is."""
    x, xs, _, w, ws = inputs([1, 2, 0], seed)
    (y,) = run(op, [x, xs, torch.tensor([1, 2, 0], dtype=torch.int32), w, ws], **EDGE)
    sizes = EDGE | {"R": 96}  # three blocks, one behind the other
    moved = [torch.zeros(1, 96, *t.shape[2:], dtype=torch.uint8) for t in (x, xs)]
    for target, source in zip(moved, (x, xs), strict=True):
        target[0, 72] = as_bytes(source)[1, 3]
    operands = [t.view(s.dtype) for t, s in zip(moved, (x, xs), strict=True)]
    (alone,) = run(op, [*operands, torch.tensor([2], dtype=torch.int32), w, ws], **sizes)
    assert torch.equal(alone[0, 72], y[1, 3])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_schedules_agree(arch, seed):
    assert_schedules_agree(op, inputs([1, -1, 2], seed), arch=arch, **EDGE)


def test_architectures_agree(seed):
    assert_archs_agree(op, inputs([2, 0, -1, 2], seed), **EDGE)
