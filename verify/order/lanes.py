"""Integers of several threads at once, which are followed as one while they do the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

_MOST = 1 << 62


class ApartError(Exception):
    """Threads followed as one part here. `parts` are their positions, by what each wants."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__("threads that part")
        kinds, kind = np.unique(values, return_inverse=True)
        self.parts = [np.flatnonzero(kind == i) for i in range(len(kinds))]


class Lanes(np.ndarray):
    """An integer of each thread; arithmetic goes thread by thread.

    One truth or one number of all of them is there if they agree, else asking for it raises
    :class:`ApartError`. A product beyond 62 bits raises OverflowError: Python's integers are exact.
    """

    def _common(self, values: np.ndarray) -> int:
        first = values[0]
        if (values != first).any():
            raise ApartError(values)
        return int(first)

    def __bool__(self) -> bool:
        return bool(self._common(self.view(np.ndarray) != 0))

    def __int__(self) -> int:
        return self._common(self.view(np.ndarray))

    __index__ = __int__

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, int | np.ndarray) and _largest(self) * _largest(other) >= _MOST:
            raise OverflowError
        return super().__mul__(other)

    __rmul__ = __mul__

    def __lshift__(self, other: Any) -> Any:
        return self * (1 << int(other))


def _largest(values: Any) -> int:
    if isinstance(values, int):
        return abs(values)
    plain = values.view(np.ndarray)
    every = int(np.bitwise_or.reduce(plain))  # no less than any, if none is negative
    return every if every >= 0 else int(np.abs(plain).max())


def lanes(values: Iterable[int]) -> Any:
    """The integers of several threads, or of one as it is."""
    found = np.fromiter(values, np.int64)
    return int(found[0]) if len(found) == 1 else found.view(Lanes)


def agreed(value: Any) -> Any:
    """A number that all threads have in common as such; anything else as it is."""
    if not isinstance(value, Lanes):
        return value
    plain = value.view(np.ndarray)
    return int(plain[0]) if (plain == plain[0]).all() else value


def hashable(value: Any) -> Any:
    """Something equal for equal numbers."""
    return tuple(value.tolist()) if isinstance(value, Lanes) else value
