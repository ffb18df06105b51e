"""Goals with products of unknowns, weakened to goals without.

An offset into a tensor of two unknown extents is a polynomial: ``M*P - (row*P + column) >= 0``.
With a common factor f taken out it is ``f*a + rest``, and if ``a >= least`` and
``f >= lowest >= 0`` follow from the path, then

    f*a + rest  >=  lowest*(a - least) + least*f + rest,

which has fewer products. What remains without any is a question for linear arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from . import bits, walk
from .bits import Term

_MOST_DEPTH = 4
_MOST_MONOMIALS = 24

Holds = Callable[[Term], bool]
Monomial = tuple[Term, ...]  # its factors, by serial


def occur(*terms: Term) -> bool:
    """Whether a product of unknowns is part of a term."""
    return any(t.op == "mul" for t in walk.closure(*terms))


def follows(goal: Term, holds: Holds) -> bool:
    """Whether a goal with products is shown by weaker ones; `holds` decides those without."""
    inner = goal.args[0] if goal.op == "not" else goal
    if inner.op != "slt" or not occur(goal):
        return False
    a, b = inner.args
    # not (a < b) is a - b >= 0; a < b is b - a - 1 >= 0.
    margin = (
        bits.sub(a, b) if inner is not goal else bits.add(bits.sub(b, a), bits.const(-1, a.width))
    )
    if not (bits.fits(a) and bits.fits(b) and bits.fits(margin)):
        return False
    return _positive(_decided(margin, holds), holds, _MOST_DEPTH)


def _decided(t: Term, holds: Holds) -> Term:
    """`t` with selections that the path decides replaced by what they select."""
    for choice in [c for c in walk.closure(t) if c.op == "ite"]:
        condition, yes, no = choice.args
        if holds(condition):
            return _decided(walk.replace(t, choice, yes), holds)
        if holds(bits.negate(condition)):
            return _decided(walk.replace(t, choice, no), holds)
    return t


def _positive(t: Term, holds: Holds, depth: int) -> bool:
    """Whether ``t >= 0`` over the integers."""
    if t.range[0] >= 0 and bits.fits(t):
        return True
    constant, parts = bits.linear(t)
    monomials: dict[Monomial, int] = {}
    for atom, c in parts.items():
        monomials[_factors(atom)] = monomials.get(_factors(atom), 0) + c
    if all(len(m) == 1 for m in monomials):
        return bits.fits(t) and holds(bits.negate(bits.less(t, bits.const(0, t.width))))
    if depth == 0 or len(monomials) > _MOST_MONOMIALS:
        return False
    for f in _candidates(monomials):
        if _without(f, monomials, constant, t.width, holds, depth):
            return True
    return False


def _candidates(monomials: dict[Monomial, int]) -> list[Term]:
    """Factors of the products that are never negative, those of most products first."""
    count: dict[Term, int] = {}
    for m in monomials:
        if len(m) > 1:
            for f in dict.fromkeys(m):
                count[f] = count.get(f, 0) + 1
    usable = [f for f in count if f.range[0] >= 0]
    return sorted(usable, key=lambda f: (-count[f], f.serial))


def _without(
    f: Term, monomials: dict[Monomial, int], constant: int, width: int, holds: Holds, depth: int
) -> bool:
    cofactor, shift = bits.const(0, width), 0
    rest = bits.const(constant, width)
    for m, c in monomials.items():
        if f not in m:
            rest = bits.add(rest, _product(m, width), c)
            continue
        left = list(m)
        left.remove(f)
        if left:
            cofactor = bits.add(cofactor, _product(tuple(left), width), c)
        else:
            shift += c
    # The cofactor is shift + unit * whole.
    free, parts = bits.linear(cofactor)
    unit = gcd(*parts.values()) if parts else 1
    whole = bits.combine(width, 0, {a: c // unit for a, c in parts.items()})
    shift += free
    if unit * f.range[0] >= 1 << width - 2:  # a coefficient would wrap
        return False
    zero = -(shift // unit)  # where the cofactor stops being negative
    for least in (zero + 1, zero):
        above = bits.add(whole, bits.const(-least, width))
        if not bits.fits(above) or not _positive(above, holds, depth - 1):
            continue
        weaker = bits.add(rest, bits.scale(above, unit), f.range[0])
        weaker = bits.add(weaker, f, shift + unit * least)
        if bits.fits(weaker) and _positive(weaker, holds, depth - 1):
            return True
    return False


def _factors(atom: Term) -> Monomial:
    """The factors of an atom; only products that do not wrap are taken apart."""
    if atom.op != "mul" or not bits.fits(atom):
        return (atom,)
    parts = [f for a in atom.args for f in _factors(a)]
    return tuple(sorted(parts, key=lambda f: f.serial))


def _product(m: Monomial, width: int) -> Term:
    total = bits.const(1, width)
    for f in m:
        total = bits.mul(total, f)
    return total
