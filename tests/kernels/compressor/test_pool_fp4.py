"""compressor/pool_fp4: the entries of pool_row in bfloat16, rotated and stored in FP4."""

import pytest
import torch

from tileproof.kernels import kv_cache
from tileproof.kernels.compressor import pool_row
from tileproof.kernels.compressor.pool_fp4 import op
from tileproof.kernels.quant import reference as quant

from ..support import assert_archs_agree, assert_schedules_agree, run
from .support import Requests, weights

E = 4


def call(lengths, D, Q, seed):
    """Inputs of one batch of whole requests with windows of CSA, and their pages."""
    requests = Requests(lengths, 4, 2 * D, 8, seed)
    fresh, source, position, slot, _ = requests.batch(list(enumerate(lengths)))
    layout = kv_cache.key_pages(E, D)
    memory = torch.full((16 * len(lengths), layout.page), 0xA5, dtype=torch.uint8)
    constants = weights(D, 4, 2 * D, Q, seed)
    return memory, [requests.kept, fresh, source, position, *constants, slot, *layout.views(memory)]


@pytest.mark.parametrize(("D", "Q"), [(128, 32), (256, 4)])
def test_pages_hold_the_keys_byte_for_byte(D, Q, seed):
    memory, inputs = call([33, 3, 16], D, Q, seed)
    sizes = {"A": 4, "C": 2 * D, "D": D, "Q": Q}
    inputs[8][2] = -1
    run(op, inputs, finite=False, **sizes, E=E)
    slot = inputs[8]
    rows = torch.zeros(256, D, dtype=torch.bfloat16)
    run(pool_row.op, [*inputs[:9], rows], finite=False, **sizes)
    want = torch.full_like(memory, 0xA5)
    keys = quant.rotate(rows[slot.clamp(min=0).long()])
    kv_cache.write_keys(keys, slot, *kv_cache.key_pages(E, D).views(want))
    assert torch.equal(memory, want)


SIZES = {"A": 4, "C": 256, "D": 128, "Q": 32, "E": E}


def test_a_token_more_each_time(seed):
    """Prefill of 3, then decode: the bytes of one prefill."""
    whole, inputs = call([17], 128, 32, seed)
    run(op, inputs, finite=False, **SIZES)
    requests = Requests([17], 4, 256, 8, seed)
    memory = torch.full_like(whole, 0xA5)
    views = kv_cache.key_pages(E).views(memory)
    for count in (3, *[1] * 14):
        requests.run(op, [(0, count)], inputs[4:8], views, **SIZES)
    assert torch.equal(memory, whole)


def test_what_is_not_finite_is_nan_in_its_key(seed):
    _, inputs = call([12], 128, 32, seed)
    inputs[1][9, 128] = float("inf")
    run(op, inputs, finite=False, **SIZES)
    got = kv_cache.read_keys(*inputs[-2:], torch.arange(3)).isnan().all(1)
    assert got.tolist() == [False, False, True]


def test_schedules_agree(seed):
    assert_schedules_agree(op, call([24, 9], 128, 32, seed)[1], **SIZES)


def test_architectures_agree(seed):
    assert_archs_agree(op, call([9], 128, 32, seed)[1], **SIZES)
