"""Count the writers of every element at small sizes, by evaluating every store of every thread.

No solver is involved: this is how a failed coverage proof becomes a concrete defect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .domain import TensorFacts, contiguous
from .facts import Access
from .terms import Symbol, Term, const, evaluate

if TYPE_CHECKING:
    from .props import Launch

_AT_ONCE = 1 << 22
_MOST_POINTS = 1 << 25
_SIZES = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 1000)


@dataclass(frozen=True)
class Miscount:
    """An element with the wrong number of writers. `points` are two of them, if it has several."""

    sizes: Mapping[Symbol, int]
    element: int
    extent: int
    count: int
    points: tuple[Mapping[Symbol, int], ...] = ()
    written: int | None = None


def miscount(launch: Launch, tensor: str, writes: list[Access], once: bool) -> Miscount | None:
    """The first element, at the smallest size tried, that breaks the contract."""
    for sizes in _candidates(launch):
        exists = _existing(launch.domain.tensors[tensor], sizes)
        if exists is None:
            continue
        extent = len(exists)
        counts = np.zeros(extent, np.int64)
        try:
            for access in writes:
                for elements, _ in _elements(launch, access, sizes):
                    inside = elements[(elements >= 0) & (elements < extent)]
                    counts += np.bincount(inside, minlength=extent)
        except (KeyError, _TooManyError):
            continue  # depends on data, or too large to count
        bad = np.flatnonzero(exists & ((counts == 0) | (once & (counts > 1))))
        if len(bad):
            element = int(bad[0])
            count = int(counts[element])
            points = _writers(launch, writes, sizes, element) if count else ()
            return Miscount(sizes, element, extent, count, points, int((counts > 0).sum()))
    return None


class _TooManyError(Exception):
    pass


def _existing(tensor: TensorFacts, sizes: Mapping[Symbol, int]) -> np.ndarray | None:
    """Which offsets are elements of a tensor; None for no or too many offsets."""
    shape = [int(evaluate(n, sizes)) for n in tensor.shape]
    if 0 in shape:
        return None
    strides = tensor.strides or contiguous(tensor.shape)
    offsets: Any = np.zeros(1, np.int64)
    last = 0
    for n, stride in zip(shape, (int(evaluate(s, sizes)) for s in strides), strict=True):
        last += (n - 1) * stride
        if last >= _AT_ONCE:
            return None
        offsets = np.add.outer(offsets, np.arange(n) * stride)
    exists = np.zeros(last + 1, bool)
    exists[offsets.reshape(-1)] = True
    return exists


def _candidates(launch: Launch) -> Iterator[dict[Symbol, int]]:
    """Small sizes of the domain: all dims at the same step of a short list, smallest first."""
    domain = launch.domain
    seen = set()
    for size in _SIZES:
        point = {}
        for s in domain.dims.values():
            multiple = domain.multiples.get(s.name, 1)
            value = -(-max(size, s.lo.value) // multiple) * multiple
            point[s] = min(value, s.hi.value // multiple * multiple)
        domain.spread_rows(point)
        key = tuple(point.values())
        if key not in seen:
            seen.add(key)
            yield point


def choices(
    s: Symbol, conditions: Iterable[Term], point: Mapping[Symbol, Any] | None = None
) -> np.ndarray:
    """Every value of an index, without those that a condition on it alone rules out: of the threads
    that a copy's election is open to, one is left."""
    lo, hi = (int(np.max(evaluate(e, point or {}))) for e in (s.lo, s.hi))
    values = np.arange(lo, hi + 1)
    for c in conditions:
        if c.symbols == {s} and not any(True for _ in c.loads()):
            values = values[np.broadcast_to(evaluate(c, {s: values}), values.shape).astype(bool)]
    return values


def _elements(
    launch: Launch, access: Access, sizes: Mapping[Symbol, int]
) -> Iterator[tuple[np.ndarray, list[tuple[Symbol, np.ndarray]]]]:
    """Every element a store writes, with the point of each, some blocks at a time."""
    lane = Symbol("lane", "lane", const(0), const(access.lanes - 1))
    symbols = [*launch.facts.symbols.values(), *access.context.loops, lane]
    point: dict[Symbol, Any] = dict(sizes)
    total = 1
    for i, s in enumerate(symbols):
        values = choices(s, access.context.path, point)
        total *= len(values)
        if total > _MOST_POINTS:
            raise _TooManyError
        shape = [1] * len(symbols)
        shape[i] = -1
        point[s] = values.reshape(shape)
    parts = max(1, -(-total // _AT_ONCE))
    widest = max(symbols, key=lambda s: (s.kind == "block", point[s].size))
    for some in np.array_split(point[widest], parts, symbols.index(widest)):
        yield _stored(access, symbols, {**point, widest: some}, lane)


def _stored(
    access: Access, symbols: list[Symbol], point: Mapping[Symbol, Any], lane: Symbol
) -> tuple[np.ndarray, list[tuple[Symbol, np.ndarray]]]:
    grid = np.broadcast_shapes(*(point[s].shape for s in symbols))
    keep = np.broadcast_to(True, grid)
    for s in symbols:  # loops whose range depends on an index around them
        keep = keep & (point[s] >= evaluate(s.lo, point)) & (point[s] <= evaluate(s.hi, point))
    for c in access.context.path:
        keep = keep & np.asarray(evaluate(c, point)).astype(bool)
    index = np.broadcast_to(evaluate(access.index, point) + point[lane], grid)[keep]
    where = [(s, np.broadcast_to(point[s], grid)[keep]) for s in symbols]
    return index.astype(np.int64), where


def _writers(
    launch: Launch, writes: list[Access], sizes: Mapping[Symbol, int], element: int
) -> tuple[Mapping[Symbol, int], ...]:
    """Two points that write the element."""
    found: list[Mapping[Symbol, int]] = []
    for access in writes:
        for elements, where in _elements(launch, access, sizes):
            for i in np.flatnonzero(elements == element)[:2]:
                found.append({**sizes, **{s: int(v[i]) for s, v in where if s.kind != "lane"}})
    return tuple(found[:2])
