"""Hypothesis strategies drawn from an op's declaration: sizes at the edges of its domain, inputs.

Needs the ``dev`` extra (Hypothesis); nothing else imports this module.
"""

from __future__ import annotations

import zlib
from typing import Any

import hypothesis.strategies as st
import numpy as np
from numpy.typing import NDArray

from .expression import evaluate
from .facts import draw_distinct
from .spec import BoundTensor, Dim, Op, Specialization


def edges(d: Dim, tile: int, cap: int) -> list[int]:
    """Sizes of one dim where kernels break: its ends, around one and two tiles, a large odd one."""
    around = [0, 1, 2, 3, tile - 1, tile, tile + 1, 2 * tile - 1, 2 * tile, 2 * tile + 1, cap | 1]
    rounded = {d.lo, *(v - v % d.multiple for v in around)}
    return sorted(v for v in rounded if d.lo <= v <= min(d.hi, cap | 1))


def sizes(op: Op, *, tile: int = 32, cap: int = 257) -> st.SearchStrategy[dict[str, int]]:
    """Dynamic dims of one call, edges first, then anything up to `cap` (in elements).

    Pitches are left to :func:`pitches`, which needs to know how long a row is.
    """

    def one(d: Dim) -> st.SearchStrategy[int]:
        most = min(d.hi, cap) // d.multiple
        anything = st.integers(-(-d.lo // d.multiple), most).map(lambda v: v * d.multiple)
        return st.sampled_from(edges(d, tile, cap)) | anything

    free = {letter: d for letter, d in op.dynamic.items() if letter not in op.pitches}
    return st.fixed_dictionaries({letter: one(d) for letter, d in free.items()})


def pitches(spec: Specialization, dims: dict[str, int]) -> st.SearchStrategy[dict[str, int]]:
    """Strides for a call at `dims`: the least, one step more, and far more."""
    least = spec.sizes(**dims)
    choices = {
        letter: [min(least[letter] + steps * d.multiple, d.hi) for steps in (0, 1, 13)]
        for letter, d in spec.op.pitches.items()
    }
    return st.fixed_dictionaries({k: st.sampled_from(v) for k, v in choices.items()})


def inputs(
    spec: Specialization, dims: dict[str, int], seed: int, *, scale: float = 1.0
) -> dict[str, NDArray[Any]]:
    """Seeded input arrays by name, float32 or int64 (the caller casts to the declared type).

    Integer tensors with a `Values` contract get both ends of their range, ``none`` included.
    """
    shapes = spec.bind(**dims)
    return {
        a.name: _draw(a, shapes[a.name], {**spec.dims, **dims}, seed, scale)
        for a in spec.args
        if a.role != "out"
    }


def _draw(
    a: BoundTensor, shape: tuple[int, ...], sizes: dict[str, int], seed: int, scale: float
) -> NDArray[Any]:
    rng = np.random.default_rng([seed, zlib.crc32(a.name.encode())])
    if a.dtype.code not in (0, 1):
        return (rng.standard_normal(shape) * scale).astype(np.float32)
    bounds = ("0", "1") if a.values is None else (a.values.lo, a.values.hi)
    lo, hi = (evaluate(bound, sizes) for bound in bounds)
    drawn = rng.integers(lo, max(hi, lo), size=shape, endpoint=True, dtype=np.int64)
    flat = drawn.reshape(-1)
    if a.values is not None and a.values.distinct:
        draw_distinct(rng, flat, lo, hi, a.values.none)
    elif a.values is not None and flat.size:
        ends = [lo, hi] if hi >= lo else []
        ends += [] if a.values.none is None else [a.values.none]
        where = rng.permutation(flat.size)[: len(ends)]
        flat[where] = ends[: len(where)]
        if hi < lo and a.values.none is not None:
            flat[:] = a.values.none
        if a.values.monotone:
            drawn = np.sort(flat.reshape(shape), axis=-1)
    return drawn
