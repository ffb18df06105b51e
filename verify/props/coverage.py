"""Every element of an output is written: exactly once, or at least once, as its contract says.

The proof needs no quantifier over threads. Indices that a small constant bounds (threads, unrolled
loops, vector lanes) are enumerated; the others (blocks) must step through the tensor like the
leading digits of a mixed radix. Then
  1. the enumerated offsets fill one tile, each as often as promised;
  2. the steps of the outer indices lay tiles end to end and reach the tensor's end;
  3. a store's guard holds exactly when its element is in the tensor.
Together: each element in the tensor has exactly one writer. If a step fails, small sizes are
counted one by one, which either shows a concrete defect or leaves the property UNKNOWN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tileproof.verify import terms
from tileproof.verify.count import Miscount, choices, miscount
from tileproof.verify.digits import Digit, difference
from tileproof.verify.facts import Access, Context
from tileproof.verify.model import Counterexample, Verdict
from tileproof.verify.terms import Symbol, Term, apply, const, evaluate, le, mul, var

from ._run import PROVED, Goal, Launch

_MOST_POINTS = 1 << 22


class ShapelessError(Exception):
    """The stores of a tensor do not have the structure the proof needs; says why."""


@dataclass(frozen=True, eq=False)
class Outer:
    """Outer indices of one digit as (symbol, coefficient), smallest coefficient first."""

    steps: tuple[tuple[Symbol, int], ...]
    extent: Term


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per tensor with a `written` contract."""
    for tensor in launch.domain.tensors.values():
        if tensor.written is None:
            continue
        if tensor.name in launch.shared:
            yield Goal(Verdict.UNKNOWN, f"{tensor.name} is written by several launches")
        elif tensor.name in launch.outputs:
            writes = launch.writes(tensor.name)
            yield _covered(launch, tensor.name, writes, tensor.written == "once")


def _covered(launch: Launch, tensor: str, writes: list[Access], once: bool) -> Goal:
    updates = [a for a in writes if a.atomic not in ("", "store")]
    if updates and (once or updates == writes) and not launch.domain.tensors[tensor].inout:
        site = f"atomic {updates[0].atomic} at {updates[0].site}"
        message = f"{site} goes onto what {tensor} held before, which no contract gives"
        return Goal(Verdict.ALARM, message, Counterexample("coverage", site, message))
    joined = _joined(writes)
    reason = ""
    # Steps along a row and from row to row may only be told apart by cutting between the two.
    for digits in ([a.digits for a in joined], [a.coordinates for a in joined]):
        try:
            _prove(launch, list(zip(joined, digits, strict=True)), once)
            return PROVED
        except ShapelessError as why:
            reason = reason or f"coverage of {tensor}: {why}"
    defect = miscount(launch, tensor, writes, once)
    if defect is None or not (launch.complete or defect.count):
        # Where something is not modelled, that may be what writes the element.
        return Goal(Verdict.UNKNOWN, reason)
    example = _example(launch, tensor, writes, defect)
    verdict = Verdict.REFUTED if example.confirmed else Verdict.ALARM
    return Goal(verdict, example.message, example)


def _prove(launch: Launch, writes: list[tuple[Access, list[Digit]]], once: bool) -> None:
    if not writes:
        raise ShapelessError("it is never written")
    tiles = []
    layout: tuple[list[tuple[tuple[Symbol, int], ...]], list[Term]] | None = None
    for access, digits in writes:
        outer, offsets = _tile(launch, access, digits)
        shape = ([o.steps for o in outer], [o.extent for o in outer])
        if layout is not None and shape != layout:
            raise ShapelessError("its stores are laid out differently")
        layout = shape
        tiles.append(offsets)
    assert layout is not None
    sizes = [_tile_size(launch, steps, extent) for steps, extent in zip(*layout, strict=True)]
    every = np.concatenate(tiles, axis=1)
    if (every < 0).any() or any(
        (row >= size).any() for row, size in zip(every, sizes, strict=True)
    ):
        raise ShapelessError("a block writes outside its tile")
    flat = np.ravel_multi_index(tuple(every), tuple(sizes))
    counts = np.bincount(flat, minlength=int(np.prod(sizes)))
    if (counts == 0).any():
        raise ShapelessError("a block leaves holes in its tile")
    if once and (counts > 1).any():
        raise ShapelessError("two threads of a block write the same element")


def _joined(writes: list[Access]) -> list[Access]:
    """The stores, where two that differ in one condition, which one of them negates, are one: each
    thread makes exactly one of the two, whatever data decides which."""
    left = [*writes]
    for first in writes:
        for second in left:
            paths = [{*a.context.path} for a in (first, second)]
            only = [path - other for path, other in zip(paths, reversed(paths), strict=True)]
            if (
                first in left
                and [len(part) for part in only] == [1, 1]
                and _negates(*only[0], *only[1])
                and (first.index, first.lanes) == (second.index, second.lanes)
                and first.context.loops == second.context.loops
            ):
                path = tuple(c for c in first.context.path if c not in only[0])
                both = replace(first, context=replace(first.context, path=path))
                rest = [a for a in left if a not in (first, second)]
                return _joined([*rest, both])
    return left


def _negates(first: Term, second: Term) -> bool:
    return apply("not", first) is second or apply("not", second) is first


def _tile(launch: Launch, access: Access, digits: list[Digit]) -> tuple[list[Outer], np.ndarray]:
    """The outer structure of a store and the offsets (digit by point) that one tile writes."""
    lane = Symbol("lane", "lane", const(0), const(access.lanes - 1))
    digits = [*digits]
    if not digits:
        raise ShapelessError("its strides are no products")
    if any(True for digit in digits for _ in digit.term.loads()):
        raise ShapelessError(
            "data says where it stores, and no contract that it never says it twice"
        )
    last = digits[-1]
    digits[-1] = Digit(terms.add(last.term, var(lane)), last.extent, 1)
    inner = _enumerable(launch, access, digits, lane)
    free = [s for s in _indices(launch, access) if s not in inner]
    outer, rests = [], []
    for digit in digits:
        parts = difference(digit.term, free)
        if parts is None or any(s.kind != "lane" and s not in inner for s in parts[1].symbols):
            raise ShapelessError("an index that is not enumerated enters the address non-linearly")
        steps = tuple(sorted(parts[0].items(), key=lambda item: item[1]))
        outer.append(Outer(steps, digit.extent))
        rests.append(parts[1])
    if {s for o in outer for s, _ in o.steps} != {*free}:
        raise ShapelessError("an index that is not enumerated does not enter the address")
    fixed = tuple(c for c in access.context.path if c.symbols <= inner.keys())
    sized = tuple(c for c in access.context.path if not c.symbols <= inner.keys())
    if any(True for c in access.context.path for _ in c.loads()):
        raise ShapelessError("a store depends on the value of data")
    keep = np.broadcast_to(True, _shape(inner))
    for c in fixed:
        keep = keep & np.asarray(evaluate(c, inner)).astype(bool)
    offsets = [np.broadcast_to(evaluate(r, inner), keep.shape)[keep] for r in rests]
    _guard_is_exact(launch, Context(fixed, (*access.context.loops, lane)), sized, digits)
    return outer, np.stack([o.astype(np.int64) for o in offsets])


def _indices(launch: Launch, access: Access) -> list[Symbol]:
    used = [*launch.facts.symbols.values(), *access.context.loops]
    return [s for s in used if not _is_one(s)]


def _is_one(s: Symbol) -> bool:
    return s.lo.is_const and s.hi.is_const and s.lo.value == s.hi.value


def _enumerable(
    launch: Launch, access: Access, digits: list[Digit], lane: Symbol
) -> dict[Symbol, Any]:
    """Indices with constant ranges, as arrays that broadcast against each other."""
    path = access.context.path
    constant = {
        s: choices(s, path) for s in _indices(launch, access) if s.lo.is_const and s.hi.is_const
    }

    def points() -> int:
        return access.lanes * math.prod(map(len, constant.values()))

    while points() > _MOST_POINTS:
        # A static launch may have many blocks: let the one with the largest step stay outside.
        blocks = [s for s in constant if s.kind == "block"]
        if not blocks:
            raise ShapelessError(f"{points()} points of one tile are too many to enumerate")
        step = {s: _coefficient(digits, s) for s in blocks}
        del constant[max(blocks, key=lambda s: step[s])]
    fixed = [s for s in (*launch.facts.symbols.values(), *access.context.loops) if _is_one(s)]
    axes = [*constant, lane]
    out: dict[Symbol, Any] = {s: np.int64(s.lo.value) for s in fixed}
    for i, s in enumerate(axes):
        shape = [1] * len(axes)
        shape[i] = -1
        out[s] = (constant[s] if s in constant else np.arange(access.lanes)).reshape(shape)
    return out


def _coefficient(digits: list[Digit], symbol: Symbol) -> int:
    found = 0
    for digit in digits:
        parts = difference(digit.term, [symbol])
        if parts is not None:
            found = max(found, parts[0].get(symbol, 0))
    return found


def _shape(inner: dict[Symbol, Any]) -> tuple[int, ...]:
    return np.broadcast_shapes(*(np.shape(v) for v in inner.values()))


def _guard_is_exact(
    launch: Launch, context: Context, guards: tuple[Term, ...], digits: list[Digit]
) -> None:
    """Where the enumerated guards hold, the others hold exactly for the elements that exist."""
    exists = stored = const(1)
    for digit in digits:
        inside = apply("and", le(const(0), digit.term), apply("lt", digit.term, digit.extent))
        exists = apply("and", exists, inside)
    for guard in guards:
        stored = apply("and", stored, guard)
    missed = apply("and", exists, apply("not", stored))
    wrong = apply("and", stored, apply("not", exists))
    for violation in (missed, wrong):
        if not launch.engine.never(violation, context).proved:
            raise ShapelessError("a store's guard is not exactly 'the element exists'")


def _tile_size(launch: Launch, steps: tuple[tuple[Symbol, int], ...], extent: Term) -> int:
    """Elements of one tile along a digit, after checking that tiles lie end to end."""
    if not steps:
        if not extent.is_const:
            raise ShapelessError("no index walks along a size that is known only at launch")
        return int(extent.value)
    size = steps[0][1]
    reach: Term = const(size)
    for i, (symbol, coefficient) in enumerate(steps):
        if coefficient <= 0 or terms.poly(reach).terms != terms.poly(const(coefficient)).terms:
            raise ShapelessError(f"steps of {symbol.name} leave gaps or overlap")
        count = terms.add(terms.sub(symbol.hi, symbol.lo), const(1))
        if not (symbol.lo.is_const and symbol.lo.value == 0):
            raise ShapelessError(f"{symbol.name} does not start at 0")
        if i + 1 < len(steps) and not count.is_const:
            raise ShapelessError(
                f"{symbol.name} has a size known only at launch and is not outermost"
            )
        reach = mul(count, const(coefficient))
    short = apply("lt", reach, extent)
    if not launch.engine.never(short, Context(), [*launch.domain.dims.values()]).proved:
        raise ShapelessError("the launch is too small for the tensor")
    return size


def _example(launch: Launch, tensor: str, writes: list[Access], defect: Miscount) -> Counterexample:
    site = writes[0].site if writes else f"no store to {tensor}"
    base: dict[str, Any] = {"buffer": tensor, "offset": defect.element, "extent": defect.extent}
    if defect.points:
        places = [launch.describe(p) for p in defect.points]
        hits = [
            any(
                t.memory == tensor
                and t.mode == "write"
                and 0 <= defect.element - t.offset < t.lanes
                for t in launch.replay(p).touched
            )
            for p in defect.points
        ]
        one, two = places[0], places[1]
        message = f"{tensor}[{defect.element}] is written {defect.count} times"
        other = f"block {two['block']} thread {two['thread']} loops {two['loops']}"
        return Counterexample(
            "coverage", site, message, other=other, confirmed=all(hits), **one, **base
        )
    message = f"{tensor}[{defect.element}] of {defect.extent} is never written"
    if defect.written is not None:
        message += f" ({defect.written} are)"
    sizes = {s.name: v for s, v in defect.sizes.items()}
    return Counterexample("coverage", site, message, sizes=sizes, confirmed=True, **base)
