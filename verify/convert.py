"""TIR integer expressions → terms, for device and host functions alike.

Every node that must fit its type, and every access met inside an expression, is recorded.
A node without a known meaning raises UnmodelledError; nothing is passed over.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from typing import Any

from .facts import Check, Context, Decision, Facts, integer_range, text
from .intrinsics import Mode, UnmodelledError
from .selects import is_lazy
from .terms import Ranges, Symbol, Term, add, apply, const, mul, var

BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "FloorDiv": "div", "FloorMod": "mod",
          "Div": "tdiv", "Mod": "tmod", "Min": "min", "Max": "max"}  # fmt: skip
_COMPARE = {"LT": ("lt", 0), "LE": ("le", 0), "GT": ("lt", 1), "GE": ("le", 1), "EQ": ("eq", 0),
            "NE": ("ne", 0), "And": ("and", 0), "Or": ("or", 0)}  # fmt: skip
_MOST_PLACES = 31
_ANY_INTEGER = (-(1 << 63), (1 << 64) - 1)
_MAY_OVERFLOW = {"Add", "Sub", "Mul"}


class Converter:
    """TIR integer expressions → terms, with the range checks and accesses met on the way."""

    def __init__(self, facts: Facts, dims: Mapping[str, Symbol]) -> None:
        self.facts = facts
        self.dims = dims
        self.env: dict[Any, Term] = {}
        self.context = Context()
        self.node: Any = None
        self._order = itertools.count()

    # -- hooks -------------------------------------------------------------------------------

    def load(self, node: Any, indices: list[Term]) -> Term:
        """Value of an integer element; overridden where elements have a known meaning."""
        return self.opaque(node)

    def call(self, node: Any) -> None:
        """A call met in a value or as a statement."""
        raise NotImplementedError

    # -- expressions -------------------------------------------------------------------------

    def opaque(self, node: Any) -> Term:
        lo, hi = integer_range(node.dtype) or (-(1 << 63), (1 << 63) - 1)
        return var(Symbol(text(node, 40), "opaque", const(lo), const(hi)))

    def check(self, term: Term, dtype: Any, what: str, node: Any) -> Term:
        limits = integer_range(dtype)
        if limits is not None and not (term.is_const and limits[0] <= term.value <= limits[1]):
            self.facts.checks.append(Check(term, *limits, what, self.context, node))
        return term

    def under(self, condition: Term, visit: Any) -> Any:
        outer, self.context = self.context, self.context.given(condition)
        try:
            return visit()
        finally:
            self.context = outer

    def decide(self, what: Any, found: tuple[Term, ...], node: Any) -> None:
        """Record what a loop, a condition or data hangs on."""
        if not all(t.is_const for t in found):
            self.facts.decisions.append(Decision(what, found, self.context, node))

    def expr(self, e: Any) -> Term:
        """An integer or boolean scalar expression as a term. Raises UnmodelledError."""
        kind = type(e).__name__
        if kind == "IntImm":
            return const(int(e.value))
        if kind == "Var":
            return self.variable(e)
        if kind in BINARY:
            a, b = self.expr(e.a), self.expr(e.b)
            if BINARY[kind] in ("div", "mod", "tdiv", "tmod"):
                self.divisor(b, e)
            term = apply(BINARY[kind], a, b)
            return self.check(term, e.dtype, str(e.dtype), e) if kind in _MAY_OVERFLOW else term
        if kind in _COMPARE:
            return self.comparison(kind, e)
        if kind == "Not":
            return apply("not", self.expr(e.a))
        if kind == "Cast":
            return self.cast(e)
        if kind == "BufferLoad":
            indices = self.access(e, e.buffer, list(e.indices), "read")
            return self.load(e, indices)
        if kind == "Select":
            if is_lazy(e):
                return self.either(e.condition, e.true_value, e.false_value)
            return apply(
                "ite", self.expr(e.condition), self.expr(e.true_value), self.expr(e.false_value)
            )
        if kind == "Call":
            return self.integer_call(e)
        raise UnmodelledError(kind)

    def variable(self, e: Any) -> Term:
        if e in self.env:
            return self.env[e]
        if str(e.name) in self.dims:
            return var(self.dims[str(e.name)])
        raise UnmodelledError(f"variable {e.name} with no known range")

    def divisor(self, b: Term, e: Any) -> None:
        if not (b.is_const and b.value > 0):
            limits = (1, (1 << 63) - 1)
            self.facts.checks.append(Check(b, *limits, "divisor", self.context, e))

    def comparison(self, kind: str, e: Any) -> Term:
        op, swap = _COMPARE[kind]
        if integer_range(e.a.dtype) is None:  # a comparison of data: its operands still load
            self.value(e.a)
            self.value(e.b)
            return self.opaque(e)
        a = self.expr(e.a)
        if kind == "And":  # && evaluates its right side only if the left holds
            b = self.under(a, lambda: self.expr(e.b))
        elif kind == "Or":
            b = self.under(apply("not", a), lambda: self.expr(e.b))
        else:
            b = self.expr(e.b)
        return apply(op, b, a) if swap else apply(op, a, b)

    def cast(self, e: Any) -> Term:
        if integer_range(e.value.dtype) is None:
            self.value(e.value)
            return self.opaque(e)
        term = self.expr(e.value)
        if str(e.dtype) == "bool":
            return apply("ne", term, const(0))
        inner, outer = integer_range(e.value.dtype), integer_range(e.dtype)
        if outer is None:
            raise UnmodelledError(f"index of type {e.dtype}")
        if inner is not None and (inner[0] < outer[0] or inner[1] > outer[1]):
            if outer[0] == 0:
                return self.wrapped(term, outer[1])
            self.check(term, e.dtype, f"cast to {e.dtype}", e)
        return term

    @staticmethod
    def wrapped(term: Term, most: int) -> Term:
        """``term mod (most + 1)``: what a cast to an unsigned type means, so it need not fit."""
        lo, hi = Ranges(lambda _: _ANY_INTEGER).of(term)
        return term if lo >= 0 and hi <= most else apply("mod", term, const(most + 1))

    def integer_call(self, e: Any) -> Term:
        name, args = str(e.op.name), list(e.args)
        if name == "tirx.if_then_else":
            return self.either(*args)
        if name == "tirx.likely":
            return self.expr(args[0])
        if name in ("tirx.bitwise_and", "tirx.bitwise_or", "tirx.bitwise_xor", "tirx.shift_right",
                    "tirx.shift_left"):  # fmt: skip
            return self.bitwise(name.split(".")[1], e, self.expr(args[0]), self.expr(args[1]))
        self.call(e)
        return self.opaque(e)

    def either(self, condition: Any, true: Any, false: Any) -> Term:
        """One of two integers, the other not evaluated."""
        taken = self.expr(condition)
        yes = self.under(taken, lambda: self.expr(true))
        no = self.under(apply("not", taken), lambda: self.expr(false))
        return apply("ite", taken, yes, no)

    def bitwise(self, name: str, e: Any, a: Term, b: Term) -> Term:
        if str(e.dtype) == "bool" and name != "bitwise_xor":
            return apply("and" if name == "bitwise_and" else "or", a, b)
        if b.is_const and b.value >= 0:
            if name == "shift_right":
                return apply("div", a, const(1 << b.value))
            if name == "shift_left":
                return self.check(mul(a, const(1 << b.value)), e.dtype, str(e.dtype), e)
            if name == "bitwise_and" and b.value & (b.value + 1) == 0:
                return apply("mod", a, const(b.value + 1))
        if name == "bitwise_xor":
            return apply("xor", a, b)
        if name == "bitwise_or" and 0 in (a.value, b.value):
            return add(a, b)
        if name == "shift_right" and a.is_const:
            return self.shifted(a.value, b)
        raise UnmodelledError(f"{name} of two variables")

    def shifted(self, value: int, by: Term) -> Term:
        """A constant shifted to the right by a few places at most."""
        lo, hi = Ranges(lambda _: (0, _MOST_PLACES + 1)).of(by)
        if not 0 <= lo <= hi <= _MOST_PLACES:
            raise UnmodelledError("a shift by a variable")
        term = const(value >> hi)
        for places in range(hi - 1, lo - 1, -1):
            here = apply("eq", by, const(places))
            term = apply("ite", here, const(value >> places), term)
        return term

    # -- values (of any type) ----------------------------------------------------------------

    def value(self, e: Any) -> None:
        """Visit an expression whose value does not matter here, for the loads inside it."""
        kind = type(e).__name__
        if kind in ("IntImm", "FloatImm", "StringImm"):
            return
        if kind == "Var":
            if e in self.env or str(e.name) in self.dims:
                self.decide("value", (self.variable(e),), e)
            return
        if kind in BINARY and integer_range(e.dtype) is not None and "x" not in str(e.dtype):
            self.number(e)
            return
        if kind == "BufferLoad":
            self.access(e, e.buffer, list(e.indices), "read")
        elif kind == "Call":
            self.value_call(e)
        elif kind == "Cast":
            self.value(e.value)
        elif kind == "Ramp":
            self.value(e.base)
        elif kind == "Broadcast":
            self.value(e.value)
        elif kind == "Shuffle":
            for part in (*e.vectors, *e.indices):
                self.value(part)
        elif kind == "Select":
            self.value(e.condition)
            condition = self.chosen(e)
            if condition is None or not is_lazy(e):
                self.value(e.true_value)
                self.value(e.false_value)
            else:
                self.values(condition, e.true_value, e.false_value)
        elif kind == "Not":
            self.value(e.a)
        elif kind in BINARY or kind in _COMPARE:
            self.value(e.a)
            self.value(e.b)
        else:
            raise UnmodelledError(kind)

    def number(self, e: Any) -> None:
        """An integer that becomes data: machine arithmetic is what it means, so it may wrap."""
        checks = len(self.facts.checks)
        try:
            self.decide("value", (self.expr(e),), e)
        except UnmodelledError:
            self.value(e.a)
            self.value(e.b)
        del self.facts.checks[checks:]

    def chosen(self, e: Any) -> Term | None:
        """The condition of a choice between data; None if it is of data itself."""
        accesses = len(self.facts.accesses)
        condition = None
        with contextlib.suppress(UnmodelledError):
            condition = self.expr(e.condition)
            self.decide("condition", (condition,), e)
        del self.facts.accesses[accesses:]  # they are recorded as parts of the value
        return condition

    def values(self, condition: Term, true: Any, false: Any) -> None:
        """One of two values, the other not evaluated."""
        self.under(condition, lambda: self.value(true))
        self.under(apply("not", condition), lambda: self.value(false))

    def value_call(self, e: Any) -> None:
        name, args = str(e.op.name), list(e.args)
        if name != "tirx.if_then_else":
            self.call(e)
            return
        if "x" in str(args[0].dtype):
            raise UnmodelledError("if_then_else with a vector condition")
        condition = self.expr(args[0])
        self.decide("condition", (condition,), e)
        self.values(condition, *args[1:])

    # -- accesses ----------------------------------------------------------------------------

    def access(self, node: Any, buffer: Any, indices: list[Any], mode: Mode) -> list[Term]:
        """Record a buffer access; returns the scalar indices (empty for a vector)."""
        raise NotImplementedError
