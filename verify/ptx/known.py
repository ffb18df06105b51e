"""What is known of a term from its parts: an interval of its signed value, low bits that are zero.

Rules for single operations; an interval that leaves the signed range means nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bits import Term

Interval = tuple[int, int]


def signed_range(width: int) -> Interval:
    """All values of a signed integer; a predicate is 0 or 1."""
    return (0, 1) if width == 1 else (-(1 << (width - 1)), (1 << (width - 1)) - 1)


def signed(bits: int, width: int) -> int:
    """The signed value of `bits`."""
    bits &= (1 << width) - 1
    return bits - (1 << width) if width > 1 and bits >> (width - 1) else bits


def _sum_range(t: Term) -> Interval:
    lo, coefficients = t.value
    hi = lo
    for atom, c in zip(t.args, coefficients, strict=True):
        ends = atom.range[0] * c, atom.range[1] * c
        lo, hi = lo + min(ends), hi + max(ends)
    return lo, hi


def _mul_range(t: Term) -> Interval:
    (a, b), (c, d) = t.args[0].range, t.args[1].range
    ends = a * c, a * d, b * c, b * d
    return min(ends), max(ends)


def _and_range(t: Term) -> Interval:
    tops = [a.range[1] for a in t.args if a.range[0] >= 0]
    return (0, min(tops)) if tops else signed_range(t.width)


def _or_range(t: Term) -> Interval:
    if any(a.range[0] < 0 for a in t.args):
        return signed_range(t.width)
    return 0, (1 << max(a.range[1].bit_length() for a in t.args)) - 1


def _div_range(t: Term) -> Interval:
    a, b = t.args
    if t.op[0] == "s" or a.range[0] < 0 or b.range[0] <= 0:
        return signed_range(t.width)
    if t.op == "udiv":
        return a.range[0] // b.range[1], a.range[1] // b.range[0]
    return 0, min(a.range[1], b.range[1] - 1)


def _zext_range(t: Term) -> Interval:
    return 0, (1 << t.args[0].width) - 1


def _shr_range(t: Term) -> Interval:
    return 0, (1 << (t.width - t.value)) - 1


def _ite_range(t: Term) -> Interval:
    condition, a, b = t.args
    ranges = [a.range, b.range]
    negated = condition.op == "not"
    test = condition.args[0] if negated else condition
    if test.op == "slt":  # x < y: what is selected there is no more than y's most, and so on
        x, y = test.args
        for n, holds in ((0, not negated), (1, negated)):
            lo, hi = ranges[n]
            if (a, b)[n] is x:
                lo, hi = (lo, min(hi, y.range[1] - 1)) if holds else (max(lo, y.range[0]), hi)
            elif (a, b)[n] is y:
                lo, hi = (max(lo, x.range[0] + 1), hi) if holds else (lo, min(hi, x.range[1]))
            ranges[n] = lo, hi
    ranges = [r for r in ranges if r[0] <= r[1]] or [signed_range(t.width)]
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


RANGES: dict[str, Callable[[Term], Interval]] = {
    "const": lambda t: (signed(t.value, t.width),) * 2,
    "sum": _sum_range,
    "mul": _mul_range,
    "and": _and_range,
    "or": _or_range,
    "xor": _or_range,
    "shr": _shr_range,
    "sar": lambda t: (t.args[0].range[0] >> t.value, t.args[0].range[1] >> t.value),
    "zext": _zext_range,
    "sext": lambda t: t.args[0].range,
    "trunc": lambda t: t.args[0].range,
    "ite": _ite_range,
    "udiv": _div_range,
    "urem": _div_range,
}


def _sum_zeros(t: Term) -> int:
    constant, coefficients = t.value
    parts = [a.zeros + trailing(c) for a, c in zip(t.args, coefficients, strict=True)]
    return min([*parts, trailing(constant)])


def trailing(n: int) -> int:
    return (n & -n).bit_length() - 1 if n else 128


ZEROS: dict[str, Callable[[Term], int]] = {
    "const": lambda t: trailing(t.value),
    "sum": _sum_zeros,
    "mul": lambda t: t.args[0].zeros + t.args[1].zeros,
    "and": lambda t: max(a.zeros for a in t.args),
    "or": lambda t: min(a.zeros for a in t.args),
    "xor": lambda t: min(a.zeros for a in t.args),
    "shr": lambda t: max(0, t.args[0].zeros - t.value),
    "sar": lambda t: max(0, t.args[0].zeros - t.value),
    "zext": lambda t: t.args[0].zeros,
    "sext": lambda t: t.args[0].zeros,
    "trunc": lambda t: t.args[0].zeros,
    "ite": lambda t: min(t.args[1].zeros, t.args[2].zeros),
}
