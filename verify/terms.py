"""Integer terms: the small language every obligation is written in, and four readings of it.

A term is mathematics over unbounded integers; whether machine integers agree is the overflow
property's business. Terms are interned, so equal terms are one object. The readings are an
interval, a polynomial over atoms, a value at a point, and (in ``encode.py``) a Z3 expression.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

Kind = Literal["dim", "block", "thread", "loop", "lane", "opaque"]
Interval = tuple[int, int]


class Symbol:
    """A variable with its range ``lo <= v <= hi``; the ends may mention other symbols.

    An `opaque` symbol stands for a value the model does not follow (data in registers or shared
    memory); a counterexample that needs one cannot be replayed. `origin` is a loop's TIR variable.
    """

    __slots__ = ("hi", "kind", "lo", "name", "origin")

    def __init__(self, name: str, kind: Kind, lo: Term, hi: Term, origin: Any = None) -> None:
        self.name, self.kind, self.lo, self.hi = name, kind, lo, hi
        self.origin = origin


class Term:
    """An interned node: `op` applied to `args`; `value` of a constant, symbol or load."""

    __slots__ = ("_poly", "_symbols", "args", "id", "op", "value")

    def __init__(self, op: str, args: tuple[Term, ...], value: Any, number: int) -> None:
        self.op, self.args, self.value, self.id = op, args, value, number
        self._poly: Poly | None = None
        self._symbols: frozenset[Symbol] | None = None

    def __repr__(self) -> str:
        return show(self)

    def __reduce__(self) -> Any:
        raise TypeError("terms live in one process")

    @property
    def symbols(self) -> frozenset[Symbol]:
        """Every symbol that occurs in the term."""
        if self._symbols is None:
            if self.op == "var":
                self._symbols = frozenset((self.value,))
            else:
                self._symbols = frozenset().union(*(a.symbols for a in self.args))
        return self._symbols

    @property
    def is_const(self) -> bool:
        return self.op == "const"

    def loads(self) -> Iterator[Term]:
        """Every load of a global tensor in the term."""
        if self.op == "load":
            yield self
        for a in self.args:
            yield from a.loads()


_TABLE: dict[Any, Term] = {}
_COUNT = itertools.count()


def _make(op: str, args: tuple[Term, ...] = (), value: Any = None) -> Term:
    key = (op, args, value)
    term = _TABLE.get(key)
    if term is None:
        term = _TABLE[key] = Term(op, args, value, next(_COUNT))
    return term


def forget() -> None:
    """Drop the interning table; call between kernels so that memory does not grow with a run."""
    _TABLE.clear()


def const(value: int) -> Term:
    return _make("const", (), int(value))


def var(symbol: Symbol) -> Term:
    return _make("var", (), symbol)


def load(tensor: str, index: Term) -> Term:
    """The element of a read-only global tensor: one index, one value."""
    return _make("load", (index,), tensor)


def _floordiv(a: int, b: int) -> int:
    return a // b


def _floormod(a: Any, b: Any) -> Any:
    if isinstance(b, int) and b.bit_length() > 63:  # numpy's integers end before
        a = np.asarray(a, dtype=object)
    return a % b


def _truncdiv(a: Any, b: Any) -> Any:
    return np.sign(a) * np.sign(b) * (abs(a) // abs(b))


_CONCRETE: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _floordiv,
    "mod": _floormod,
    "tdiv": _truncdiv,
    "tmod": lambda a, b: a - b * _truncdiv(a, b),
    "min": np.minimum,
    "max": np.maximum,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "not": lambda a: a ^ 1,
    "ite": lambda c, a, b: np.where(c, a, b),
    "xor": lambda a, b: a ^ b,
}
BOOLEAN = {"lt", "le", "eq", "ne", "and", "or", "not"}


def apply(op: str, *args: Term) -> Term:
    """Build ``op(args)``, folding constants and the identities that codegen leaves behind."""
    if all(a.is_const for a in args) and not (
        op in ("div", "mod", "tdiv", "tmod") and args[1].value == 0
    ):
        return const(int(_CONCRETE[op](*(a.value for a in args))))
    if op in ("add", "sub", "mul", "div", "mod") and args[1].is_const:
        a, n = args[0], args[1].value
        if n == 0 and op in ("add", "sub"):
            return a
        if n == 1 and op in ("mul", "div"):
            return a
        if n == 1 and op == "mod":
            return const(0)
    if op in ("and", "or"):
        for a, b in (args, args[::-1]):
            if a.is_const:
                return (b if a.value else a) if op == "and" else (a if a.value else b)
    if op == "ite" and args[0].is_const:
        return args[1] if args[0].value else args[2]
    return _make(op, args)


def add(a: Term, b: Term) -> Term:
    return apply("add", a, b)


def sub(a: Term, b: Term) -> Term:
    return apply("sub", a, b)


def mul(a: Term, b: Term) -> Term:
    return apply("mul", a, b)


def product(factors: Iterable[Term]) -> Term:
    """Their product, 1 for none."""
    total = const(1)
    for factor in factors:
        total = mul(factor, total)
    return total


def le(a: Term, b: Term) -> Term:
    return apply("le", a, b)


def conjuncts(term: Term) -> Iterator[Term]:
    """The parts of a conjunction."""
    if term.op == "and":
        for a in term.args:
            yield from conjuncts(a)
    else:
        yield term


_SIGN = {
    "or": (" or ", 0),
    "and": (" and ", 1),
    "lt": (" < ", 2),
    "le": (" <= ", 2),
    "eq": (" == ", 2),
    "ne": (" != ", 2),
    "xor": (" ^ ", 3),
    "add": (" + ", 4),
    "sub": (" - ", 4),
    "mul": ("*", 5),
    "div": ("//", 5),
    "mod": ("%", 5),
}


def show(term: Term) -> str:
    """The term as a person would write it."""
    return _show(term)[0]


def _show(term: Term) -> tuple[str, int]:
    """Text and how tightly its outermost operator binds."""
    if term.op == "const":
        return str(term.value), 9 if term.value >= 0 else 4
    if term.op == "var":
        return str(term.value.name), 9
    if term.op == "load":
        return f"{term.value}[{show(term.args[0])}]", 9
    if term.op in _SIGN:
        sign, level = _SIGN[term.op]
        (left, a), (right, b) = (_show(t) for t in term.args)
        left = left if a >= level else f"({left})"
        right = right if b > level or (b == level and term.op == "add") else f"({right})"
        return f"{left}{sign}{right}", level
    return f"{term.op}({', '.join(show(t) for t in term.args)})", 9


def evaluate(term: Term, point: Mapping[Symbol, Any], memo: dict[int, Any] | None = None) -> Any:
    """Value at a point; the point's values may be ints or broadcastable numpy arrays.

    Raises KeyError for a symbol or load that the point does not determine.
    """
    memo = {} if memo is None else memo
    if term.id in memo:
        return memo[term.id]
    if term.op == "const":
        value = term.value
    elif term.op == "var":
        value = point[term.value]
    elif term.op == "load":
        raise KeyError(show(term))
    else:
        value = _CONCRETE[term.op](*(evaluate(a, point, memo) for a in term.args))
    memo[term.id] = value
    return value


def substitute(
    term: Term, mapping: Mapping[Symbol, Term], memo: dict[int, Term] | None = None
) -> Term:
    """The term with symbols replaced."""
    memo = {} if memo is None else memo
    if term.id in memo:
        return memo[term.id]
    if term.op == "var":
        out = mapping.get(term.value, term)
    elif not term.args:
        out = term
    else:
        args = tuple(substitute(a, mapping, memo) for a in term.args)
        out = _make("load", args, term.value) if term.op == "load" else apply(term.op, *args)
    memo[term.id] = out
    return out


# --- polynomials -------------------------------------------------------------------------------

Monomial = tuple[int, ...]  # sorted ids of atoms, with repetition


class Poly:
    """A polynomial with integer coefficients over atoms (terms that are not sums or products)."""

    __slots__ = ("atoms", "terms")

    def __init__(self, terms: Mapping[Monomial, int], atoms: Mapping[int, Term]) -> None:
        self.terms = {m: c for m, c in terms.items() if c}
        used = {a for m in self.terms for a in m}
        self.atoms = {a: atoms[a] for a in used}

    def __add__(self, other: Poly) -> Poly:
        out = dict(self.terms)
        for m, c in other.terms.items():
            out[m] = out.get(m, 0) + c
        return Poly(out, {**self.atoms, **other.atoms})

    def __mul__(self, other: Poly) -> Poly:
        out: dict[Monomial, int] = {}
        for (m, c), (n, d) in itertools.product(self.terms.items(), other.terms.items()):
            key = tuple(sorted(m + n))
            out[key] = out.get(key, 0) + c * d
        return Poly(out, {**self.atoms, **other.atoms})

    def scale(self, factor: int) -> Poly:
        return Poly({m: c * factor for m, c in self.terms.items()}, self.atoms)

    @property
    def constant(self) -> int | None:
        """The value when the polynomial has no atoms, else None."""
        return self.terms.get((), 0) if not self.atoms else None

    def term(self) -> Term:
        """Back to a term, as a sum of coefficient times atoms."""
        total = const(self.terms.get((), 0))
        for m, c in sorted(self.terms.items()):
            if m:
                product = const(c)
                for a in m:
                    product = (
                        self.atoms[a]
                        if product.is_const and product.value == 1
                        else mul(self.atoms[a], product)
                    )
                total = product if total.is_const and total.value == 0 else add(total, product)
        return total


def poly(term: Term) -> Poly:
    """Normal form of an integer term."""
    if term._poly is None:
        if term.op == "const":
            out = Poly({(): term.value}, {})
        elif term.op == "add":
            out = poly(term.args[0]) + poly(term.args[1])
        elif term.op == "sub":
            out = poly(term.args[0]) + poly(term.args[1]).scale(-1)
        elif term.op == "mul":
            out = poly(term.args[0]) * poly(term.args[1])
        else:
            out = Poly({(term.id,): 1}, {term.id: term})
        term._poly = out
    return term._poly


# --- intervals ---------------------------------------------------------------------------------


class Ranges:
    """Interval evaluation under the symbols' own ranges; no path condition is used."""

    def __init__(self, loads: Callable[[Term], Interval]) -> None:
        self._loads = loads
        self._memo: dict[int, Interval] = {}

    def of(self, term: Term) -> Interval:
        """An interval that contains every value of the term."""
        if term.id not in self._memo:
            self._memo[term.id] = self._compute(term)
        return self._memo[term.id]

    def of_poly(self, p: Poly) -> Interval:
        """Often tighter than :meth:`of`: equal atoms have cancelled."""
        lo = hi = 0
        for m, c in p.terms.items():
            product = (c, c)
            for a in m:
                product = _corners(product, self.of(p.atoms[a]), lambda x, y: x * y)
            lo, hi = lo + product[0], hi + product[1]
        return lo, hi

    def _compute(self, term: Term) -> Interval:
        op = term.op
        if op == "const":
            return term.value, term.value
        if op == "var":
            return self.of(term.value.lo)[0], self.of(term.value.hi)[1]
        if op == "load":
            return self._loads(term)
        if op in BOOLEAN:
            return 0, 1
        args = [self.of(a) for a in term.args]
        if op == "ite":
            return min(args[1][0], args[2][0]), max(args[1][1], args[2][1])
        a, b = args
        if op in ("add", "sub"):
            return (a[0] + b[0], a[1] + b[1]) if op == "add" else (a[0] - b[1], a[1] - b[0])
        if op == "mul":
            return _corners(a, b, lambda x, y: x * y)
        if op in ("min", "max"):
            pick = min if op == "min" else max
            return pick(a[0], b[0]), pick(a[1], b[1])
        return self._division(op, a, b)

    @staticmethod
    def _division(op: str, a: Interval, b: Interval) -> Interval:
        if op == "xor":
            if min(a[0], b[0]) < 0:
                return -(1 << 63), (1 << 63) - 1
            return 0, (1 << max(a[1], b[1]).bit_length()) - 1
        if b[0] <= 0:  # a divisor that may vanish is the caller's problem; claim nothing
            return -(1 << 64), 1 << 64
        if op == "div":
            return _corners(a, b, _floordiv)
        if op == "mod":
            if a[0] >= 0 and a[1] < b[0]:
                return a
            return 0, b[1] - 1 if a[0] < 0 else min(a[1], b[1] - 1)
        if op == "tdiv":
            return _corners(a, b, lambda x, y: int(_truncdiv(x, y)))
        return (0 if a[0] >= 0 else 1 - b[1]), (0 if a[1] <= 0 else b[1] - 1)


def _corners(a: Interval, b: Interval, f: Callable[[int, int], int]) -> Interval:
    values = [f(x, y) for x in a for y in b]
    return min(values), max(values)
