"""compressor/keep: rows go where they are told, and nothing else changes."""

import pytest
import torch

from tileproof.kernels.compressor.keep import op

from ..support import assert_archs_agree, assert_schedules_agree, run


def call(M, MK, C2, seed):
    draw = torch.Generator().manual_seed(seed)
    row = torch.randperm(MK, generator=draw)[:M].int()
    row[::3] = -1
    return [torch.randn(M, C2, generator=draw), row, torch.full((MK, C2), -7.0)]


@pytest.mark.parametrize(("M", "MK", "C2"), [(0, 0, 64), (1, 1, 64), (65, 80, 272), (3, 9, 2048)])
def test_rows_are_copied(M, MK, C2, seed):
    fresh, row, kept = call(M, MK, C2, seed)
    run(op, [fresh, row, kept], finite=False, C2=C2)
    expected = torch.full((MK, C2), -7.0)
    for m in range(M):
        if row[m] >= 0:
            expected[row[m]] = fresh[m]
    assert torch.equal(kept, expected)


def test_schedules_and_architectures_agree(seed):
    assert_schedules_agree(op, call(9, 24, 128, seed), C2=128)
    assert_archs_agree(op, call(9, 24, 128, seed), C2=128)
