"""indexer/topk against a stable sort: ties, special values, lengths; alone and on all archs."""

import itertools

import pytest
import torch

from tileproof.kernels.indexer import reference
from tileproof.kernels.indexer.topk import op

from ..support import assert_archs_agree, assert_schedules_agree, run

K = 7
CHUNK = 16384  # columns that a block takes at once
SLOTS = 2048  # of candidates, for K up to 512


def by_sorting(score, count, K):
    """A stable sort keeps the lower index first; torch sorts NaN to the top."""
    rows = torch.full((len(score), K), -1, dtype=torch.int32)
    for m, row in enumerate(score):
        best, index = row[: max(0, int(count[m]))].sort(descending=True, stable=True)
        index = index[:K][best[:K] != -torch.inf].sort().values
        rows[m, : len(index)] = index.int()
    return rows


def check(score, count, K=K, **how):
    (index,) = run(op, [score, count], K=K, finite=False, **how)
    assert torch.equal(index, by_sorting(score, count, K))
    assert torch.equal(index, reference.topk(score, count, K))
    return index


def test_the_reference_works_in_pieces_and_in_float64(seed, monkeypatch):
    score = adversaries(300)
    count = lengths(*range(0, 350, 35))
    monkeypatch.setattr(reference, "_AT_ONCE", 3 * 300)
    for wide in (score, score.double()):
        assert torch.equal(reference.topk(wide, count, K), by_sorting(wide, count, K))


def lengths(*counts):
    return torch.tensor(counts, dtype=torch.int32)


def test_every_row_of_few_values():
    values = (-torch.inf, -1.0, 0.0, torch.nan)
    rows = torch.tensor(list(itertools.product(values, repeat=4)))
    score = torch.zeros(len(rows), 8)
    score[:, 2:6] = rows
    check(score, lengths(*(6 + i % 3 for i in range(len(rows)))), K=4)


def test_lengths_around_k_and_a_chunk(seed):
    torch.manual_seed(seed)
    around = [n + d for n in (K, SLOTS, CHUNK, 2 * CHUNK) for d in (-1, 0, 1)]
    counts = [0, 1, *around, -5, 1 << 30]
    check(torch.randn(len(counts), 2 * CHUNK + 4), lengths(*counts), checked=True)


@pytest.mark.parametrize("S", [0, 4])
def test_rows_shorter_than_k(S):
    index = check(torch.zeros(3, S), lengths(S, 0, S))
    assert index[1].tolist() == [-1] * K


def test_no_rows():
    check(torch.zeros(0, 8), lengths())


def adversaries(n):
    """Rows in which every score joins the candidates, none does, or all are alike."""
    up = torch.arange(float(n))
    two = (up % 3 == 0).float()
    tiny = (up % 5) * 2.0**-149
    zeros = torch.where(up % 2 == 0, 0.0, -0.0)
    ends = torch.full((n,), -torch.inf)
    ends[[0, n - 1]] = -1.0
    special = up.clone()
    special[::97], special[1::97], special[2::97] = torch.nan, torch.inf, -torch.inf
    negative_nan = torch.where(up % 1000 == 999, -torch.nan, -up)
    return torch.stack([up, -up, two, -two, tiny, -tiny, zeros, ends, special, negative_nan])


@pytest.mark.parametrize("K", [1, K, 512, 2048])
def test_ties_order_and_special_values(K):
    score = adversaries(CHUNK + SLOTS + 4)
    check(score, lengths(*[score.shape[1] - 1] * len(score)), K=K)


@pytest.mark.parametrize("K", [256, 257, 1024, 1025])
def test_any_number_of_groups_and_slots(K, seed):
    torch.manual_seed(seed)
    slots = 2048 * -(-4 * K // 2048)
    counts = [K, slots - 1, slots, slots + 1, CHUNK + 5]
    score = torch.randn(2 * len(counts), CHUNK + 8)
    score[::2] = score[::2].round()  # ties
    check(score, lengths(*counts, *counts), K=K)


def test_the_first_floor_keeps_its_equals():
    """Keys of two zero bytes: the first floor is exact, and every score is equal to it."""
    score = torch.full((2, CHUNK), 1.0)
    score[1, :: CHUNK // 8] = 2.0
    index = check(score, lengths(CHUNK, CHUNK), K=512)
    assert index[0].tolist() == list(range(512))


def test_scores_that_find_no_slot_come_later(seed):
    """Slots are full again and again within a chunk; the best, and ties of it, come at its end."""
    torch.manual_seed(seed)
    up = torch.arange(float(2 * CHUNK)) // 3
    steps = up.repeat(2, 1)
    steps[1] += torch.randint(0, 700, (2 * CHUNK,))
    check(steps, lengths(2 * CHUNK, 2 * CHUNK), K=512)


@pytest.mark.parametrize("n", [2047, 2048, 2049])
def test_the_boundary_of_flash(n, seed):
    torch.manual_seed(seed)
    score = torch.randn(2, 2052)
    score[1] = score[1].round()  # ties
    check(score, lengths(n, n), K=512)


def test_the_longest_row(seed):
    torch.manual_seed(seed)
    check(torch.randn(1, 1 << 18).relu(), lengths(1 << 18), K=512)


def test_more_candidates_than_positive_scores_keep_the_lowest_zeros():
    score = torch.zeros(1, 2 * CHUNK)
    score[0, [5000, 18000]] = 1.0
    assert check(score, lengths(2 * CHUNK)).tolist() == [[0, 1, 2, 3, 4, 5000, 18000]]


def test_a_row_does_not_see_its_neighbours(seed):
    torch.manual_seed(seed)
    score = torch.randn(9, 5124).round()
    count = torch.randint(0, 5125, (9,), dtype=torch.int32)
    (together,) = run(op, [score, count], K=K, finite=False)
    for m in range(9):
        (alone,) = run(op, [score[m : m + 1], count[m : m + 1]], K=K, finite=False)
        assert torch.equal(alone[0], together[m])


def test_schedules_agree(seed):
    torch.manual_seed(seed)
    score = torch.randn(3, CHUNK + 4).round()
    assert_schedules_agree(op, [score, lengths(CHUNK + 4, SLOTS + 1, 99)], K=K)


def test_architectures_agree(seed):
    torch.manual_seed(seed)
    score = torch.randn(2, CHUNK + 4).round()
    assert_archs_agree(op, [score, lengths(CHUNK + 4, CHUNK)], K=K)
