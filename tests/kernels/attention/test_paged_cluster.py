"""attention/paged_cluster: a cluster of blocks gives the bits of attention/paged."""

import pytest
import torch

from tileproof.dsl import ContractError
from tileproof.kernels.attention import paged
from tileproof.kernels.attention.paged_cluster import op

from ..support import as_bytes, assert_archs_agree, assert_schedules_agree, run
from .test_paged import SIZES, draw

HALVES = {**SIZES, "spread": 2}
# 64 channels a block: multiplied by wgmma on sm_90a, in chunks of 64
WGMMA = {"H": 5, "V": 64, "R": 64, "E": 4, "F": 2}


def same(inputs, arch, sizes, spread, checked=False):
    """Output of both forms, which agree."""
    (one,) = run(paged.op, inputs, arch, finite=False, **sizes)
    (many,) = run(op, inputs, arch, checked, finite=False, **sizes, spread=spread)
    assert torch.equal(as_bytes(many), as_bytes(one))
    return many


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
@pytest.mark.parametrize(
    ("M", "W", "K"),
    [(0, 8, 4), (1, 0, 0), (1, 0, 1), (1, 1, 0), (3, 32, 0), (2, 33, 65), (1, 64, 300)],
)
def test_a_cluster_has_the_bits_of_a_block(M, W, K, arch, seed):
    """No entry, one, one chunk, fewer chunks than blocks, many."""
    same(draw(M, W, K, seed=seed), arch, SIZES, 2, checked=True)


@pytest.mark.parametrize("spread", [2, 4])
@pytest.mark.parametrize(("W", "K"), [(0, 0), (5, 0), (64, 65), (100, 300)])
def test_by_wgmma_too(W, K, spread, seed):
    same(draw(2, W, K, seed=seed, sizes=WGMMA), "sm_90a", WGMMA, spread)


def test_lists_of_all_lengths_in_one_batch(seed):
    """Lists that end early, hold nothing, or begin with nothing; sinks that are infinite."""
    inputs = draw(6, 33, 65, seed=seed)
    near, chosen, sink = inputs[4], inputs[8], inputs[9]
    near[0], chosen[0] = -1, -1
    chosen[1, 3:], near[2, :32], chosen[3, :40] = -1, -1, -1
    near[4], chosen[5] = -1, -1
    sink[0], sink[1] = -torch.inf, torch.inf
    out = same(inputs, "sm_100a", SIZES, 2)
    assert (out[0] == 0).all()
    assert (out[:, 1] == 0).all()


def test_nan_stays_with_those_who_listed_it(seed):
    inputs = draw(3, 33, 65, seed=seed)
    clean = same(inputs, "sm_100a", SIZES, 2)
    inputs[0][1, 4, 70] = torch.nan  # a channel of the last block's
    out = same(inputs, "sm_100a", SIZES, 2)
    assert out[1, 4].isnan().all()
    out[1, 4] = clean[1, 4]
    assert torch.equal(out, clean)


def test_order_of_blocks_and_warps_changes_no_bit(seed):
    assert_schedules_agree(op, draw(2, 33, 20, seed=seed), arch="sm_100a", **HALVES)


def test_architectures_agree(seed):
    """Those without clusters spread the heads over blocks."""
    assert_archs_agree(op, draw(2, 33, 20, seed=seed), **HALVES)


@pytest.mark.parametrize(
    ("spread", "words"),
    [(4, "channels of an entry: got 96, expected a multiple of 64"),
     (8, "blocks of a cluster: got 8, expected 2 or 4")],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(spread, words):
    with pytest.raises(ContractError, match=words):
        op.specialize(**SIZES, spread=spread).prim_func("sm_90a")
