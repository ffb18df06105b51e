"""Terms → Z3: is there a point where the conditions hold and the goal fails?

Integers first (best for sizes and odd strides), bit-vectors second (best for swizzles, and sound
because intervals show that nothing wraps). Budgets are Z3 resource counts, each launch has a Z3
context of its own, and what a query says depends on no address or hash, so a verdict does not hang
on how busy the machine is or on what was proved before.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import z3

from . import terms
from .domain import Domain
from .facts import Context, Facts
from .terms import Symbol, Term, const, le, var

QUICK, LONG = 2_000_000, 10_000_000
# Far beyond what a budget of steps takes (20 s on a quiet machine): against a solver that hangs.
_MOST_SECONDS = 900
_SEED = 7


class UnsupportedError(Exception):
    """The back end has no exact form for a term."""


@dataclass(frozen=True)
class Point:
    """Values of symbols (and nothing else) that violate a goal, minimised."""

    values: Mapping[Symbol, int]

    @property
    def numbers(self) -> list[str]:
        """Integers the point rests on that are computed in registers or shared memory."""
        truth = (const(0), const(1))
        return [s.name for s in self.values if s.kind == "opaque" and (s.lo, s.hi) != truth]

    @property
    def needs_data(self) -> bool:
        """Whether the violation hangs on a value the model does not follow."""
        return any(s.kind == "opaque" for s in self.values)


@dataclass(frozen=True)
class Answer:
    """Outcome of a query: `proved`, a `point`, or neither when the budget ran out.

    `loads` says that the point rests on the contents of an index tensor.
    """

    proved: bool
    point: Point | None = None
    loads: bool = False
    reason: str = ""


class Ints:
    """Exact integers."""

    def __init__(self, engine: Engine, members: Iterable[Term]) -> None:
        self._context = engine.context
        self._memo: dict[int, Any] = {}
        self._numbers: dict[Symbol, int] = {}

    def symbol(self, s: Symbol) -> Any:
        return z3.Int(_name(self._numbers, s), self._context)

    def number(self, v: int) -> Any:
        return z3.IntVal(v, self._context)

    def term(self, t: Term) -> Any:
        if t.id not in self._memo:
            self._memo[t.id] = self._term(t)
        return self._memo[t.id]

    def _term(self, t: Term) -> Any:
        op = t.op
        if op == "const":
            return self.number(t.value)
        if op == "var":
            return self.symbol(t.value)
        a = [self.term(x) for x in t.args]
        if op == "load":
            sort = z3.IntSort(self._context)
            return z3.Function(f"load_{t.value}", sort, sort)(a[0])
        one, zero = self.number(1), self.number(0)
        if op in _LOGIC:
            return _LOGIC[op](*(_bool(x) for x in a))
        if op in _SHARED:
            return _SHARED[op](*(_number(x, one, zero) for x in a))
        if op == "ite":
            return z3.If(_bool(a[0]), _number(a[1], one, zero), _number(a[2], one, zero))
        if op == "div":
            return a[0] / a[1]
        if op == "mod":
            return a[0] % a[1]
        if op in ("tdiv", "tmod") and t.args[1].is_const and t.args[1].value > 0:
            quotient = z3.If(a[0] >= 0, a[0] / a[1], -((-a[0]) / a[1]))
            return quotient if op == "tdiv" else a[0] - quotient * a[1]
        raise UnsupportedError(op)


class Vectors:
    """Bit-vectors wide enough that no member can wrap, by the interval of each."""

    def __init__(self, engine: Engine, members: Iterable[Term]) -> None:
        self._engine = engine
        self._memo: dict[int, Any] = {}
        self._numbers: dict[Symbol, int] = {}
        most = max((max(map(abs, engine.ranges.of(m))) for m in _subterms(members)), default=0)
        if most >= 1 << 62:
            raise UnsupportedError("numbers beyond 62 bits")
        self._bits = 32 if most < 1 << 30 else 64

    def symbol(self, s: Symbol) -> Any:
        return z3.BitVec(_name(self._numbers, s), self._bits, self._engine.context)

    def number(self, v: int) -> Any:
        return z3.BitVecVal(v, self._bits, self._engine.context)

    def term(self, t: Term) -> Any:
        if t.id not in self._memo:
            self._memo[t.id] = self._term(t)
        return self._memo[t.id]

    def _term(self, t: Term) -> Any:
        op = t.op
        if op == "const":
            return self.number(t.value)
        if op == "var":
            return self.symbol(t.value)
        a = [self.term(x) for x in t.args]
        if op == "load":
            sort = z3.BitVecSort(self._bits, self._engine.context)
            return z3.Function(f"load_{t.value}", sort, sort)(a[0])
        one, zero = self.number(1), self.number(0)
        if op in _LOGIC:
            return _LOGIC[op](*(_bool(x) for x in a))
        if op in _SHARED:
            return _SHARED[op](*(_number(x, one, zero) for x in a))
        if op == "ite":
            return z3.If(_bool(a[0]), _number(a[1], one, zero), _number(a[2], one, zero))
        a = [_number(x, one, zero) for x in a]
        if op == "xor":
            return a[0] ^ a[1]
        operands = [self._engine.ranges.of(x) for x in t.args]
        if op in ("div", "mod", "tdiv", "tmod") and operands[0][0] >= 0 and operands[1][0] > 0:
            return z3.UDiv(a[0], a[1]) if op in ("div", "tdiv") else z3.URem(a[0], a[1])
        raise UnsupportedError(op)


def _name(numbers: dict[Symbol, int], s: Symbol) -> str:
    """Symbols may share a name; they are told apart by the order in which a query mentions them."""
    return f"{s.name}#{numbers.setdefault(s, len(numbers))}"


def _bool(x: Any) -> Any:
    return x if z3.is_bool(x) else x != 0


def _number(x: Any, one: Any, zero: Any) -> Any:
    return z3.If(x, one, zero) if z3.is_bool(x) else x


_LOGIC: dict[str, Callable[..., Any]] = {
    "and": lambda a, b: z3.And(a, b),
    "or": lambda a, b: z3.Or(a, b),
    "not": lambda a: z3.Not(a),
}
# Signed comparison of bit-vectors is what z3's operators mean, so the two back ends share these.
_SHARED: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "min": lambda a, b: z3.If(a < b, a, b),
    "max": lambda a, b: z3.If(a < b, b, a),
}


def _subterms(members: Iterable[Term]) -> Iterable[Term]:
    seen: set[int] = set()
    stack = list(members)
    while stack:
        t = stack.pop()
        if t.id in seen:
            continue
        seen.add(t.id)
        yield t
        stack += t.args
        if t.op == "var":
            stack += (t.value.lo, t.value.hi)


class Engine:
    """Answers questions about one launch under one domain."""

    def __init__(self, facts: Facts, domain: Domain, rlimit: int = LONG) -> None:
        self.rlimit = rlimit
        self.context = z3.Context()
        self.spent = 0
        self.tired = False  # after a query that got all its steps, and did not end
        self.facts = facts
        self.domain = domain
        self.ranges = terms.Ranges(lambda t: domain.load_interval(t, self.ranges))
        self.queries = 0
        self._answers: dict[Any, Answer] = {}

    def never(self, violation: Term, context: Context, extra: Iterable[Symbol] = ()) -> Answer:
        """Show that `violation` is false wherever `context` is reached, or find where it is not."""
        known = frozenset(c.id for c in (*context.path, *context.known()))
        key = (violation.id, known, context.loops, tuple(extra))
        if key not in self._answers:
            self._answers[key] = self._never(violation, context, list(extra))
        return self._answers[key]

    def possible(self, context: Context, extra: Iterable[Symbol] = ()) -> bool:
        """Whether a context may be reached at all; like :meth:`never`, but any point will do."""
        key = (None, frozenset(c.id for c in context.path), context.loops, tuple(extra))
        if key not in self._answers:
            self._answers[key] = self._never(const(1), context, list(extra), smallest=False)
        return not self._answers[key].proved

    def within(self, term: Term, lo: Term, hi: Term, context: Context) -> Answer:
        """Show ``lo <= term <= hi``; intervals first, since most indices need no solver."""
        above = self.ranges.of_poly(terms.poly(terms.sub(term, lo)))
        below = self.ranges.of_poly(terms.poly(terms.sub(hi, term)))
        if above[0] >= 0 and below[0] >= 0:
            return Answer(True)
        inside = terms.apply("and", le(lo, term), le(term, hi))
        return self.never(terms.apply("not", inside), context)

    def on_host(self, term: Term, lo: Term, hi: Term, context: Context) -> Answer:
        """Like :meth:`within`, where no block exists yet: only sizes bind."""
        inside = terms.apply("and", le(lo, term), le(term, hi))
        low, high = self.ranges.of_poly(terms.poly(term))
        if lo.value <= low and high <= hi.value:
            return Answer(True)
        return self.never(terms.apply("not", inside), context, self.domain.dims.values())

    def on_sizes(self, violation: Term, dims: Iterable[Symbol]) -> Answer:
        """Like :meth:`never`, over sizes alone."""
        return self.never(violation, Context(), dims)

    def satisfiable(self) -> bool:
        """Whether any size at all meets the assumptions on dims and contracts."""
        return not self.domain.dims or not self.on_sizes(const(1), self.domain.dims.values()).proved

    # -- internals ---------------------------------------------------------------------------

    def _members(self, violation: Term, context: Context, extra: list[Symbol]) -> list[Term]:
        symbols: dict[Symbol, None] = dict.fromkeys(extra)
        symbols.update(dict.fromkeys(context.loops))
        if not extra:  # device code runs in some thread of some block
            symbols.update(dict.fromkeys(self.facts.symbols.values()))
        apart = [m for t in self.domain.tensors.values() for m in t.apart()]
        given = [*context.path, *context.known()]
        stack = [violation, *given]
        pending = [*symbols]
        while stack or pending:
            if stack:
                new = stack.pop().symbols - symbols.keys()
                found = sorted(new, key=lambda s: var(s).id)
                symbols.update(dict.fromkeys(found))
                pending += found
            else:
                s = pending.pop()
                stack += (s.lo, s.hi, *(m for m in apart if s in m.symbols))
        out = [violation, *given, *(m for m in apart if m.symbols <= symbols.keys())]
        for s in symbols:
            out += [le(s.lo, var(s)), le(var(s), s.hi)]
            if s.kind == "dim" and s.name in self.domain.multiples:
                divisor = const(self.domain.multiples[s.name])
                out.append(terms.apply("eq", terms.apply("mod", var(s), divisor), const(0)))
        out += self._contracts(out)
        self._symbols = list(symbols)
        return out

    def _contracts(self, members: list[Term]) -> list[Term]:
        out = []
        loads = {t.id: t for m in members for t in m.loads()}
        for t in loads.values():
            tensor = self.domain.tensors.get(t.value)
            values = None if tensor is None else tensor.values
            if values is None:
                lo, hi = self.domain.load_interval(t, self.ranges)
                allowed = terms.apply("and", le(const(lo), t), le(t, const(hi)))
            else:
                allowed = terms.apply("and", le(values.lo, t), le(t, values.hi))
                if values.none is not None:
                    none = terms.apply("eq", t, const(values.none))
                    allowed = terms.apply("or", none, allowed)
            out.append(allowed)
        return [*out, *self._distinct(loads.values())]

    def _distinct(self, loads: Iterable[Term]) -> list[Term]:
        """Elements at different places of a tensor whose contract says so are different."""
        out = []
        for first, second in itertools.combinations(loads, 2):
            tensor = self.domain.tensors.get(first.value)  # none of shared memory
            values = None if tensor is None else tensor.values
            if first.value == second.value and values is not None and values.distinct:
                same = terms.apply("eq", first.args[0], second.args[0])
                differ = terms.apply("ne", first, second)
                if values.none is not None:
                    none = terms.apply("eq", first, const(values.none))
                    differ = terms.apply("or", none, differ)
                out.append(terms.apply("or", same, differ))
        return out

    def _never(
        self, violation: Term, context: Context, extra: list[Symbol], smallest: bool = True
    ) -> Answer:
        if violation.is_const and violation.value == 0:
            return Answer(True)
        members = self._members(violation, context, extra)
        symbols = self._symbols
        loads = any(True for m in members for _ in m.loads())
        reason = f"the solver's budget of {self.rlimit:,} steps is spent, --rlimit raises it"
        quick, most = min(QUICK, self.rlimit), self.rlimit
        budgets = [quick] if self.tired else [quick, most]
        backends: tuple[type[Ints] | type[Vectors], ...] = (Ints, Vectors)
        for budget, backend in itertools.product(budgets, backends):
            try:
                encoding = backend(self, members)
                constraints = [_bool(encoding.term(m)) for m in members]
            except UnsupportedError as limit:
                reason = f"no exact encoding of {limit}"
                continue
            solver = self._solver(constraints, budget)
            self.queries += 1
            start = time.monotonic()
            outcome = self._check(solver)
            if time.monotonic() - start >= _MOST_SECONDS:
                reason = f"the solver hung for {_MOST_SECONDS} s, which may not happen again"
                break
            if outcome == z3.unsat:
                return Answer(True)
            self.tired = self.tired or (outcome == z3.unknown and budget == most)
            if outcome == z3.sat:
                point = self._minimise(solver, encoding, symbols) if smallest else None
                return Answer(False, point, loads)
        return Answer(False, None, loads, reason)

    def _solver(self, constraints: list[Any], budget: int) -> Any:
        solver = z3.Solver(ctx=self.context)
        solver.set("rlimit", budget)
        solver.set("timeout", 1000 * _MOST_SECONDS)
        solver.set("random_seed", _SEED)
        solver.add(*constraints)
        return solver

    def _check(self, solver: Any) -> Any:
        # Z3 counts over the life of its context, which outlives a query.
        before = _steps(solver)
        outcome = solver.check()
        self.spent += _steps(solver) - before
        return outcome

    def _minimise(self, solver: Any, encoding: Any, symbols: list[Symbol]) -> Point:
        """The smallest violation a person would look at first: sizes, then block, thread, loops."""
        rank = {"dim": 0, "block": 1, "thread": 2, "loop": 3, "lane": 4, "opaque": 5}
        values = _read(solver.model(), encoding, symbols)
        tired = False  # a number that takes too long is small enough
        for s in sorted(symbols, key=lambda s: rank[s.kind]):
            if s.kind == "opaque":
                continue
            z, lo = encoding.symbol(s), self.ranges.of(var(s))[0]
            low, high = lo, values[s]
            while low < high and not tired:
                middle = (low + high) // 2
                solver.push()
                solver.add(z <= encoding.number(middle))
                outcome = self._check(solver)
                tired = outcome == z3.unknown
                if outcome == z3.sat:
                    values = _read(solver.model(), encoding, symbols)
                    high = values[s]
                else:
                    low = middle + 1
                solver.pop()
            solver.add(z == encoding.number(values[s]))
        return Point(self.domain.complete(values))


def _steps(solver: Any) -> int:
    """Z3's count of its own steps so far; a context that never solved anything has none."""
    counts = dict(iter(solver.statistics()))
    return int(counts.get("rlimit count", 0))


def _read(model: Any, encoding: Any, symbols: list[Symbol]) -> dict[Symbol, int]:
    out = {}
    for s in symbols:
        value = model.eval(encoding.symbol(s), model_completion=True)
        out[s] = value.as_signed_long() if z3.is_bv_value(value) else value.as_long()
    return out
