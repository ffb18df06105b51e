"""Bit-vector terms: what a PTX register holds, as an expression over the inputs of a thread.

Sums are kept as linear combinations modulo 2^width, so additions, subtractions, shifts to the left
and products with constants need no case distinction. Each term knows an interval of its *signed*
value and a number of low bits that are zero; both are sound and cheap, and decide most questions
before a solver is asked. Predicates are terms of width 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from math import gcd
from typing import Any

from .known import RANGES, ZEROS, Interval, signed, signed_range, trailing


class Term:
    """One node, interned: equal terms are the same object. Made by the functions below only.

    `value` is a constant's bits, a variable's name, a shift's distance, or a sum's
    ``(constant, coefficients)`` for its `args`, coefficients signed.
    """

    op: str
    width: int
    args: tuple[Term, ...]
    value: Any
    zeros: int
    range: Interval

    __slots__ = ("args", "op", "range", "serial", "value", "width", "zeros")

    def __init__(self, op: str, width: int, args: tuple[Term, ...], value: Any) -> None:
        self.op, self.width, self.args, self.value = op, width, args, value
        self.serial = len(_interned)
        self.range: Interval = signed_range(width)
        self.zeros = 0

    def __repr__(self) -> str:
        return show(self)


_WIDE = 160  # bits in which products with the constants of divisions do not wrap
_interned: dict[tuple[object, ...], Term] = {}


_serials = itertools.count()


def forget() -> None:
    """Drop every term; those still held elsewhere must not be mixed with new ones.

    What is made afterwards does not depend on what was there before.
    """
    global _serials
    _interned.clear()
    _serials = itertools.count()


def serial() -> int:
    """A number no other name has had since :func:`forget`."""
    return next(_serials)


LOOP = "*"  # where values are from that change in a loop, and not by steps


def fresh(width: int, of: str = "") -> Term:
    """A variable of its own, for a value of which nothing is known but, maybe, where it is from."""
    return var(f"~{of}[{serial()}]", width)


def untracked(t: Term) -> str:
    """What a variable of :func:`fresh` stands for, in words; "" for any other."""
    name = str(t.value)
    if t.op != "var" or not (name.startswith("~") and name.endswith("]")):
        return ""
    of = name[1:].rpartition("[")[0]
    if of == LOOP:
        return "a value that a loop changes"
    return f"elements of {of}" if of else "a value that is not tracked"


def _node(op: str, width: int, args: tuple[Term, ...] = (), value: object = None) -> Term:
    key = (op, width, value, *(a.serial for a in args))
    found = _interned.get(key)
    if found is None:
        found = Term(op, width, args, value)
        if op in RANGES:
            lo, hi = RANGES[op](found)
            least, most = found.range
            if least <= lo and hi <= most:
                found.range = (lo, hi)
        if op in ZEROS:
            found.zeros = min(width, ZEROS[op](found))
        _interned[key] = found
    return found


def const(value: int, width: int) -> Term:
    """The number `value`, modulo 2^width."""
    return _node("const", width, (), value & ((1 << width) - 1))


def true() -> Term:
    return const(1, 1)


def false() -> Term:
    return const(0, 1)


def var(name: str, width: int, bounds: Interval | None = None, zeros: int = 0) -> Term:
    """An input. The first call for a name says what is known of its signed value."""
    new = ("var", width, name) not in _interned
    made = _node("var", width, (), name)
    if new:
        made.range = bounds or made.range
        made.zeros = zeros
    return made


def number(t: Term) -> int | None:
    """The signed value of a constant, else None."""
    if t.op != "const":
        return None
    return signed(t.value, t.width)


# --- linear combinations -------------------------------------------------------------------------


def linear(t: Term) -> tuple[int, dict[Term, int]]:
    """`t` as ``constant + sum(coefficient * atom)`` modulo 2^width."""
    if t.op == "const":
        return signed(t.value, t.width), {}
    if t.op == "sum":
        constant, coefficients = t.value
        return constant, dict(zip(t.args, coefficients, strict=True))
    return 0, {t: 1}


def combine(width: int, constant: int, parts: Mapping[Term, int]) -> Term:
    """Inverse of :func:`linear`."""
    kept = {a: signed(c, width) for a, c in parts.items()}
    kept = {a: c for a, c in kept.items() if c}
    constant = signed(constant, width)
    if not kept:
        return const(constant, width)
    atoms = tuple(sorted(kept, key=lambda a: a.serial))
    if constant == 0 and len(atoms) == 1 and kept[atoms[0]] == 1:
        return atoms[0]
    return _node("sum", width, atoms, (constant, tuple(kept[a] for a in atoms)))


def add(a: Term, b: Term, factor: int = 1) -> Term:
    """``a + factor * b``."""
    constant, parts = linear(a)
    more, others = linear(b)
    for atom, c in others.items():
        parts[atom] = parts.get(atom, 0) + factor * c
    return combine(a.width, constant + factor * more, parts)


def sub(a: Term, b: Term) -> Term:
    return add(a, b, -1)


def scale(a: Term, factor: int) -> Term:
    """``a * factor``."""
    return add(const(0, a.width), a, factor)


def mul(a: Term, b: Term) -> Term:
    """``a * b``; products are distributed over sums, so equal polynomials are equal terms."""
    for x, y in ((a, b), (b, a)):
        if (n := number(x)) is not None:
            return scale(y, n)
    constant, parts = linear(a)
    more, others = linear(b)
    if len(parts) * len(others) > 16:
        return _product(a, b)
    total = combine(a.width, constant * more, {})
    total = add(total, combine(a.width, 0, parts), more)
    total = add(total, combine(a.width, 0, others), constant)
    for x, cx in parts.items():
        for y, cy in others.items():
            total = add(total, _product(x, y), cx * cy)
    return total


def _product(a: Term, b: Term) -> Term:
    first, second = sorted((a, b), key=lambda t: t.serial)
    return _node("mul", a.width, (first, second))


def fits(t: Term) -> bool:
    """Whether a sum or product over the integers never leaves the signed range: no wrap-around."""
    if t.op not in ("sum", "mul"):
        return True
    lo, hi = RANGES[t.op](t)
    least, most = signed_range(t.width)
    return least <= lo and hi <= most


# --- widths --------------------------------------------------------------------------------------


def trunc(a: Term, width: int) -> Term:
    """The low `width` bits."""
    if width == a.width:
        return a
    if a.op == "const":
        return const(a.value, width)
    if a.op == "sum":
        constant, parts = linear(a)
        total = const(constant, width)
        for atom, c in parts.items():
            total = add(total, trunc(atom, width), c)
        return total
    if a.op == "mul":
        return mul(trunc(a.args[0], width), trunc(a.args[1], width))
    if a.op in ("sext", "zext"):
        inner = a.args[0]
        if inner.width >= width:
            return trunc(inner, width)
        return extend(inner, width, a.op == "sext")
    if a.op == "trunc":
        return trunc(a.args[0], width)
    return _node("trunc", width, (a,))


def extend(a: Term, width: int, sign: bool) -> Term:
    """`a` in more bits. Where the value is not negative, both kinds are the same term."""
    if width == a.width:
        return a
    lo, _ = a.range
    if a.op == "const":
        return const(signed(a.value, a.width) if sign else a.value, width)
    sign = sign or lo >= 0
    if sign and a.op == "sum" and fits(a):
        constant, parts = linear(a)
        total = const(constant, width)
        for atom, c in parts.items():
            total = add(total, extend(atom, width, True), c)
        return total
    if sign and a.op == "mul" and fits(a):
        return mul(extend(a.args[0], width, True), extend(a.args[1], width, True))
    if sign and a.op == "trunc":
        inner = a.args[0]
        least, most = signed_range(a.width)
        if least <= inner.range[0] and inner.range[1] <= most:
            return inner if inner.width == width else resize(inner, width, True)
    if a.op in ("sext", "zext") and (a.op == "zext" or sign):
        return extend(a.args[0], width, a.op == "sext")
    return _node("sext" if sign else "zext", width, (a,))


def resize(a: Term, width: int, sign: bool) -> Term:
    """`a` in `width` bits, fewer or more."""
    return trunc(a, width) if width <= a.width else extend(a, width, sign)


# --- bits ----------------------------------------------------------------------------------------


def maybe(t: Term) -> int:
    """Mask of the bits that can be 1."""
    every = (1 << t.width) - 1
    if t.op == "const":
        return int(t.value)
    mask = every
    if t.op == "and":
        mask = maybe(t.args[0]) & maybe(t.args[1])
    elif t.op in ("or", "xor"):
        mask = maybe(t.args[0]) | maybe(t.args[1])
    elif t.op == "shr":
        mask = maybe(t.args[0]) >> t.value
    elif t.op == "sum":
        mask = _sum_mask(t)
    if t.range[0] >= 0:
        mask &= (1 << t.range[1].bit_length()) - 1
    return mask & ~((1 << t.zeros) - 1) & every


def _sum_mask(t: Term) -> int:
    """Bits of a sum whose parts share none; of any other sum, all."""
    constant, parts = linear(t)
    union = constant if constant >= 0 and fits(t) else -1
    for atom, c in parts.items():
        if union < 0 or c < 0 or atom.range[0] < 0:
            return (1 << t.width) - 1
        top = (atom.range[1] * c).bit_length()
        mask = maybe(atom) * c if c & (c - 1) == 0 else -(1 << atom.zeros + trailing(c))
        mask &= (1 << top) - 1
        union = -1 if union & mask else union | mask
    return union & ((1 << t.width) - 1)


def shl(a: Term, by: int) -> Term:
    return const(0, a.width) if by >= a.width else scale(a, 1 << by)


def shr(a: Term, by: int, sign: bool) -> Term:
    """`a` shifted to the right, filled with zeros or with its sign."""
    if by == 0:
        return a
    sign = sign or a.range[0] >= 0
    if by >= a.width:
        if not sign:
            return const(0, a.width)
        by = a.width - 1
    if a.op == "const":
        return const((signed(a.value, a.width) if sign else a.value) >> by, a.width)
    if not sign and a.range[1] < 0:  # floor((a + 2^w) / 2^by)
        return add(shr(a, by, True), const(1 << a.width - by, a.width))
    if by == a.width - 1 and not sign:
        return ite(less(a, const(0, a.width)), const(1, a.width), const(0, a.width))
    if sign and a.op == "sar":
        return shr(a.args[0], min(by + a.value, a.width - 1), True)
    if (quotient := _division(a, by)) is not None:
        return quotient
    if sign and a.op == "sum" and fits(a):
        # floor((2^k p + q) / 2^k) = p + floor(q / 2^k)
        constant, parts = linear(a)
        unit = 1 << by
        whole = {t: c // unit for t, c in parts.items() if c % unit == 0}
        rest = {t: c for t, c in parts.items() if c % unit}
        q = combine(a.width, constant % unit, rest)
        if (whole or constant // unit) and fits(q):
            quotient = shr(q, by, True)
            return add(quotient, combine(a.width, constant // unit, whole))
    if sign and (a.range[0] >> by) == (a.range[1] >> by):
        return const(a.range[0] >> by, a.width)
    if a.op == "udiv" and a.range[0] >= 0 and (n := number(a.args[1])) is not None:
        return divide("udiv", a.args[0], const(n << by, a.width))
    return _node("sar" if sign else "shr", a.width, (a,), by)


def _division(a: Term, by: int) -> Term | None:
    """``a >> by`` as a division by a constant, where a compiler wrote it as a multiplication.

    ``floor(c*x / 2^s) == floor(x / d)`` for ``0 <= x <= most`` if ``d = ceil(2^s / c)`` and
    ``most * (c*d - 2^s) < 2^s``. A quotient inside is part of the same fraction:
    ``floor((r + floor(u / 2^k)) / 2^s) == floor((2^k r + u) / 2^(k+s))``.
    """
    if a.range[0] < 0 or not fits(a):
        return None
    wide, shift = extend(a, _WIDE, True), by
    while True:
        _, parts = linear(wide)
        inner = {t: t.args[0] if t.op == "sext" else t for t, c in parts.items() if c == 1}
        quotient = next((t for t, i in inner.items() if i.op in ("sar", "shr")), None)
        if quotient is None:
            break
        shifted = inner[quotient]
        if shifted.op == "shr" and shifted.args[0].range[0] < 0:
            return None
        rest, k = sub(wide, quotient), int(shifted.value)
        wide, shift = add(extend(shifted.args[0], _WIDE, True), rest, 1 << k), shift + k
    constant, parts = linear(wide)
    c = gcd(constant, *parts.values())
    if shift < 8 or shift > 80 or c < 3 or c & (c - 1) == 0 or not fits(wide):
        return None
    x = combine(_WIDE, constant // c, {t: n // c for t, n in parts.items()})
    d = -(-(1 << shift) // c)
    lo, most = x.range
    _, top = signed_range(a.width)
    if lo < 0 or most > top or d > top or most * (c * d - (1 << shift)) >= 1 << shift:
        return None
    return divide("udiv", trunc(x, a.width), const(d, a.width))


def and_(a: Term, b: Term) -> Term:
    if a.op == "const":
        a, b = b, a
    if b.op == "const":
        mask = int(b.value)
        if a.op == "const":
            return const(int(a.value) & mask, a.width)
        if maybe(a) & ~mask == 0:
            return a
        if maybe(a) & mask == 0:
            return const(0, a.width)
        if a.op == "and" and a.args[1].op == "const":
            return and_(a.args[0], const(mask & int(a.args[1].value), a.width))
        if mask & (mask + 1) == 0 and a.op == "sum":  # x mod 2^k: whole multiples drop out
            constant, parts = linear(a)
            if mask == 1 and (flipped := _flipped(constant, parts)) is not None:
                return sub(b, flipped)
            kept = {t: signed(c & mask, a.width) for t, c in parts.items()}
            kept = {t: c for t, c in kept.items() if c and (c << t.zeros) & mask}
            reduced = combine(a.width, constant & mask, kept)
            if reduced is not a and fits(reduced):
                return and_(reduced, b)
        return _node("and", a.width, (a, b))
    if a is b:
        return a
    if (chosen := _of_predicates(and_, a, b)) is not None:
        return chosen
    return _node("and", a.width, tuple(sorted((a, b), key=lambda t: t.serial)))


def _of_predicates(do: Callable[[Term, Term], Term], a: Term, b: Term) -> Term | None:
    """An operation on a predicate that went through a register."""
    for choice, other in ((a, b), (b, a)):
        if choice.op == "ite" and choice.args[1].op == choice.args[2].op == "const":
            p, yes, no = choice.args
            return ite(p, do(other, yes), do(other, no))
    return None


def _flipped(constant: int, parts: Mapping[Term, int]) -> Term | None:
    """The bit of which a sum's last bit is the opposite, if there is one."""
    odd = [t for t, c in parts.items() if c << t.zeros & 1]
    return odd[0] if constant & 1 and len(odd) == 1 and odd[0].range == (0, 1) else None


def or_(a: Term, b: Term) -> Term:
    if a is b:
        return a
    if maybe(a) & maybe(b) == 0:
        return add(a, b)
    if a.op == b.op == "const":
        return const(int(a.value) | int(b.value), a.width)
    return _node("or", a.width, tuple(sorted((a, b), key=lambda t: t.serial)))


def xor(a: Term, b: Term) -> Term:
    if a is b:
        return const(0, a.width)
    if maybe(a) & maybe(b) == 0:
        return add(a, b)
    if a.op == b.op == "const":
        return const(int(a.value) ^ int(b.value), a.width)
    if -1 in (number(a), number(b)):
        return not_(b if number(a) == -1 else a)
    if (chosen := _of_predicates(xor, a, b)) is not None:
        return chosen
    return _node("xor", a.width, tuple(sorted((a, b), key=lambda t: t.serial)))


def not_(a: Term) -> Term:
    """Every bit flipped, which is ``-a - 1``."""
    return sub(const(-1, a.width), a)


def shift_by(op: str, a: Term, by: Term) -> Term:
    """A shift by a register: ``shl``, ``shr`` or ``sar``; distances past the width clamp."""
    if by.op == "const":
        distance = int(by.value)
        return shl(a, distance) if op == "shl" else shr(a, distance, op == "sar")
    return _node(f"{op}_by", a.width, (a, resize(by, a.width, False)))


def divide(op: str, a: Term, b: Term) -> Term:
    """``udiv sdiv urem srem`` as PTX has them: truncating; the result of x/0 is unspecified."""
    sign = op[0] == "s" and (a.range[0] < 0 or b.range[0] < 0)
    if not sign and a.range[0] >= 0 and b.range[0] >= 0:
        op = "u" + op[1:]
    if a.op == b.op == "const" and b.value:
        x, y = (signed(t.value, t.width) if sign else int(t.value) for t in (a, b))
        quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        return const(quotient if op.endswith("div") else x - y * quotient, a.width)
    n = number(b)
    if n is not None and n > 0 and n & (n - 1) == 0 and op[0] == "u":
        power = n.bit_length() - 1
        return shr(a, power, False) if op == "udiv" else and_(a, const(n - 1, a.width))
    return _node(op, a.width, (a, b))


# --- predicates ----------------------------------------------------------------------------------


def eq(a: Term, b: Term) -> Term:
    if a is b:
        return true()
    if a.width == 1:
        return any_((all_((a, b)), all_((negate(a), negate(b)))))
    difference = sub(a, b)
    if difference.op == "const" and a.width > 1:
        return const(difference.value == 0, 1)
    constant, parts = linear(difference)
    (atom, c), *others = parts.items()
    if not others and abs(c) == 1:
        a, b = atom, const(-constant * c, a.width)
        if atom.op == "ite":  # a predicate that went through a register
            p, yes, no = atom.args
            if "const" in (yes.op, no.op):
                return any_((all_((p, eq(yes, b))), all_((negate(p), eq(no, b)))))
    if a.range[1] < b.range[0] or b.range[1] < a.range[0]:
        return false()
    return _node("eq", 1, tuple(sorted((a, b), key=lambda t: t.serial)))


def less(a: Term, b: Term, sign: bool = True) -> Term:
    """``a < b``."""
    if not sign and a.range[0] >= 0 and b.range[0] >= 0:
        sign = True
    if a is b:
        return false()
    if a.op == b.op == "const":
        x, y = (signed(t.value, t.width) if sign else t.value for t in (a, b))
        return const(x < y, 1)
    if sign:
        if a.range[1] < b.range[0]:
            return true()
        if a.range[0] >= b.range[1]:
            return false()
        for choice, n in ((a, b), (b, a)):
            if choice.op == "ite" and n.op == "const" and "const" in [c.op for c in choice.args]:
                p, *values = choice.args
                yes, no = (less(v, b) if choice is a else less(a, v) for v in values)
                return any_((all_((p, yes)), all_((negate(p), no))))
        difference = sub(a, b)
        if fits(a) and fits(b) and fits(difference):
            if difference.range[1] < 0:
                return true()
            if difference.range[0] >= 0:
                return false()
    return _node("slt" if sign else "ult", 1, (a, b))


def negate(p: Term) -> Term:
    """The opposite; of a junction, that of its parts, so that only atoms are under a ``not``."""
    if p.op == "const":
        return const(1 - int(p.value), 1)
    if p.op in ("all", "any"):
        return (any_ if p.op == "all" else all_)(map(negate, p.args))
    return p.args[0] if p.op == "not" else _node("not", 1, (p,))


def all_(parts: Iterable[Term]) -> Term:
    return _junction("all", parts, 1)


def any_(parts: Iterable[Term]) -> Term:
    return _junction("any", parts, 0)


def _junction(op: str, parts: Iterable[Term], unit: int) -> Term:
    kept: dict[Term, None] = {}
    for p in parts:
        for q in p.args if p.op == op else (p,):
            if q.op == "const":
                if q.value != unit:
                    return q
                continue
            kept[q] = None
    if any(negate(q) in kept for q in kept):
        return const(1 - unit, 1)
    for q in kept:  # a or (not a and b) is a or b
        left = [r for r in q.args if negate(r) not in kept]
        if q.op in ("all", "any") and len(left) < len(q.args):
            rest = (all_ if q.op == "all" else any_)(left)
            return _junction(op, [rest, *(r for r in kept if r is not q)], unit)
    if len(kept) < 2:
        return next(iter(kept), const(unit, 1))
    return _node(op, 1, tuple(sorted(kept, key=lambda t: t.serial)))


def ite(p: Term, a: Term, b: Term) -> Term:
    """`a` where `p`, else `b`."""
    if a is b:
        return a
    if p.op == "const":
        return a if p.value else b
    if a.width == 1:
        return any_((all_((p, a)), all_((negate(p), b))))
    if p.op == "not":
        p, a, b = p.args[0], b, a
    return _node("ite", a.width, (p, a, b))


def clamp(a: Term, least: int) -> Term:
    """``max(a, least)``: where `a` is known to be no less it is `a`, and its interval shows it."""
    lowest = const(least, a.width)
    return ite(less(a, lowest), lowest, a)


def show(t: Term) -> str:
    """For reports and debugging."""
    if t.op == "const":
        return str(number(t))
    if t.op == "var":
        return str(t.value)
    if t.op == "sum":
        constant, parts = linear(t)
        texts = [f"{c}*{show(a)}" if c != 1 else show(a) for a, c in parts.items()]
        return "(" + " + ".join([*texts, *([str(constant)] if constant else [])]) + ")"
    extra = "" if t.value is None else f"{t.value}, "
    return f"{t.op}({extra}{', '.join(map(show, t.args))})"
