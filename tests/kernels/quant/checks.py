"""Inputs at the edges of the formats, and comparison bit by bit, for tests of the quantisers."""

import numpy as np
import torch

from tileproof.dsl import formats

from ..support import run

TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def activations(M, K, act, seed, pitch=None):
    """[M, K]: groups of all magnitudes, ties of both formats, zeros, the least and the largest."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(M, K, generator=draw)
    groups = (M, -(-K // 32))
    exponents = torch.randint(-140, 125, groups, generator=draw)
    exponents[torch.rand(groups, generator=draw) < 0.5] = 0
    tied = torch.rand(groups, generator=draw) < 0.3
    exponents, tied = (t.repeat_interleave(32, -1)[:, :K] for t in (exponents, tied))
    x = torch.ldexp(x, exponents).clamp(-3e38, 3e38)
    # multiples of 1/8 lie halfway between codes
    x = torch.where(tied, torch.randint(-64, 65, (M, K), generator=draw) / 8, x)
    x[torch.rand(M, K, generator=draw) < 0.05] = 0
    if pitch is None:
        return x.to(TYPES[act])
    rows = torch.full((max(M, 1), pitch), float("nan"), dtype=TYPES[act])
    rows[:M, :K] = x.to(TYPES[act])
    return rows[:M, :K]


def codes(shape, dtype, seed):
    """Every byte there is, in random order."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8).view(dtype)


def assert_same(got, expected):
    """Equal bits, but any NaN for a NaN of a type that has many."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    if got.dtype in TYPES.values():
        assert torch.equal(got.isnan(), expected.isnan())
        got, expected = (t.masked_fill(t.isnan(), 0) for t in (got, expected))
    assert torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def assert_matches(op, inputs, arch="sm_80", checked=False, **sizes):
    """The kernel's outputs are the reference's."""
    outputs = run(op, inputs, arch, checked, finite=False, **sizes)
    expected = op.specialize(**sizes).reference(*inputs)
    expected = (expected,) if isinstance(expected, torch.Tensor) else expected
    for got, wanted in zip(outputs, expected, strict=True):
        assert_same(got, wanted)


def cast_with_ml_dtypes(x, B, largest, floor):
    """(scaled values, scale codes) of [M, K] finite `x` in NumPy, K a multiple of B."""
    groups = x.float().numpy().reshape(x.shape[0], -1, B)
    scales = formats.scale_ue8m0(np.abs(groups).max(-1), largest, floor)
    values = groups.astype(np.float64) / formats.ue8m0_to_float(scales)[..., None]
    return values.astype(np.float32).reshape(x.shape), scales


SPECIAL = (float("nan"), -float("nan"), float("inf"), -float("inf"))


def with_special(x, where):
    """`x` with NaN and infinities of both signs at the columns `where` of rows 0, 1, 2, 3."""
    x = x.clone()
    for row, (column, value) in enumerate(zip(where, SPECIAL, strict=True)):
        x[row, column] = value
    return x
