"""norm/kv_row: RMSNorm and RoPE, at the slots it is told."""

import pytest
import torch

from tileproof.kernels.norm import reference
from tileproof.kernels.norm.kv_row import op

from ..support import (
    ACT_UNIT,
    UNIT,
    assert_archs_agree,
    assert_schedules_agree,
    assert_within,
    run,
)

TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
TINY = {"D": 32, "Q": 4}


def call(M, seed, D=32, Q=4, act="bf16", weight="f32", pitch=None):
    """Tokens at falling positions, every third without a slot; rows apart are NaN between."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.full((M, pitch or D), float("nan"))
    x[:, :D] = torch.randn(M, D, generator=draw) * 3
    angle = torch.rand(M + 1, Q, generator=draw) * 6
    slot = torch.randperm(M + 2, generator=draw)[:M].int()
    slot[::3] = -1
    gain = 1 + torch.randn(D, generator=draw) / 4
    tables = angle.cos(), angle.sin(), torch.arange(M, 0, -1).int()
    rows = torch.full((M + 2, D), -7.0, dtype=TYPES[act])
    return [x.to(TYPES[act])[:, :D], gain.to(TYPES[weight]), *tables, slot, rows]


@pytest.mark.parametrize("M", [0, 1, 65])
@pytest.mark.parametrize(
    "sizes",
    [
        {**TINY, "act": "bf16", "weight": "f32"},
        {**TINY, "act": "f32", "weight": "bf16", "pitch": 48},
        {"D": 512, "Q": 32, "act": "bf16", "weight": "bf16", "pitch": 520},
        {"D": 48, "Q": 24, "act": "f32", "weight": "f32"},
    ],
)
def test_entries_are_right_to_rounding(M, sizes, seed):
    """The norm is off by half the additions of a tree and one rounding, a pair shares that; in
    bf16 two roundings."""
    inputs = call(M, seed, **sizes)
    sizes = {k: v for k, v in sizes.items() if k != "pitch"}
    run(op, inputs, finite=False, **sizes)
    x, gain, cos, sin, position, slot, rows = inputs
    exact = torch.full(rows.shape, -7.0).double()
    reference.kv_row(x.double(), gain, cos, sin, position, slot, exact)
    unit = (sizes["D"] // 2 + 8) * UNIT + 3 * ACT_UNIT[sizes["act"]]
    assert_within(rows, exact, 2 * unit * exact.abs().amax(-1, keepdim=True) * (exact != -7))


def test_one_pair_that_is_turned_by_a_right_angle():
    """(x, y) -> (-y, x), by the table's row of the token's position."""
    x = torch.ones(1, 16)
    x[0, 14], x[0, 15] = 3.0, -1.0
    x *= (x.square().mean() + 1e-6).rsqrt()
    cos, sin = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    rows = torch.zeros(1, 16)
    lists = torch.tensor([1]).int(), torch.tensor([0]).int()
    run(op, [x, torch.ones(16), cos, sin, *lists, rows], finite=False, D=16, Q=2, act="f32")
    expected = x.clone()
    expected[0, 14], expected[0, 15] = -x[0, 15], x[0, 14]
    assert_within(rows, expected, 16 * UNIT * x.abs().max())


def test_a_token_does_not_see_its_neighbours(seed):
    inputs = call(67, seed)
    run(op, inputs, finite=False, **TINY)
    for m in (1, 4, 65):
        alone = [t[m : m + 1] if i in (0, 4, 5) else t for i, t in enumerate(inputs[:-1])]
        rows = torch.full_like(inputs[-1], -7)
        run(op, [*alone, rows], finite=False, **TINY)
        slot = inputs[5][m]
        assert torch.equal(rows[slot], inputs[-1][slot])
        assert (rows == -7).all(1).sum() == len(rows) - 1


def test_nan_stays_in_its_row(seed):
    inputs = call(9, seed)
    inputs[0][4, 3] = float("nan")
    run(op, inputs, finite=False, **TINY)
    wrong = inputs[-1].isnan().any(1).nonzero().flatten().tolist()
    assert wrong == [inputs[5][4]]
    assert inputs[-1][wrong].isnan().all()


def test_schedules_and_architectures_agree(seed):
    assert_schedules_agree(op, call(9, seed), **TINY)
    assert_archs_agree(op, call(9, seed), **TINY)
