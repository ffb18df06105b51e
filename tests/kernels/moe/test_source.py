"""moe/source on places of its contract; test_permute has those that routing makes."""

import torch

from tileproof.kernels.moe import reference
from tileproof.kernels.moe.source import op

from ..support import assert_archs_agree, assert_schedules_agree, results

SIZES = {"K": 7, "R": 32}


def inputs_of(M, Q, seed):
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(Q * 32, generator=generator)[: M * 7].reshape(M, 7).int()
    place[torch.rand(M, 7, generator=generator) < 0.2] = -1
    return [place, torch.full((Q, 32), -1, dtype=torch.int32)]


def test_rows_are_of_their_pairs_and_the_rest_stays(seed):
    for M in (0, 1, 129):
        place, rows = inputs_of(M, 30, seed)
        rows[-1] = -5
        expected = rows.clone()
        reference.source(place, expected)
        (got,) = results(op, [place, rows], **SIZES)
        assert torch.equal(got, expected)


def test_schedules_agree(seed):
    assert_schedules_agree(op, inputs_of(129, 30, seed), **SIZES)


def test_architectures_agree(seed):
    assert_archs_agree(op, inputs_of(129, 30, seed), **SIZES)
