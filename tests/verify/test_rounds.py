"""Loops whose rounds repeat: most are not executed, and what one of those would have done shows."""

import numpy as np
import pytest
import tilelang.language as T

from tileproof.verify import Verdict, alike, rounds

from .test_determinism import verdict

ROUNDS = 64


def summed(
    row=lambda g, t: t,
    read=lambda x, r, g, t: x[r, g],
    held=lambda g, t: t,
    kept=lambda g, t: t,
    factor=lambda x, g, t: x,
    asked=lambda g: g,
    old=lambda factors, t: factors[t, 0],
    slots=3,
    depth=2,
):
    """Eight rows a block, a thread each, which sums what it finds in a ring of shared memory, times
    a factor that lies there from before, and what it found `depth` rounds ago."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 128), "float32"), y: T.Tensor((M,), "float32")):
        with T.Kernel(T.ceildiv(M, 8), threads=8) as block:
            ring = T.alloc_shared((slots, 8), "float32")
            factors = T.alloc_shared((8, 128), "float32")
            found = T.alloc_local((depth + 1,), "float32")
            total = T.alloc_local((1,), "float32")
            t = T.get_thread_binding()
            if block * 8 + t < M:
                for g in T.serial(128):
                    factors[kept(g, t), g] = factor(x[block * 8 + t, g], g, t)
            T.sync_threads()
            for i in T.serial(depth):
                found[i + 1] = factors[t, i + 1] * 2.0
            found[0] = old(factors, t) * 2.0
            total[0] = 0.0
            for g in T.serial(ROUNDS):
                if block * 8 + row(g, t) < M:
                    ring[g % slots, t] = read(x, block * 8 + row(g, t), g, t)
                T.sync_threads()
                for i in T.serial(depth):
                    found[depth - i] = found[depth - i - 1]
                found[0] = ring[g % slots, held(g, t)] * factors[t, asked(g)]
                total[0] += found[depth] + found[0]
                T.sync_threads()
            if block * 8 + t < M:
                y[block * 8 + t] = total[0]

    return kernel


def late(other, usual=lambda g, t: t, when=50):
    return lambda g, t: T.if_then_else(g == when, other(g, t), usual(g, t))


def partner(g, t):
    return t ^ 1


CLEAN = {
    "a ring of three": summed(),
    "a ring of two": summed(slots=2),
    "two columns a round": summed(read=lambda x, r, g, t: x[r, 2 * g]),
    "a column that stays": summed(read=lambda x, r, g, t: x[r, 5]),
    "a column out of turn": summed(read=lambda x, r, g, t: x[r, T.if_then_else(g == 50, 3, g)]),
    "one factor for all": summed(asked=lambda g: 7),
    "a factor out of turn": summed(asked=lambda g: T.if_then_else(g == ROUNDS - 1, 0, g)),
}
PARTED = {
    "another's cell late": summed(held=late(partner)),
    "another's cell in the last round": summed(held=late(partner, when=ROUNDS - 1)),
    "another's row late": summed(row=late(partner)),
    "the row after late": summed(row=late(lambda g, t: t + 1)),
    "another column": summed(
        read=lambda x, r, g, t: x[r, T.if_then_else(t == 3, 2 * g, g)]
    ),
    "another column late": summed(
        read=lambda x, r, g, t: x[r, T.if_then_else((g == 50) & (t == 3), 0, g)]
    ),
    "another column late by a load of its own": summed(
        read=lambda x, r, g, t: T.if_then_else(
            t == 3, x[r, T.if_then_else(g == 50, 0, g)], x[r, g]
        )
    ),
    "another's factor late": summed(kept=late(partner)),
    "another factor late": summed(
        factor=lambda x, g, t: T.if_then_else((g == 50) & (t == 3), x + x, x)
    ),
    "another's from before": summed(old=lambda factors, t: factors[t ^ 1, 0], depth=30),
    "another from before": summed(
        old=lambda factors, t: T.if_then_else(t == 3, factors[t, 0] + 1.0, factors[t, 0]), depth=30
    ),
}  # fmt: skip


@pytest.fixture
def tiles(monkeypatch):
    """Every tile that is executed."""
    made = []

    class Kept(alike.Tile):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(alike, "Tile", Kept)
    return made


@pytest.mark.parametrize("name", CLEAN)
def test_rounds_that_repeat_are_left_out(name, tiles, monkeypatch):
    assert verdict(CLEAN[name], batch=["M"]).verdict is Verdict.PROVED
    monkeypatch.setattr(rounds, "_FEWEST", 1 << 30)
    assert verdict(CLEAN[name], batch=["M"]).verdict is Verdict.PROVED
    short, full = tiles
    assert short.shortened and not full.shortened
    assert 2 * short.steps < full.steps


@pytest.mark.parametrize("name", PARTED)
def test_what_a_round_that_may_be_left_out_does_is_seen(name, tiles):
    found = verdict(PARTED[name], batch=["M"])
    assert found.verdict is Verdict.ALARM, found
    assert any("of its tile" in reason for reason in found.reasons)
    assert not tiles[-1].shortened  # what is said is of all rounds


def test_words_that_follow_others():
    before = np.array([7, 7, 8, 9], np.uint64)
    assert rounds.follows(before, np.array([1, 1, 2, 3], np.uint64))
    assert rounds.follows(before, np.array([1, 1, 1, 3], np.uint64))
    assert not rounds.follows(before, np.array([1, 4, 2, 3], np.uint64))
