"""norm/kv_fp8: the rows of norm/kv_row in bfloat16, stored as kv_cache says."""

import pytest
import torch

from tileproof.kernels import kv_cache
from tileproof.kernels.norm import kv_row
from tileproof.kernels.norm.kv_fp8 import op

from ..support import assert_archs_agree, assert_schedules_agree, run
from .test_kv_row import call as rows_call

SIZES = [{"V": 64, "R": 8, "E": 4}, {"V": 448, "R": 64, "E": 2}, {"V": 128, "R": 64, "E": 64}]


def call(M, sizes, seed, gap=0):
    """The inputs of kv_row, and pages in place of rows."""
    E, V, R = sizes["E"], sizes["V"], sizes["R"]
    *inputs, rows = rows_call(M, seed, V + R, R // 2, pitch=V + R + 16)
    layout = kv_cache.kv_pages(E, V, R)
    memory = torch.full((M // E + 2, layout.page + gap), 0xA5, dtype=torch.uint8)
    return memory, rows, [*inputs, *layout.views(memory[:, : layout.page])]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("M", "gap"), [(0, 0), (1, 0), (33, 48)])
def test_pages_hold_the_rows_byte_for_byte(sizes, M, gap, seed):
    memory, rows, inputs = call(M, sizes, seed, gap)
    inputs[0][M // 2 : M // 2 + 1] *= 0  # its scales are the least
    run(op, inputs, finite=False, **sizes)
    run(kv_row.op, [*inputs[:6], rows], finite=False, D=rows.shape[1], Q=sizes["R"] // 2)
    slot = inputs[5]
    want = torch.full_like(memory, 0xA5)
    layout = kv_cache.kv_pages(sizes["E"], sizes["V"], sizes["R"])
    kv_cache.write_kv(rows[slot.clamp(min=0).long()], slot, *layout.views(want[:, : layout.page]))
    assert torch.equal(memory, want)


def test_nan_stays_in_its_entry(seed):
    _, _, inputs = call(9, SIZES[0], seed)
    inputs[0][4, 3] = float("nan")
    run(op, inputs, finite=False, **SIZES[0])
    slot = inputs[5]
    there = slot[slot >= 0]
    wrong = kv_cache.read_kv(*inputs[-3:], there).isnan().all(1)
    assert there[wrong].tolist() == [slot[4]]


def test_schedules_and_architectures_agree(seed):
    _, _, inputs = call(9, SIZES[0], seed)
    assert_schedules_agree(op, inputs, **SIZES[0])
    assert_archs_agree(op, inputs, **SIZES[0])
