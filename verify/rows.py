"""Which row of a batch an access belongs to, and which indices walk from row to row.

A tensor of shape ``[S, M, D]`` with batch dim M has rows ``[:, m, :]``; an access splits into its
row ``m`` and its columns ``(s, d)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import terms
from .digits import difference
from .domain import Domain, contiguous
from .encode import Engine
from .facts import Access, Context, Facts
from .terms import Poly, Symbol, Term, add, apply, const, evaluate, poly, var

_MOST_POINTS = 1 << 20


class RowlessError(Exception):
    """An access whose row is not to be told; says why."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where an access lies: its row (None in a tensor without rows) and everything else."""

    row: Term | None
    columns: tuple[Term, ...]


def place(access: Access, domain: Domain, engine: Engine) -> Place:
    """The row and columns of an access to a global tensor. Raises RowlessError."""
    tensor = domain.tensors[access.buffer.tensor]
    batch = {domain.dims[name] for name in domain.batch}
    axes = [a for a, n in enumerate(tensor.shape) if n.symbols & batch]
    if not axes:
        return Place(None, (access.index,))
    if len(axes) > 1 or tensor.shape[axes[0]].op != "var":
        raise RowlessError(f"the batch dims of {tensor.name} are not one axis")
    axis = axes[0]
    strides = tensor.strides or contiguous(tensor.shape)
    rest = poly(access.index)
    columns = []
    for stride in strides[:axis]:
        digit, rest = _divide(rest, stride)
        columns.append(digit.term())
    step = poly(strides[axis])
    if step.constant is None:
        digit, rest = _divide(rest, strides[axis])
        return Place(digit.term(), (*columns, rest.term()))
    size = step.constant
    whole, rest = _divide(rest, const(size))
    left = rest.term()
    if size % access.lanes:  # its elements may lie in several rows
        left = add(left, var(Symbol("lane", "lane", const(0), const(access.lanes - 1))))
    lo, hi = engine.ranges.of_poly(poly(left))
    outside = apply("or", apply("lt", left, const(0)), terms.le(const(size), left))
    if (lo >= 0 and hi < size) or engine.never(outside, access.context).proved:
        return Place(whole.term(), (*columns, left))
    row = add(whole.term(), apply("div", left, const(size)))
    return Place(row, (*columns, apply("mod", left, const(size))))


def at_point(place: Place, point: Mapping[Symbol, Any]) -> tuple[Any, tuple[Any, ...]]:
    """Row and columns as numbers, where data in a column counts as 0. Raises RowlessError for a row
    that hangs on data."""

    def number(term: Term) -> Any:
        return evaluate(_without_data(term), point)

    if place.row is not None and (_without_data(place.row) is not place.row):
        raise RowlessError("which row it is hangs on data")
    return None if place.row is None else number(place.row), tuple(map(number, place.columns))


def _without_data(term: Term) -> Term:
    if term.op == "load" or (term.op == "var" and term.value.kind == "opaque"):
        return const(0)
    if not term.args:
        return term
    args = [_without_data(a) for a in term.args]
    return (
        term if all(a is b for a, b in zip(args, term.args, strict=True)) else apply(term.op, *args)
    )


def _divide(p: Poly, by: Term) -> tuple[Poly, Poly]:
    """Quotient and rest of the monomials that a product divides."""
    form = poly(by)
    if len(form.terms) != 1:
        raise RowlessError(f"the stride {terms.show(by)} is no product")
    ((atoms, coefficient),) = form.terms.items()
    quotient, rest = {}, {}
    for m, c in p.terms.items():
        left = list(m)
        for atom in atoms:
            if atom not in left:
                break
            left.remove(atom)
        else:
            if c % coefficient == 0:
                quotient[tuple(left)] = c // coefficient
                continue
        rest[m] = c
    return Poly(quotient, p.atoms), Poly(rest, p.atoms)


def moving(facts: Facts, domain: Domain, places: Iterable[Place]) -> list[Symbol]:
    """Batch dims, and the blocks that stand for rows: what tells one row or batch from another."""
    batch = [domain.dims[name] for name in domain.batch]
    rows = [p.row for p in places if p.row is not None]
    blocks = [
        b
        for b in facts.blocks
        if b.hi.symbols & set(batch) or any(b in row.symbols for row in rows)
    ]
    return [*batch, *blocks]


def twins(symbols: Iterable[Symbol]) -> dict[Symbol, Term]:
    """A second copy of each symbol; later ones may range over earlier ones."""
    twin: dict[Symbol, Term] = {}
    for s in symbols:
        lo, hi = terms.substitute(s.lo, twin), terms.substitute(s.hi, twin)
        twin[s] = var(Symbol(s.name, s.kind, lo, hi, s.origin))
    return twin


def same_data(term: Term, memo: dict[int, Term]) -> Term:
    """The term with every load a value of its own: a row's data is alike wherever the row lies."""
    if term.op == "load":
        if term.id not in memo:
            unknown = (const(-(1 << 63)), const((1 << 63) - 1))
            memo[term.id] = var(Symbol(terms.show(term), "opaque", *unknown))
        return memo[term.id]
    if not term.args:
        return term
    return apply(term.op, *(same_data(a, memo) for a in term.args))


def both(context: Context, twin: dict[Symbol, Term], memo: dict[int, Term]) -> Context:
    """The context of two runs at once; loop indices are those of both."""
    path = [same_data(c, memo) for c in context.path]
    for s in context.loops:
        for bound in (s.lo, s.hi):
            other = terms.substitute(same_data(bound, memo), twin)
            path.append(terms.le(other, var(s)) if bound is s.lo else terms.le(var(s), other))
    second = [terms.substitute(c, twin) for c in path[: len(context.path)]]
    return Context((*path, *second), context.loops)


def rows_of_a_block(
    access: Access, row: Term, moves: list[Symbol], facts: Facts
) -> tuple[dict[Symbol, int], np.ndarray]:
    """A block's rows as coefficients of moving indices, and offsets. Raises RowlessError."""
    parts = difference(row, moves)
    if parts is None:
        raise RowlessError("a block's rows are no sum of its indices")
    coefficients, rest = parts
    free = [*rest.symbols]
    count, axes = 1, {}
    for s in free:
        if s.kind in ("dim", "opaque") or not (s.lo.is_const and s.hi.is_const):
            raise RowlessError(f"{s.name} takes part in a row's number")
        size = s.hi.value - s.lo.value + 1
        count *= size
        axes[s] = size
    if count > _MOST_POINTS:
        raise RowlessError(f"{count} points are too many to enumerate")
    point = {}
    for i, (s, size) in enumerate(axes.items()):
        shape = [1] * len(axes)
        shape[i] = size
        point[s] = np.arange(s.lo.value, s.hi.value + 1).reshape(shape)
    values = np.asarray(evaluate(rest, point))
    keep = np.broadcast_to(True, values.shape)
    for c in access.context.path:
        if c.symbols <= point.keys() and not any(True for _ in c.loads()):
            keep = keep & np.asarray(evaluate(c, point)).astype(bool)
    return coefficients, np.unique(np.broadcast_to(values, keep.shape)[keep])
