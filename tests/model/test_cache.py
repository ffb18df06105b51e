"""Row numbers of pools against a cache that remembers which token every row holds."""

import random

import pytest
import torch

from tileproof.dsl import ContractError
from tileproof.model.cache import Chunk, Pages, Rows, Tokens, all_entries, closing, window

SLOTS, WINDOW, RATIO, PAGE, PAGES, SCRATCH = 3, 8, 4, 16, 64, 40


def name(slot, position):
    return slot * 1000 + position


def named(pool, rows, fresh=()):
    """What `rows` hold; -2 - i is `fresh` number i, -1 none."""
    return [
        int(pool[r]) if r >= 0 else int(fresh[-2 - r]) if r < -1 else None for r in rows.tolist()
    ]


def batches(seed, count=6):
    """Random batches, each some requests' next 1 to 13 tokens."""
    draw = random.Random(seed)
    position = [0] * SLOTS
    for _ in range(count):
        chunks = []
        for slot in draw.sample(range(SLOTS), draw.randint(1, SLOTS)):
            count = draw.choice([1, 1, 2, 3, 7, 8, 9, 13])
            chunks.append(Chunk(slot, position[slot], count))
            position[slot] += count
        yield chunks


@pytest.mark.parametrize("case", range(20))
def test_lists_name_the_tokens_they_should(case):
    pages = Pages(SLOTS, PAGES, PAGE)
    layouts = {"window": Rows(SLOTS, WINDOW), "state": Rows(SLOTS, 2 * RATIO)}
    pools = {k: torch.full((SLOTS * r.ring + SCRATCH,), -7) for k, r in layouts.items()}
    compressed = torch.full((PAGES * PAGE // RATIO,), -7)
    for chunks in batches(case):
        pages.reserve(chunks)
        tokens = Tokens.of(chunks)
        names = name(tokens.slot, tokens.position)
        pools["window"][tokens.written(layouts["window"]).long()] = names
        listed = window(tokens, layouts["window"])
        made = closing(tokens, layouts["state"], pages, RATIO)
        for source, first, row in zip(made.source, made.position.tolist(), made.row, strict=True):
            got = named(pools["state"], source, names)
            slot = got[-1] // 1000
            own = range(first - RATIO, first + RATIO)
            assert got == [name(slot, p) if p >= 0 else None for p in own]
            compressed[int(row)] = name(slot, first // RATIO)
        entries = all_entries(tokens.slot, tokens.position, pages, RATIO)
        for m, (slot, p) in enumerate(
            zip(tokens.slot.tolist(), tokens.position.tolist(), strict=True)
        ):
            near = [name(slot, q) for q in range(max(0, p - WINDOW + 1), p + 1)]
            assert named(pools["window"], listed[m]) == near + [None] * (WINDOW - len(near))
            far = [name(slot, e) for e in range((p + 1) // RATIO)]
            assert named(compressed, entries[m]) == far + [None] * (entries.shape[1] - len(far))
        for k, rows in layouts.items():
            kept = tokens.kept(rows).long()
            pools[k][kept[kept >= 0]] = names[kept >= 0]
            pools[k][SLOTS * rows.ring :] = -7  # scratch rows do not outlive the batch


def test_pages_go_back_and_run_out():
    pages = Pages(2, 3, PAGE)
    pages.reserve([Chunk(0, 0, PAGE + 1)])
    with pytest.raises(ContractError, match="got 1 free pages of 16 tokens, expected at least 2"):
        pages.reserve([Chunk(1, 0, 2 * PAGE), Chunk(0, PAGE + 1, 1)])
    assert not pages.table[1], "a refused batch takes nothing"
    pages.release(0)
    pages.reserve([Chunk(1, 0, 3 * PAGE)])
    assert sorted(pages.table[1]) == [0, 1, 2]


def test_an_empty_batch_has_empty_lists():
    tokens = Tokens.of([])
    assert window(tokens, Rows(2, 8)).shape == (0, 8)
    pages = Pages(2, 3, PAGE)
    assert all_entries(tokens.slot, tokens.position, pages, RATIO).shape == (0, 0)
    assert not len(closing(tokens, Rows(2, 8), Pages(2, 3, PAGE), RATIO).row)
