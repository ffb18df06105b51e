"""Walks over terms: what occurs in them, and terms with other parts in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import bits
from .bits import Term


def closure(*terms: Term) -> dict[Term, None]:
    """Every term in `terms`, each once, in an order that depends on the terms alone."""
    seen: dict[Term, None] = {}
    stack = list(reversed(terms))
    while stack:
        t = stack.pop()
        if t not in seen:
            seen[t] = None
            stack.extend(reversed(t.args))
    return seen


def variables(*terms: Term) -> list[Term]:
    """Every variable in `terms`, each once, in the order of their first mention."""
    return [t for t in closure(*terms) if t.op == "var"]


def replace(t: Term, old: Term, new: Term) -> Term:
    """`t` with the part `old` replaced, simplified again."""
    return substitute(t, {}, {old: new})


def substitute(t: Term, new: Mapping[Term, Term], memo: dict[Term, Term] | None = None) -> Term:
    """`t` with variables replaced, simplified again."""
    memo = {} if memo is None else memo
    if t in memo:
        return memo[t]
    if t.op == "var":
        out = new.get(t, t)
    elif not t.args:
        out = t
    else:
        out = rebuild(t, [substitute(a, new, memo) for a in t.args])
    memo[t] = out
    return out


def rebuild(t: Term, args: list[Term]) -> Term:
    """The term of `t`'s kind over other arguments."""
    op = t.op
    if op == "sum":
        constant, coefficients = t.value
        total = bits.const(constant, t.width)
        for a, c in zip(args, coefficients, strict=True):
            total = bits.add(total, a, c)
        return total
    if op in ("shr", "sar"):
        return bits.shr(args[0], t.value, op == "sar")
    if op in ("sext", "zext"):
        return bits.extend(args[0], t.width, op == "sext")
    if op == "trunc":
        return bits.trunc(args[0], t.width)
    if op.endswith("_by"):
        return bits.shift_by(op[:-3], *args)
    if op in ("udiv", "sdiv", "urem", "srem"):
        return bits.divide(op, *args)
    if op in ("slt", "ult"):
        return bits.less(args[0], args[1], op == "slt")
    if op in ("all", "any"):
        return bits.all_(args) if op == "all" else bits.any_(args)
    return _PLAIN[op](*args)


_PLAIN: dict[str, Callable[..., Term]] = {
    "mul": bits.mul,
    "and": bits.and_,
    "or": bits.or_,
    "xor": bits.xor,
    "not": bits.negate,
    "eq": bits.eq,
    "ite": bits.ite,
}
