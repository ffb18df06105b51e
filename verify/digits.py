"""Undo the flattening of an index where a stride is symbolic.

``s*M*24 + m*24 + c`` multiplies two unknowns, which no linear solver takes. As a polynomial it is
the number with digits ``(s, m*24 + c)`` in the mixed radix of the tensor's symbolic strides. If
each digit lies in its range, the flat index lies in the tensor, and two flat indices are equal
exactly when their digits are.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import terms
from .terms import Monomial, Poly, Term, const, mul, poly


@dataclass(frozen=True, eq=False)
class Digit:
    """``0 <= term`` and ``term + lanes <= extent`` is what being in range means."""

    term: Term
    extent: Term
    lanes: int


def split(index: Term, shape: tuple[Term, ...], lanes: int) -> list[Digit]:
    """Digits of an index, outermost first; one digit when every stride is a number."""
    cuts: list[
        tuple[int, Monomial, int]
    ] = []  # (position of the dim, atoms, coefficient) of strides
    stride = const(1)
    for position in range(len(shape) - 1, 0, -1):
        stride = mul(shape[position], stride)
        form = poly(stride)
        if form.constant is not None:
            continue
        if len(form.terms) != 1:
            return [Digit(index, _product(shape), lanes)]
        ((atoms, coefficient),) = form.terms.items()
        if not cuts or cuts[-1][1] != atoms:  # a constant factor makes no cut of its own
            cuts.append((position, atoms, coefficient))
    if not cuts:
        return [Digit(index, _product(shape), lanes)]
    cuts.reverse()
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
        digits.append(Digit(Poly(taken, known).term(), _product(shape[start:position]), 1))
        start = position
    digits.append(Digit(Poly(rest, known).term(), _product(shape[start:]), lanes))
    return digits


def _product(shape: tuple[Term, ...]) -> Term:
    total = const(1)
    for n in shape:
        total = mul(n, total)
    return total


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
