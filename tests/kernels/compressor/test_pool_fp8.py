"""compressor/pool_fp8: the entries of compressor/pool_row in bfloat16, stored as kv_cache says."""

import pytest
import torch

from tileproof.kernels import kv_cache
from tileproof.kernels.compressor import pool_row
from tileproof.kernels.compressor.pool_fp8 import op

from ..support import assert_archs_agree, assert_schedules_agree, results, run
from .support import Requests, weights

E, V, R = 4, 64, 8
D = V + R
CSA = {"A": 4, "C": 2 * D}
HCA = {"A": 16, "C": D}
PAGED = {"E": E, "V": V, "R": R}


def call(lengths, sizes, seed, gap=0):
    """Inputs of one batch of whole requests; 64 slots of each, the pages `gap` bytes apart."""
    L = sizes["A"] * (sizes["C"] // D)
    requests = Requests(lengths, sizes["A"], sizes["C"], L, seed)
    fresh, source, position, slot, _ = requests.batch(list(enumerate(lengths)))
    layout = kv_cache.kv_pages(E, V, R)
    memory = torch.full((16 * len(lengths), layout.page + gap), 0xA5, dtype=torch.uint8)
    constants = weights(D, sizes["A"], sizes["C"], R // 2, seed)
    inputs = [requests.kept, fresh, source, position, *constants, slot]
    return memory, [*inputs, *layout.views(memory[:, : layout.page])]


def expected(inputs, sizes, memory):
    """The same through rows in bfloat16 and :func:`kv_cache.write_kv`."""
    rows = torch.zeros(int(inputs[-4].max()) + 1, D, dtype=torch.bfloat16)
    run(pool_row.op, [*inputs[:9], rows], finite=False, **sizes, D=D, Q=R // 2)
    slot = inputs[8]
    want = torch.full_like(memory, 0xA5)
    layout = kv_cache.kv_pages(E, V, R)
    kv_cache.write_kv(rows[slot.long()], slot, *layout.views(want[:, : layout.page]))
    return want


@pytest.mark.parametrize("sizes", [CSA, HCA], ids=["csa", "hca"])
@pytest.mark.parametrize("gap", [0, 80])
def test_pages_hold_the_entries_byte_for_byte(sizes, gap, seed):
    memory, inputs = call([33, 3, 64, 16], sizes, seed, gap)
    run(op, inputs, finite=False, **sizes, **PAGED)
    assert torch.equal(memory, expected(inputs, sizes, memory))


def test_the_width_of_the_model(seed):
    sizes = {"A": 4, "C": 1024}
    requests = Requests([13], 4, 1024, 8, seed)
    fresh, source, position, slot, _ = requests.batch([(0, 13)])
    layout = kv_cache.kv_pages(64)
    memory, want = layout.pool(1), layout.pool(1)
    inputs = [requests.kept, fresh, source, position, *weights(512, 4, 1024, 32, seed), slot]
    run(op, [*inputs, *layout.views(memory)], finite=False, **sizes, E=64, V=448, R=64)
    rows = torch.zeros(3, 512, dtype=torch.bfloat16)
    run(pool_row.op, [*inputs, rows], finite=False, **sizes, D=512, Q=32)
    kv_cache.write_kv(rows, slot, *layout.views(want))
    assert torch.equal(memory, want)


@pytest.mark.parametrize("P", [1, 5, 8])
def test_bits_do_not_say_how_requests_were_cut(P, seed):
    whole, inputs = call([18, 18], CSA, seed)
    run(op, inputs, finite=False, **CSA, **PAGED)
    requests = Requests([18, 18], 4, 2 * D, 8, seed)
    memory = torch.full_like(whole, 0xA5)
    views = kv_cache.kv_pages(E, V, R).views(memory)
    requests.run(op, [(0, P), (1, P + 2)], inputs[4:8], views, **CSA, **PAGED)
    while any(n < 18 for n in requests.done):
        left = [(r, 1) for r, n in enumerate(requests.done) if n < 18]
        requests.run(op, left, inputs[4:8], views, **CSA, **PAGED)
    assert torch.equal(memory, whole)


def test_what_is_not_finite_is_nan_in_its_entry(seed):
    memory, inputs = call([16], CSA, seed)
    clean = memory.clone()
    inputs[1][6, 3] = float("nan")  # one channel of the next entry; the norm spreads it
    run(op, inputs, finite=False, **CSA, **PAGED)
    slots = torch.arange(4)
    got = kv_cache.read_kv(*inputs[-3:], slots).isnan().all(1)
    assert got.tolist() == [False, False, True, False]
    assert not torch.equal(memory, clean)


def test_schedules_agree(seed):
    assert_schedules_agree(op, call([24, 9], CSA, seed)[1], **CSA, **PAGED)


def test_architectures_agree(seed):
    inputs = call([24, 9], HCA, seed)[1]
    assert_archs_agree(op, inputs, **HCA, **PAGED)
    assert len(results(op, inputs, **HCA, **PAGED)) == 3
