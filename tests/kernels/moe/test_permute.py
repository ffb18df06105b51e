"""moe/permute and moe/source against their definition, on every kind of choice."""

import pytest
import torch
from hypothesis import given

from tileproof.dsl import ContractError
from tileproof.kernels.moe import reference
from tileproof.kernels.moe._lists import tiles
from tileproof.kernels.moe.permute import op
from tileproof.kernels.moe.source import op as source

from ..support import FEW, assert_archs_agree, assert_schedules_agree, run, seeds, tokens

EDGE = {"E": 130, "K": 7}


def permuted(index, E, R, spare=0):
    """(place, expert, source), checked from their definition, not against the reference."""
    M, K = index.shape
    Q = tiles(M, K, E, R) + spare
    place, expert = run(op, [index], finite=False, E=E, K=K, R=R, Q=Q)
    rows = torch.full((Q, R), -1, dtype=torch.int32)
    run(source, [place, rows], finite=False, K=K, R=R)
    at = 0
    for e in range(E):
        pairs = (index.flatten() == e).nonzero().flatten()
        used = -(-len(pairs) // R)
        assert (expert[at : at + used] == e).all()
        listed = rows[at : at + used].flatten()
        assert torch.equal(listed[: len(pairs)].long(), pairs)
        assert (listed[len(pairs) :] == -1).all()
        at += used
    assert (expert[at:] == -1).all() and (rows[at:] == -1).all()
    flat = place.flatten()
    assert torch.equal(flat < 0, index.flatten() < 0)
    listed = (flat >= 0).nonzero().flatten()
    assert torch.equal(rows.flatten()[flat[listed].long()].long(), listed)
    return place, expert, rows


def choices(M, K, E, seed):
    """K different experts of E, some of them none."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(M, E, generator=generator).argsort(1)[:, :K]
    return torch.where(torch.rand(M, K, generator=generator) < 0.1, -1, index).contiguous()


@FEW
@given(M=tokens(op, tile=147, cap=293), seed=seeds())
def test_every_number_of_tokens(M, seed):
    permuted(choices(M, 7, 130, seed), 130, 64)


@pytest.mark.parametrize(
    ("E", "K", "R"), [(1, 1, 16), (8, 2, 64), (256, 6, 64), (384, 6, 16), (1024, 32, 128)]
)
def test_experts_choices_and_tiles(E, K, R, seed):
    index = choices(70, K, E, seed)
    place, expert, rows = permuted(index, E, R, spare=3)
    expected = reference.permute(index, E, len(expert), R)
    assert torch.equal(place, expected[0]) and torch.equal(expert, expected[1])
    listed = torch.full_like(rows, -1)
    reference.source(place, listed)
    assert torch.equal(rows, listed)


@pytest.mark.parametrize(
    "index",
    [
        torch.full((700, 7), 129),
        torch.full((200, 7), 0),
        torch.full((9, 7), -1),
        torch.arange(130 * 7).reshape(130, 7) % 130,
        torch.tensor([[5, 5, -1, 5, 0, 5, 5]]),
    ],
    ids=["all to the last", "all to the first", "none", "all alike", "one expert in many slots"],
)
def test_crowds_and_deserts(index):
    permuted(index, 130, 64)


@pytest.mark.parametrize("M", [0, 1, 7, 150])
def test_the_bound_on_tiles_is_reached(M):
    # as many experts as can be begin a tile of their own, and the rest fills tiles of one
    index = torch.arange(M * 2).clamp(max=7).reshape(M, 2)
    _, expert, _ = permuted(index, 8, 16)
    assert (expert >= 0).sum() <= len(expert) == tiles(M, 2, 8, 16)
    fullest = torch.full((M * 2,), 7)
    begun = min(M * 2, 8)
    fullest[: begun - 1] = torch.arange(begun - 1) if begun else fullest[:0]
    spare = (M * 2 - begun) % 16
    _, expert, _ = permuted(fullest.reshape(M, 2), 8, 16)
    assert (expert >= 0).all() or spare == 15


def test_too_few_tiles_leave_places_beyond_them_and_write_nothing_else():
    index = torch.arange(8).reshape(4, 2)
    place, expert = run(op, [index], finite=False, E=8, K=2, R=16, Q=3)
    assert expert.tolist() == [0, 1, 2]
    assert place.flatten().tolist() == [16 * e for e in range(8)]


def test_what_is_no_size_is_refused():
    with pytest.raises(ContractError, match=r"rows of a tile: got 2048, expected 1\.\.1024"):
        op.specialize(E=8, K=2, R=2048).prim_func("sm_80")
    with pytest.raises(ContractError, match="expected no negative number"):
        tiles(-1, 6, 256)


def full(seed):
    """Sizes and choices that leave no element -1, which stands for one that was not written."""
    index = choices(300, 7, 130, seed).clamp(min=0)
    used = -(-torch.bincount(index.flatten(), minlength=130) // 64)
    return [index], {**EDGE, "Q": int(used.sum())}


def test_schedules_agree(seed):
    inputs, sizes = full(seed)
    assert_schedules_agree(op, inputs, **sizes)


def test_architectures_agree(seed):
    inputs, sizes = full(seed)
    assert_archs_agree(op, inputs, **sizes)
