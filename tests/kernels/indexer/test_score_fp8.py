"""indexer/score_fp8: the bits of indexer/score on the bfloat16 that queries and keys stand for."""

import pytest
import torch

from tileproof.kernels.indexer.score_fp8 import op

from ..support import assert_archs_agree, assert_schedules_agree
from . import support

SIZES = {"H": 5, "D": 96, "E": 16}


@pytest.mark.parametrize(("M", "S"), [(5, 4), (3, 132), (2, 516)])
def test_it_is_the_score_of_the_keys_in_bfloat16(M, S, seed):
    inputs = support.draw(op, M, S, seed, L=40, apart=48)
    support.assert_score_of_rows(op, inputs, S, checked=S == 132)


@pytest.mark.parametrize(("H", "D", "E"), [(2, 16, 16), (64, 128, 64)])
def test_sizes(H, D, E, seed):
    support.assert_score_of_rows(op, support.draw(op, 3, 132, seed, H, D, E), 132)


def test_every_finite_code_and_many_scales(seed):
    inputs = support.draw(op, 2, 132, seed)
    torch.manual_seed(seed)
    for codes, scale in (inputs[:2], inputs[2:4]):
        size = torch.randint(0, 127, codes.shape, dtype=torch.uint8)
        sign = torch.randint(0, 2, codes.shape, dtype=torch.uint8) << 7
        codes.view(torch.uint8).copy_(size | sign)
        scale.view(torch.uint8).copy_(torch.randint(60, 190, scale.shape, dtype=torch.uint8))
    support.assert_score_of_rows(op, inputs, 132)


def test_formula(seed):
    support.assert_formula(op, seed)


def test_nothing(seed):
    support.assert_nothing(op, seed)


def test_counts_outside_the_pages_are_cut(seed):
    support.assert_counts_are_cut(op, seed)


def test_nan_stays_with_its_key(seed):
    support.assert_nan_stays(op, seed)


def test_a_score_does_not_depend_on_batch_or_pages(seed):
    support.assert_alone(op, seed)


def test_schedules_agree(seed):
    assert_schedules_agree(op, support.draw(op, 3, 132, seed), S=132, **SIZES)


def test_architectures_agree(seed):
    assert_archs_agree(op, support.draw(op, 2, 132, seed, apart=16), S=132, **SIZES)
