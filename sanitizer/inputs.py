"""Arguments for a kernel nobody here wrote: drawn from types, sizes and facts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tileproof.codegen.lower import Parameter
from tileproof.dsl import Facts, check
from tileproof.dsl.expression import evaluate
from tileproof.dsl.facts import draw_distinct

# Sizes of a dim nobody said anything about: around common tiles, odd, one.
_SIZES = (65, 128, 1, 33, 127, 257)


@dataclass(frozen=True)
class Draw:
    """One set of arguments, in signature order; outputs hold poison."""

    number: int
    dims: dict[str, int]
    arguments: list[Any]
    outputs: frozenset[str]


def draw(
    parameters: Sequence[Parameter], written: set[str], facts: Facts, seed: int, number: int
) -> Draw:
    """Arguments number `number` of `seed`: the same every time.

    Integer tensors with a range get both of its ends. Tensors in `written` and not in
    ``facts.inout`` are outputs.
    """
    names = {p.name for p in parameters}
    for key in ("inout", "monotone", "distinct"):
        unknown = sorted(set(getattr(facts, key)) - names)
        check(not unknown, f"facts.{key}", got=unknown, expected=f"among {sorted(names)}")
    dims = _sizes(parameters, facts, seed, number)
    arguments: list[Any] = []
    outputs = frozenset(written - set(facts.inout))
    for p in parameters:
        if p.shape is None:
            arguments.append(dims[p.name])
            continue
        shape = tuple(evaluate(str(d), dims) for d in p.shape)
        rng = np.random.default_rng([seed, number, zlib.crc32(p.name.encode())])
        is_output = p.name in outputs
        value = _poison(p.dtype, shape) if is_output else _tensor(p, shape, dims, facts, rng)
        arguments.append(value if p.strides is None else _spread(value, p, facts, dims, number))
    return Draw(number, dims, arguments, outputs)


def _sizes(parameters: Sequence[Parameter], facts: Facts, seed: int, number: int) -> dict[str, int]:
    """A size for every symbol of the shapes and every scalar parameter."""
    symbols: dict[str, None] = {}
    for p in parameters:
        wanted = (p.name,) if p.shape is None else p.shape
        symbols |= {s: None for s in wanted if isinstance(s, str) and s.isidentifier()}
    dims = {}
    for position, name in enumerate(symbols):
        lo, hi = facts.dims.get(name, (1, 1 << 20))
        multiple = facts.multiples.get(name, 1)
        least, most = -(-lo // multiple) * multiple, hi // multiple * multiple
        expected = f"a multiple of {multiple} in {lo}..{hi}"
        check(least <= most, f"dim {name}", got="none", expected=expected)
        sizes = [size - size % multiple for size in _SIZES]
        choices = [size for size in sizes if least <= size <= most] or [least]
        if name in facts.dims and least not in choices and number:
            choices.append(least)  # the end of a range somebody gave
        dims[name] = choices[(number + position * (number > 0)) % len(choices)]
    return dims


def _spread(
    value: torch.Tensor, p: Parameter, facts: Facts, dims: dict[str, int], number: int
) -> torch.Tensor:
    """The tensor with the strides it is declared to have, its gaps poisoned. Strides with a name
    are the least possible in the first draw, one step of their multiple more in every later one."""
    strides: list[int] = []
    least = 1
    for size, declared in zip(reversed(value.shape), reversed(p.strides or ()), strict=True):
        if isinstance(declared, str):
            multiple = facts.multiples.get(declared, 1)
            more = multiple * number if strides else 0
            declared = dims.setdefault(declared, -(-least // multiple) * multiple + more)
        strides.insert(0, declared)
        least = max(1, size) * declared
    last = sum((n - 1) * s for n, s in zip(value.shape, strides, strict=True))
    storage = _poison(p.dtype, (last + 1 if value.numel() else 0,))
    return storage.as_strided(value.shape, strides).copy_(value)


def _torch_dtype(name: str) -> torch.dtype:
    known = getattr(torch, name, None)
    check(isinstance(known, torch.dtype), "tensor type", got=name, expected="a type torch has")
    assert isinstance(known, torch.dtype)
    return known


def _poison(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """All ones: NaN in every float format, -1 in every integer."""
    tensor = torch.empty(shape, dtype=_torch_dtype(dtype))
    tensor.reshape(-1).view(torch.uint8).fill_(0xFF)
    return tensor


def _tensor(
    p: Parameter, shape: tuple[int, ...], dims: dict[str, int], facts: Facts, rng: Any
) -> torch.Tensor:
    dtype = _torch_dtype(p.dtype)
    if dtype.is_floating_point:
        if dtype.itemsize == 1 and p.dtype.endswith("e8m0fnu"):
            return torch.from_numpy(rng.integers(120, 135, shape, np.uint8)).view(dtype)
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(dtype)
    if dtype is torch.bool:
        return torch.from_numpy(rng.integers(0, 2, shape).astype(np.bool_))
    values = _integers(p.name, shape, dims, facts, rng)
    return torch.from_numpy(values).to(dtype)


def _integers(
    name: str, shape: tuple[int, ...], dims: dict[str, int], facts: Facts, rng: Any
) -> NDArray[np.int64]:
    lo, hi = (evaluate(str(end), dims) for end in facts.values.get(name, (0, 1)))
    none = facts.none.get(name)
    drawn: NDArray[np.int64] = rng.integers(lo, max(hi, lo), shape, np.int64, endpoint=True)
    flat = drawn.reshape(-1)
    if name in facts.distinct:
        draw_distinct(rng, flat, lo, hi, none)
        return drawn
    ends = [lo, hi] if hi >= lo else []
    if none is not None:
        ends.append(none)
        if hi < lo:
            flat[:] = none
    where = rng.permutation(flat.size)[: len(ends)]
    flat[where] = ends[: len(where)]
    return np.sort(drawn, axis=-1) if name in facts.monotone else drawn
