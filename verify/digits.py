"""Undo the flattening of an index where a stride is symbolic.

``s*M*24 + m*24 + c`` multiplies two unknowns, which no linear solver takes. As a polynomial it is
the number with digits ``(s, m*24 + c)`` in the mixed radix of the tensor's symbolic strides. If
each digit lies in its range, the flat index lies in the tensor, and two flat indices are equal
exactly when their digits are.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import terms
from .terms import Monomial, Poly, Term, const, mul, poly, product


@dataclass(frozen=True, eq=False)
class Digit:
    """``0 <= term`` and ``term + lanes <= extent`` is what being in range means."""

    term: Term
    extent: Term
    lanes: int


def split(
    index: Term,
    shape: tuple[Term, ...],
    lanes: int,
    strides: tuple[Term, ...] | None = None,
    every: bool = False,
) -> list[Digit]:
    """Digits of an index, outermost first; one digit when every stride is a number.

    With `strides` there is also a cut wherever a row is shorter than the distance to the next, so
    that no digit covers a gap; with `every` there is one between any two axes. Empty if that is not
    possible.
    """
    cuts = _cuts(shape, strides, every)
    if cuts is None:
        return [] if strides is not None else [Digit(index, product(shape), lanes)]
    rest = dict(poly(index).terms)
    known = poly(index).atoms
    digits = []
    start = 0
    for position, atoms, coefficient in cuts:
        taken: dict[Monomial, int] = {}
        for m, c in list(rest.items()):
            quotient = _divide(m, atoms)
            if quotient is not None and c % coefficient == 0:
                taken[quotient] = c // coefficient
                del rest[m]
        digits.append(Digit(Poly(taken, known).term(), product(shape[start:position]), 1))
        start = position
    digits.append(Digit(Poly(rest, known).term(), product(shape[start:]), lanes))
    return digits


def _cuts(
    shape: tuple[Term, ...], strides: tuple[Term, ...] | None, every: bool
) -> list[tuple[int, Monomial, int]] | None:
    """Where the index splits, outermost first: (axis after the cut, atoms and coefficient of the
    stride before it). None if a stride there is no single product."""
    cuts: list[tuple[int, Monomial, int]] = []
    inner = const(1)  # elements that a contiguous axis steps over
    for axis in range(len(shape) - 1, -1, -1):
        stride = inner if strides is None else strides[axis]
        form = poly(stride)
        gap = form.terms != poly(inner).terms
        if gap or ((every or form.constant is None) and axis + 1 < len(shape)):
            if len(form.terms) != 1:
                return None
            ((atoms, coefficient),) = form.terms.items()
            if (
                every or gap or not cuts or cuts[-1][1] != atoms
            ):  # a constant factor makes no cut of its own
                cuts.append((axis + 1, atoms, coefficient))
        inner = mul(shape[axis], stride)
    return cuts[::-1]


def _divide(m: Monomial, by: Monomial) -> Monomial | None:
    left = list(m)
    for atom in by:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def difference(
    index: Term, symbols: list[terms.Symbol]
) -> tuple[dict[terms.Symbol, int], Term] | None:
    """Split a term into ``sum of coefficient * symbol`` and a rest free of those symbols.

    None when one of them occurs in any other way.
    """
    wanted = {terms.var(s).id: s for s in symbols}
    form = poly(index)
    coefficients: dict[terms.Symbol, int] = {}
    rest: dict[Monomial, int] = {}
    for m, c in form.terms.items():
        if len(m) == 1 and m[0] in wanted:
            coefficients[wanted[m[0]]] = c
        elif any(form.atoms[a].symbols & set(symbols) for a in m):
            return None
        else:
            rest[m] = c
    return coefficients, Poly(rest, form.atoms).term()
