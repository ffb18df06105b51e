"""A query in Z3's bit-vectors, exactly as the machine computes."""

from __future__ import annotations

from typing import Any

from . import walk
from .bits import Term
from .integers import Answer, spent

_STEPS = 2_000_000


def ask(terms: list[Term]) -> Answer:
    """Whether the terms contradict each other."""
    import z3

    context = z3.Context()
    memo: dict[Term, Any] = {}

    def word(t: Term) -> Any:
        if t not in memo:
            memo[t] = _word(z3, context, t, word, f"v{len(memo)}")
        return memo[t]

    solver = z3.SolverFor("QF_BV", ctx=context)
    solver.set("rlimit", _STEPS)
    for t in terms:
        solver.add(word(t))
    variables = walk.variables(*terms)
    for t in variables:
        if t.width > 1:
            solver.add(word(t) >= t.range[0], word(t) <= t.range[1])
            if t.zeros:
                solver.add(z3.Extract(t.zeros - 1, 0, word(t)) == 0)
    result = solver.check()
    steps = spent(solver)
    if result == z3.unsat:
        return Answer(True, steps=steps)
    if result != z3.sat:
        return Answer(None, steps=steps)
    model = solver.model()
    values = {}
    for t in variables:
        value = model.eval(word(t), model_completion=True)
        values[t] = int(z3.is_true(value)) if t.width == 1 else value.as_signed_long()
    return Answer(False, values, steps)


def _word(z3: Any, context: Any, t: Term, word: Any, name: str) -> Any:
    op, width = t.op, t.width
    if op == "var":
        return z3.Bool(name, context) if width == 1 else z3.BitVec(name, width, context)
    if op == "const":
        if width == 1:
            return z3.BoolVal(bool(t.value), context)
        return z3.BitVecVal(t.value, width, context)
    a = [word(x) for x in t.args]
    if op == "sum":
        constant, coefficients = t.value
        total = z3.BitVecVal(constant, width, context)
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
