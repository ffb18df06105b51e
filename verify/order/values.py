"""Integers of which only the class is known: how far loops of unknown length have come, and which
cluster of a launch a block is in.

Iteration `k` of such a loop is a number while ``k < head``, and after that ``period * u + c`` with
an unknown ``u >= 0``: what holds for it holds for every iteration of its class. Nothing is guessed:
an operation whose result would hang on `u` raises :class:`CoarseError`, and says which finer
classes would decide it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from .lanes import hashable


class CoarseError(Exception):
    """Classes are too coarse. `finer` says by unknown by what its period is to be multiplied, and
    by how many periods its head is to grow; it is empty where nothing would help."""

    def __init__(self, finer: Mapping[Hashable, tuple[int, int]] | None = None) -> None:
        super().__init__("classes of iterations too coarse")
        self.finer = finer or {}


class Form:
    """``constant + sum(coefficient * unknown)`` over unknowns that are at least 0. The constant may
    be one of each thread."""

    __slots__ = ("constant", "parts")
    __array_ufunc__ = None  # what arrays are added to is decided here

    def __init__(self, parts: Mapping[Hashable, int], constant: int) -> None:
        self.parts, self.constant = dict(parts), constant

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal forms; ``==`` compares what they stand for."""
        return (hashable(self.constant), *sorted(self.parts.items(), key=repr))

    @property
    def step(self) -> int:
        """What the values differ by: a multiple of this."""
        return math.gcd(*self.parts.values())

    @property
    def still(self) -> bool:
        """Whether it is the same in every iteration: it hangs on nothing but the cluster."""
        return all(isinstance(u, str) for u in self.parts)

    def __repr__(self) -> str:
        return f"{self.step}u+{self.constant}"

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, Form):
            return Form(self.parts, self.constant + other)
        parts = dict(self.parts)
        for u, c in other.parts.items():
            parts[u] = parts.get(u, 0) + c
        return form(parts, self.constant + other.constant)

    __radd__ = __add__

    def __neg__(self) -> Any:
        return self * -1

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Form):
            raise CoarseError
        return form({u: c * other for u, c in self.parts.items()}, self.constant * other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        self._divisible(other)
        return form({u: c // other for u, c in self.parts.items()}, self.constant // other)

    def __mod__(self, other: Any) -> Any:
        self._divisible(other)
        return self.constant % other

    def _divisible(self, other: Any) -> None:
        if isinstance(other, Form):
            raise CoarseError
        if self.step % other:
            factors = {u: abs(other) // math.gcd(c, other) for u, c in self.parts.items()}
            raise CoarseError({u: (n, 0) for u, n in factors.items() if n > 1})

    def __rfloordiv__(self, other: Any) -> Any:
        raise CoarseError

    __rmod__ = __rfloordiv__

    def __lshift__(self, other: Any) -> Any:
        return self * (1 << self._number(other))

    def __rshift__(self, other: Any) -> Any:
        return self // (1 << self._number(other))

    def __and__(self, other: Any) -> Any:
        mask = self._number(other)
        if mask < 0 or mask & (mask + 1):
            raise self.later(1)
        return self % (mask + 1)

    __rand__ = __and__

    def _number(self, other: Any) -> int:
        if isinstance(other, Form):
            raise CoarseError
        return int(other)

    def _no_bits(self, other: Any) -> Any:
        raise self.later(1)

    __or__ = __ror__ = __xor__ = __rxor__ = __rlshift__ = __rrshift__ = _no_bits

    def __abs__(self) -> Any:
        return -self if self < 0 else self

    def __lt__(self, other: Any) -> bool:
        return _negative(self - other)

    def __ge__(self, other: Any) -> bool:
        return not _negative(self - other)

    def __gt__(self, other: Any) -> bool:
        return _negative(other - self)

    def __le__(self, other: Any) -> bool:
        return not _negative(other - self)

    def __eq__(self, other: object) -> bool:
        apart: Any = self - other
        if not isinstance(apart, Form):
            return bool(apart == 0)
        if apart.constant % apart.step:
            return False
        if all(c > 0 for c in apart.parts.values()) and apart.constant > 0:
            return False
        if all(c < 0 for c in apart.parts.values()) and apart.constant < 0:
            return False
        raise apart.decided()

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return self != 0

    def later(self, periods: int) -> CoarseError:
        """To begin the classes later, so that more are numbers."""
        return CoarseError(dict.fromkeys(self.parts, (1, periods)))

    def decided(self) -> CoarseError:
        """What decides the sign of a form, and that it is not 0."""
        far = int(np.max(np.abs(np.asarray(self.constant))))
        return self.later(far // min(abs(c) for c in self.parts.values()) + 1)


def of_cluster(axis: str, ways: int, rank: int) -> Form:
    """An index of a block that is the `rank`-th of `ways` along an axis of its cluster. The unknown
    is called by the index, and has no finer classes."""
    return Form({axis: ways}, rank)


def form(parts: Mapping[Hashable, int], constant: int) -> Any:
    """The form, or its constant if there is nothing unknown in it."""
    kept = {u: c for u, c in parts.items() if c}
    return Form(kept, constant) if kept else constant


def _negative(apart: Any) -> bool:
    if not isinstance(apart, Form):
        return bool(apart < 0)
    if all(c > 0 for c in apart.parts.values()) and apart.constant >= 0:
        return False
    if all(c < 0 for c in apart.parts.values()) and apart.constant < 0:
        return True
    raise apart.decided()


def widened(value: Any, unknown: Hashable, period: int, head: int) -> Any:
    """What is kept of a number at the beginning of an iteration: itself while it is small, else its
    class, of an unknown of its own. None if it may be negative."""
    if not isinstance(value, Form):
        if value < head:
            return value
        return Form({unknown: period}, head + (value - head) % period)
    if min(value.parts.values()) < 0 or value.constant < 0:
        return None
    step, least = value.step, value.constant
    return Form({unknown: step}, least if least < head else head + (least - head) % step)
