"""compressor/pool_row: entries in place, the same bits for every cut of a request into chunks."""

import random

import pytest
import torch

from tileproof.dsl import ContractError
from tileproof.kernels.compressor import pool
from tileproof.kernels.compressor.pool_row import op

from ..support import assert_archs_agree, assert_schedules_agree, run
from .support import TYPES, Requests, weights

CSA = {"D": 32, "A": 4, "C": 64, "Q": 4}
HCA = {"D": 32, "A": 16, "C": 32, "Q": 4}
BRANCHES = pytest.mark.parametrize("sizes", [CSA, HCA], ids=["csa", "hca"])


def length(sizes):
    return sizes["A"] * (sizes["C"] // sizes["D"])


def call(lengths, sizes, seed, act="bf16", weight="f32", rows=256):
    """Inputs of one batch that holds whole requests."""
    requests = Requests(lengths, sizes["A"], sizes["C"], length(sizes), seed)
    fresh, source, position, slot, _ = requests.batch(list(enumerate(lengths)))
    pool = torch.full((rows, sizes["D"]), -7.0, dtype=TYPES[act])
    constants = weights(**sizes, seed=seed, weight=weight)
    return [requests.kept, fresh, source, position, *constants, slot, pool]


@BRANCHES
@pytest.mark.parametrize(("act", "weight"), [("bf16", "f32"), ("f32", "bf16")])
def test_rows_are_the_entries_of_pool(sizes, act, weight, seed):
    """Bit for bit, with cos and sin from the tables; other rows stay."""
    inputs = call([33, 3, 64, 16, 0], sizes, seed, act, weight)
    run(op, inputs, finite=False, **sizes, act=act, weight=weight)
    kept, fresh, source, position, ape, gain, cos, sin, slot, rows = inputs
    at = position.long()
    passed = [kept, fresh, source, ape, gain, cos[at], sin[at]]
    (made,) = run(pool.op, passed, **sizes, act=act, weight=weight)
    expected = torch.full_like(rows, -7.0)
    expected[slot.long()] = made
    assert torch.equal(rows, expected)


@BRANCHES
def test_the_first_entry_has_only_tokens_there_are(sizes, seed):
    """Without the rows it does not read, state and all: they are NaN."""
    inputs = call([sizes["A"]], sizes, seed, "f32")
    run(op, inputs, finite=False, **sizes, act="f32")
    assert (inputs[2] == -1).sum() == length(sizes) - sizes["A"]
    assert not inputs[-1][0].isnan().any()


@BRANCHES
@pytest.mark.parametrize("act", ["bf16", "f32"])
def test_bits_do_not_say_how_requests_were_cut(sizes, act, seed):
    """Prefill of P tokens and then one by one, for P that leave every rest, several at a time; and
    random chunks. Three requests at different positions are in each batch."""
    A, most = sizes["A"], 3 * sizes["A"] + 2
    constants = weights(**sizes, seed=seed)
    whole = call([most] * 3, sizes, seed, act)
    run(op, whole, finite=False, **sizes, act=act)
    draw = random.Random(seed)
    for round in range(A if A < 8 else 6):
        requests = Requests([most] * 3, A, sizes["C"], length(sizes), seed)
        pool = torch.full_like(whole[-1], -7)
        prompts = [(r, round + r * A // 3 + 1) for r in range(3)]
        requests.run(op, prompts, constants, [pool], **sizes, act=act)
        while any(n < most for n in requests.done):
            left = [(r, most - n) for r, n in enumerate(requests.done) if n < most]
            chunks = [(r, 1 if round % 2 else draw.randint(1, min(n, A + 3))) for r, n in left]
            requests.run(op, chunks, constants, [pool], **sizes, act=act)
        assert torch.equal(pool, whole[-1])


def test_an_entry_does_not_see_its_neighbours(seed):
    inputs = call([33, 64, 16], CSA, seed)
    run(op, inputs, finite=False, **CSA)
    for n in (0, 5, 27):
        alone = [t[n : n + 1] if i in (2, 3, 8) else t for i, t in enumerate(inputs[:-1])]
        rows = torch.full_like(inputs[-1], -7)
        run(op, [*alone, rows], finite=False, **CSA)
        slot = inputs[-2][n]
        assert torch.equal(rows[slot], inputs[-1][slot])
        assert (rows == -7).all(1).sum() == len(rows) - 1


def test_no_entries_and_entries_that_go_nowhere(seed):
    inputs = call([40], CSA, seed)
    inputs[-2][3:] = -1
    run(op, inputs, finite=False, **CSA)
    assert (inputs[-1] == -7).all(1).sum() == len(inputs[-1]) - 3
    empty = call([3], CSA, seed)
    run(op, empty, finite=False, **CSA)
    assert (empty[-1] == -7).all()


def test_a_window_without_tokens_is_zero(seed):
    inputs = call([8], CSA, seed)
    inputs[2][1] = -1
    run(op, inputs, finite=False, **CSA)
    assert not inputs[-1][1].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_windows(value, seed):
    """kv or z of one token: its own entry and the next are NaN, or without it if z is -inf."""
    clean = call([16], CSA, seed, "f32")
    run(op, clean, finite=False, **CSA, act="f32")
    for half in (0, 1):
        inputs = call([16], CSA, seed, "f32")
        inputs[1][6, half * 64 : half * 64 + 64] = value
        run(op, inputs, finite=False, **CSA, act="f32")
        got = inputs[-1][:4]
        assert torch.equal(got[[0, 3]], clean[-1][[0, 3]])
        assert bool(got[1:3].isnan().all()) != (half == 1 and value == -float("inf"))


def test_schedules_agree(seed):
    assert_schedules_agree(op, call([24, 9], CSA, seed), **CSA)


def test_architectures_agree(seed):
    assert_archs_agree(op, call([24, 9], HCA, seed), **HCA)


def test_columns_are_one_or_two_entries_wide():
    with pytest.raises(ContractError, match="compressor: columns: got 96, expected D or 2 D"):
        op.specialize(D=32, A=4, C=96, Q=4).prim_func("sm_80")
    with pytest.raises(ContractError, match="RoPE channels: got 40, expected a multiple of 4 up"):
        op.specialize(D=32, A=4, C=32, Q=20).prim_func("sm_80")
