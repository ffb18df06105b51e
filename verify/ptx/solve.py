"""Deciding an obligation: intervals first, then Z3 over integers, then Z3 over bit-vectors.

Over integers every term is exact: a sum that may wrap is ``sum - 2^w q``, a shift is a division, a
mask is a difference of divisions. Only the conjunction of two unknown words, and shifts by unknown
distances, are left as any number in their interval; then an integer proof still is one, and a
counterexample is looked for in bit-vectors. Budgets count solver steps, so verdicts repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import bits
from .bits import Term

_INTEGER_STEPS = 1_000_000
_WORD_STEPS = 2_000_000
_MOST_RUNS = 4  # pieces a mask may fall into


@dataclass(frozen=True)
class Answer:
    """`holds` is None when the solver gave up; `model` gives variables of a counterexample."""

    holds: bool | None
    model: Mapping[Term, int] | None = None


class Solver:
    """Decides goals under facts. `about` holds what is known of single variables."""

    def __init__(self, facts: Sequence[Term], about: Mapping[Term, Sequence[Term]]) -> None:
        self.facts = [f for f in facts if bits.number(f) != 1]
        self.about = about
        self._memo: dict[tuple[Term, ...], Answer] = {}
        self._integers = _Integers()
        self.queries = 0

    def holds(self, path: Sequence[Term], goal: Term) -> bool:
        return self.decide(path, goal).holds is True

    def decide(self, path: Sequence[Term], goal: Term, more: Sequence[Term] = ()) -> Answer:
        """Whether `goal` follows from the facts, the path, and `more`."""
        known = bits.number(goal)
        if known == 1:
            return Answer(True)
        key = (goal, *path, *more)
        if key not in self._memo:
            self._memo[key] = self._decide([*path, *more], goal)
        return self._memo[key]

    def _decide(self, path: list[Term], goal: Term) -> Answer:
        self.queries += 1
        query = [*path, bits.negate(goal)]
        relevant = self._relevant(query)
        answer = self._integers.ask(relevant)
        return answer if answer is not None else _words(relevant)

    def smallest(
        self, path: Sequence[Term], goal: Term, model: Mapping[Term, int], sizes: Iterable[Term]
    ) -> Mapping[Term, int]:
        """A counterexample in the first block that has one, at the least sizes, one by one."""
        kept: list[Term] = []
        places = [v for v in model if str(v.value).startswith(("block.", "thread."))]
        variables = [v for s in sizes for v in bits.variables(s)]
        for v in sorted(set(variables), key=lambda v: v.serial):
            lo, hi = v.range[0], model.get(v, v.range[0])
            while lo < hi:
                middle = (lo + hi) // 2
                limit = bits.negate(bits.less(bits.const(middle, v.width), v))
                answer = self.decide(path, goal, [*kept, limit])
                if answer.holds is False and answer.model is not None:
                    model, hi = answer.model, answer.model.get(v, lo)
                else:
                    lo = middle + 1
            kept.append(bits.negate(bits.less(bits.const(hi, v.width), v)))
        for v in sorted(places, key=lambda v: str(v.value)):
            first = bits.eq(v, bits.const(0, v.width))
            answer = self.decide(path, goal, [*kept, first])
            if answer.holds is False and answer.model is not None:
                model = answer.model
                kept.append(first)
        return model

    def _relevant(self, query: list[Term]) -> list[Term]:
        """The query with all facts about what occurs in it."""
        out = [*self.facts, *query]
        done: set[Term] = set()
        while True:
            new = [v for v in bits.variables(*out) if v in self.about and v not in done]
            if not new:
                return out
            done.update(new)
            out += [f for v in new for f in self.about[v]]


class _Integers:
    """Translation to Z3's integers. ``side`` holds what defines the auxiliary numbers of a term."""

    def __init__(self) -> None:
        import z3

        self.z3 = z3
        self.memo: dict[Term, Any] = {}
        self.side: dict[Term, list[Any]] = {}
        self.loose: set[Term] = set()
        self.aids = 0

    def ask(self, terms: Iterable[Term]) -> Answer | None:
        """None where integers do not decide."""
        z3 = self.z3
        solver = z3.Solver()
        solver.set("rlimit", _INTEGER_STEPS)
        listed = list(terms)
        for t in listed:
            solver.add(self.predicate(t))
        inside = _closure(listed)
        for t in inside:
            for constraint in self.side.get(t, ()):
                solver.add(constraint)
        result = solver.check()
        if result == z3.unsat:
            return Answer(True)
        if result != z3.sat or any(t in self.loose for t in inside):
            return None
        model = solver.model()
        values = {}
        for t in inside:
            if t.op == "var":
                value = model.eval(self.value(t), model_completion=True)
                values[t] = int(z3.is_true(value)) if t.width == 1 else value.as_long()
        return Answer(False, values)

    def predicate(self, t: Term) -> Any:
        z3 = self.z3
        if t in self.memo:
            return self.memo[t]
        if t.op == "const":
            out = z3.BoolVal(bool(t.value))
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
            out = z3.Bool(f"v{t.serial}")
            if t.op != "var":
                self.loose.add(t)
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

    def _aid(self, t: Term) -> Any:
        self.aids += 1
        return self.z3.Int(f"q{self.aids}")

    def _within(self, t: Term, v: Any, lo: int, hi: int) -> None:
        self.side.setdefault(t, []).extend((v >= lo, v <= hi))

    def _wrapped(self, t: Term, exact: Any) -> Any:
        """`exact` modulo 2^width."""
        q = self._aid(t)
        v = exact - (1 << t.width) * q
        self._within(t, v, *t.range)
        return v

    def _quotient(self, t: Term, v: Any, divisor: int) -> Any:
        q = self._aid(t)
        self._within(t, v - divisor * q, 0, divisor - 1)
        return q

    def _free(self, t: Term) -> Any:
        v = self.z3.Int(f"v{t.serial}")
        self._within(t, v, *t.range)
        if t.zeros:
            self.side[t].append(v == (1 << t.zeros) * self._aid(t))
        return v

    def _value(self, t: Term) -> Any:
        z3, op = self.z3, t.op
        if op == "const":
            return z3.IntVal(bits.number(t))
        if op == "var":
            return self._free(t)
        if op == "sum":
            constant, parts = bits.linear(t)
            total = z3.IntVal(constant) + sum(c * self.value(a) for a, c in parts.items())
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
            return self._quotient(t, v, 1 << t.value)
        if op == "ite":
            return z3.If(self.predicate(t.args[0]), self.value(t.args[1]), self.value(t.args[2]))
        if op in ("and", "or", "xor"):
            return self._bitwise(t)
        if op in ("udiv", "urem"):
            divisor = bits.number(t.args[1])
            if divisor is not None and divisor > 0:
                v = self.unsigned(t.args[0])
                q = self._quotient(t, v, divisor)
                return q if op == "udiv" else v - divisor * q
        self.loose.add(t)
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
                upper = self._quotient(t, v, 1 << high) if high < t.width else 0
                lower = self._quotient(t, v, 1 << low) if low else v
                common = common + (lower - (1 << high - low) * upper) * (1 << low)
            total = common
            if t.op == "or":
                total = v + mask - common
            elif t.op == "xor":
                total = v + mask - 2 * common
            return total if t.range[0] >= 0 else self._wrapped(t, total)
        self.loose.add(t)
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


def _closure(terms: Iterable[Term]) -> set[Term]:
    seen: set[Term] = set()
    stack = list(terms)
    while stack:
        t = stack.pop()
        if t not in seen:
            seen.add(t)
            stack.extend(t.args)
    return seen


def _words(terms: list[Term]) -> Answer:
    """The query in bit-vectors, exactly as the machine computes."""
    import z3

    memo: dict[Term, Any] = {}

    def word(t: Term) -> Any:
        if t not in memo:
            memo[t] = _word(z3, t, word)
        return memo[t]

    solver = z3.SolverFor("QF_BV")
    solver.set("rlimit", _WORD_STEPS)
    for t in terms:
        solver.add(word(t))
    variables = [t for t in _closure(terms) if t.op == "var"]
    for t in variables:
        if t.width > 1:
            solver.add(word(t) >= t.range[0], word(t) <= t.range[1])
            if t.zeros:
                solver.add(z3.Extract(t.zeros - 1, 0, word(t)) == 0)
    result = solver.check()
    if result == z3.unsat:
        return Answer(True)
    if result != z3.sat:
        return Answer(None)
    model = solver.model()
    values = {}
    for t in variables:
        value = model.eval(word(t), model_completion=True)
        values[t] = int(z3.is_true(value)) if t.width == 1 else value.as_signed_long()
    return Answer(False, values)


def _word(z3: Any, t: Term, word: Any) -> Any:
    op, width = t.op, t.width
    if op == "var":
        return z3.Bool(f"v{t.serial}") if width == 1 else z3.BitVec(f"v{t.serial}", width)
    if op == "const":
        return z3.BoolVal(bool(t.value)) if width == 1 else z3.BitVecVal(t.value, width)
    a = [word(x) for x in t.args]
    if op == "sum":
        constant, coefficients = t.value
        total = z3.BitVecVal(constant, width)
        for x, c in zip(a, coefficients, strict=True):
            total = total + x * c
        return total
    table = {
        "mul": lambda: a[0] * a[1],
        "sext": lambda: z3.SignExt(width - t.args[0].width, a[0]),
        "zext": lambda: z3.ZeroExt(width - t.args[0].width, a[0]),
        "trunc": lambda: z3.Extract(width - 1, 0, a[0]),
        "sar": lambda: a[0] >> t.value,
        "shr": lambda: z3.LShR(a[0], t.value),
        "shl_by": lambda: a[0] << a[1],
        "sar_by": lambda: a[0] >> a[1],
        "shr_by": lambda: z3.LShR(a[0], a[1]),
        "and": lambda: a[0] & a[1],
        "or": lambda: a[0] | a[1],
        "xor": lambda: a[0] ^ a[1],
        "udiv": lambda: z3.UDiv(a[0], a[1]),
        "urem": lambda: z3.URem(a[0], a[1]),
        "sdiv": lambda: a[0] / a[1],
        "srem": lambda: z3.SRem(a[0], a[1]),
        "slt": lambda: a[0] < a[1],
        "ult": lambda: z3.ULT(a[0], a[1]),
        "eq": lambda: a[0] == a[1],
        "not": lambda: z3.Not(a[0]),
        "all": lambda: z3.And(a),
        "any": lambda: z3.Or(a),
        "ite": lambda: z3.If(a[0], a[1], a[2]),
    }
    return table[op]()
