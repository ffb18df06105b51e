"""A query over Z3's integers, exactly as the machine computes.

A sum that may wrap is ``sum - 2^w q``, a shift is a division, a mask is a difference of divisions.
Only the conjunction of two unknown words, and shifts by unknown distances, are left as any number
in their interval; then a proof still is one, and a counterexample means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import bits, walk
from .bits import Term

_STEPS = 1_000_000
_MOST_RUNS = 4  # pieces a mask may fall into


@dataclass(frozen=True)
class Answer:
    """`holds` is None when the solver gave up; `model` gives variables of a counterexample."""

    holds: bool | None
    model: Mapping[Term, int] | None = None
    steps: int = 0


def ask(terms: Iterable[Term]) -> Answer:
    """Whether the terms contradict each other."""
    return _Integers().ask(list(terms))


def spent(solver: Any) -> int:
    """The steps a solver took in its context."""
    counts = dict(iter(solver.statistics()))
    return int(counts.get("rlimit count", 0))


class _Integers:
    """Translation of one query. ``side`` holds what defines the auxiliary numbers of a term."""

    def __init__(self) -> None:
        import z3

        self.z3 = z3
        self.context = z3.Context()
        self.memo: dict[Term, Any] = {}
        self.side: list[Any] = []
        self.loose = False
        self.aids = 0

    def ask(self, terms: list[Term]) -> Answer:
        """`holds` is None where integers do not decide."""
        z3 = self.z3
        solver = z3.Solver(ctx=self.context)
        solver.set("rlimit", _STEPS)
        for t in terms:
            solver.add(self.predicate(t))
        solver.add(*self.side)
        result = solver.check()
        steps = spent(solver)
        if result == z3.unsat:
            return Answer(True, steps=steps)
        if result != z3.sat or self.loose:
            return Answer(None, steps=steps)
        model = solver.model()
        values = {}
        for t in walk.variables(*terms):
            value = model.eval(self.value(t), model_completion=True)
            values[t] = int(z3.is_true(value)) if t.width == 1 else value.as_long()
        return Answer(False, values, steps)

    def predicate(self, t: Term) -> Any:
        z3 = self.z3
        if t in self.memo:
            return self.memo[t]
        if t.op == "const":
            out = z3.BoolVal(bool(t.value), self.context)
        elif t.op == "not":
            out = z3.Not(self.predicate(t.args[0]))
        elif t.op in ("all", "any"):
            join = z3.And if t.op == "all" else z3.Or
            out = join([self.predicate(a) for a in t.args])
        elif t.op in ("slt", "eq", "ult"):
            read = self.value if t.op != "ult" else self.unsigned
            a, b = (read(x) for x in t.args)
            out = a == b if t.op == "eq" else a < b
        else:
            out = z3.Bool(f"v{len(self.memo)}", self.context)
            self.loose |= t.op != "var"
        self.memo[t] = out
        return out

    def value(self, t: Term) -> Any:
        """The signed value of `t`."""
        if t.width == 1:
            return self.predicate(t)
        if t not in self.memo:
            self.memo[t] = self._value(t)
        return self.memo[t]

    def unsigned(self, t: Term) -> Any:
        v = self.value(t)
        return v if t.range[0] >= 0 else self.z3.If(v < 0, v + (1 << t.width), v)

    def _aid(self) -> Any:
        self.aids += 1
        return self.z3.Int(f"q{self.aids}", self.context)

    def _within(self, v: Any, lo: int, hi: int) -> None:
        self.side += (v >= lo, v <= hi)

    def _wrapped(self, t: Term, exact: Any) -> Any:
        """`exact` modulo 2^width."""
        q = self._aid()
        v = exact - (1 << t.width) * q
        self._within(v, *t.range)
        return v

    def _quotient(self, v: Any, divisor: int) -> Any:
        q = self._aid()
        self._within(v - divisor * q, 0, divisor - 1)
        return q

    def _free(self, t: Term) -> Any:
        v = self.z3.Int(f"v{len(self.memo)}", self.context)
        self._within(v, *t.range)
        if t.zeros:
            self.side.append(v == (1 << t.zeros) * self._aid())
        return v

    def _value(self, t: Term) -> Any:
        z3, op = self.z3, t.op
        if op == "const":
            return z3.IntVal(bits.number(t), self.context)
        if op == "var":
            return self._free(t)
        if op == "sum":
            constant, parts = bits.linear(t)
            total = z3.IntVal(constant, self.context) + sum(
                c * self.value(a) for a, c in parts.items()
            )
            return total if bits.fits(t) else self._wrapped(t, total)
        if op == "mul":
            total = self.value(t.args[0]) * self.value(t.args[1])
            return total if bits.fits(t) else self._wrapped(t, total)
        if op in ("sext", "zext"):
            return (self.value if op == "sext" else self.unsigned)(t.args[0])
        if op == "trunc":
            lo, hi = t.args[0].range
            least, most = bits.signed_range(t.width)
            v = self.value(t.args[0])
            return v if least <= lo and hi <= most else self._wrapped(t, v)
        if op in ("sar", "shr"):
            v = (self.value if op == "sar" else self.unsigned)(t.args[0])
            return self._quotient(v, 1 << t.value)
        if op == "ite":
            return z3.If(self.predicate(t.args[0]), self.value(t.args[1]), self.value(t.args[2]))
        if op in ("and", "or", "xor"):
            return self._bitwise(t)
        if op in ("udiv", "urem"):
            divisor = bits.number(t.args[1])
            if divisor is not None and divisor > 0:
                v = self.unsigned(t.args[0])
                q = self._quotient(v, divisor)
                return q if op == "udiv" else v - divisor * q
        self.loose = True
        return self._free(t)

    def _bitwise(self, t: Term) -> Any:
        a, b = t.args
        for x, y in ((a, b), (b, a)):
            if y.op != "const":
                continue
            mask = int(y.value)
            runs = _runs(mask)
            if len(runs) > _MOST_RUNS:
                break
            v = self.unsigned(x)
            common: Any = 0
            for low, high in runs:
                upper = self._quotient(v, 1 << high) if high < t.width else 0
                lower = self._quotient(v, 1 << low) if low else v
                common = common + (lower - (1 << high - low) * upper) * (1 << low)
            total = common
            if t.op == "or":
                total = v + mask - common
            elif t.op == "xor":
                total = v + mask - 2 * common
            return total if t.range[0] >= 0 else self._wrapped(t, total)
        self.loose = True
        return self._free(t)


def _runs(mask: int) -> list[tuple[int, int]]:
    """The runs of ones in a mask as [low, high) bit positions."""
    out, low = [], 0
    while mask >> low:
        low += bits.const(mask >> low, 128).zeros
        high = low
        while mask >> high & 1:
            high += 1
        out.append((low, high))
        low = high
    return out
