"""Accesses of shared memory, and where two of them share a byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .trace import MEMORY, Access

Meeting = tuple[Access, Access, int]  # two accesses and a byte of both


@dataclass(frozen=True)
class Conflict:
    """Two accesses of one byte, at least one a write; `why` is "race", "copy" or "fence". In tensor
    memory, where `byte` is a column, it may be "before" or "after": the tcgen05.fence it lacks."""

    why: str
    first: Access
    second: Access
    byte: int


@dataclass(eq=False)
class Piece:
    """What the threads of one class do by one statement between two of their events."""

    number: int
    mode: str
    arena: str
    engine: str
    load: int | None
    use: str = ""
    accesses: list[Access] = field(default_factory=list)

    @property
    def proxy(self) -> bool:
        return self.accesses[0].proxy

    @property
    def tensor(self) -> bool:
        """Of tensor memory."""
        return self.arena.startswith(MEMORY)

    @cached_property
    def each(self) -> list[Access]:
        """The accesses of each thread."""
        return [one for a in self.accesses for one in a.each()]

    @cached_property
    def bounds(self) -> tuple[int, int]:
        rows = [a.rows for a in self.accesses]
        return min(int(r[1].min()) for r in rows), max(int(r[2].max()) for r in rows)

    @cached_property
    def owners(self) -> Any:
        """Per byte of the bounds the thread that touches it, -1 for none, -2 for several."""
        lo, hi = self.bounds
        least = np.full(hi - lo, np.iinfo(np.int64).max)
        most = np.full(hi - lo, -1, np.int64)
        for a in self.accesses:
            thread, first, stop = a.rows
            count = stop - first
            if len(thread) < count.max():  # few threads, many bytes
                for t, start, end in zip(thread, first - lo, stop - lo, strict=True):
                    np.minimum(least[start:end], t, out=least[start:end])
                    np.maximum(most[start:end], t, out=most[start:end])
                continue
            before = np.cumsum(count) - count
            at = np.arange(count.sum()) + np.repeat(first - lo - before, count)
            who = np.repeat(thread, count)
            np.minimum.at(least, at, who)
            np.maximum.at(most, at, who)
        return np.where(most < 0, -1, np.where(least == most, most, -2))

    @cached_property
    def by_thread(self) -> dict[int, list[Access]]:
        found: dict[int, list[Access]] = {}
        for a in self.each:
            found.setdefault(a.thread, []).append(a)
        return found

    def overlaps(self, other: Piece) -> bool:
        if self.arena != other.arena or "write" not in (self.mode, other.mode):
            return False
        return self.bounds[0] < other.bounds[1] and other.bounds[0] < self.bounds[1]

    def meets(self, other: Piece) -> Meeting | None:
        """Accesses of two threads that share a byte."""
        if not self.overlaps(other):
            return None
        lo, a, b = self._common(other)
        met = (a != -1) & (b != -1) & ((a != b) | (a == -2))
        if self is other:
            met = a == -2
        if not met.any():
            return None
        byte = lo + int(np.argmax(met))
        ones = [a for a in self.each if a.first <= byte < a.stop]
        twos = [a for a in other.each if a.first <= byte < a.stop]
        return next((p, q, byte) for p in ones for q in twos if p.thread != q.thread)

    def shares(self, other: Piece) -> bool:
        """Whether two accesses of one thread may share a byte."""
        if self is other:
            touched = sum(int((a.rows[2] - a.rows[1]).sum()) for a in self.accesses)
            return touched > int((self.owners != -1).sum())
        _, a, b = self._common(other)
        return bool(((a != -1) & (b != -1) & ((a == b) | (a == -2) | (b == -2))).any())

    def meets_itself(self, other: Piece) -> Meeting | None:
        """Accesses of one thread that share a byte."""
        if not self.overlaps(other):
            return None
        if not self.shares(other):
            return None
        for thread, ones in self.by_thread.items():
            for two in other.by_thread.get(thread, ()):
                for one in ones:
                    if max(one.first, two.first) < min(one.stop, two.stop):
                        return one, two, max(one.first, two.first)
        return None

    def _common(self, other: Piece) -> tuple[int, Any, Any]:
        lo, hi = max(self.bounds[0], other.bounds[0]), min(self.bounds[1], other.bounds[1])
        a = self.owners[lo - self.bounds[0] : hi - self.bounds[0]]
        b = other.owners[lo - other.bounds[0] : hi - other.bounds[0]]
        return lo, a, b


def pieces_of(traces: Iterable[Sequence[Access]], numbers: Iterator[int]) -> dict[int, list[Piece]]:
    """The pieces of one segment by the event they come before, of its threads' accesses."""
    found: dict[tuple[Any, ...], Piece] = {}
    at: dict[int, list[Piece]] = {}
    for accesses in traces:
        for a in accesses:
            key = (a.start, a.mode, a.arena, a.engine, a.load, a.use, a.node)
            if key not in found:
                found[key] = Piece(next(numbers), a.mode, a.arena, a.engine, a.load, a.use)
                at.setdefault(a.start, []).append(found[key])
            found[key].accesses.append(a)
    return at


def within(pieces: Sequence[Piece], follow: Callable[[Piece, Piece], bool]) -> Iterator[Conflict]:
    """A copy and another access of the thread that issues it, with no event between them. `follow`
    says whether two come in the order of their issue."""
    for copies in (p for p in pieces if p.engine):
        for others in pieces:
            if not copies.overlaps(others) or not copies.shares(others):
                continue
            unfenced = copies.proxy and not copies.tensor
            for thread, ones in copies.by_thread.items():
                for copy in ones:
                    for other in others.by_thread.get(thread, ()):
                        byte = max(copy.first, other.first)
                        if other is copy or byte >= min(copy.stop, other.stop):
                            continue
                        if other.position > copy.position:
                            if not follow(copies, others):
                                yield Conflict("copy", copy, other, byte)
                        elif not other.engine and other.mode == "write" and unfenced:
                            yield Conflict("fence", other, copy, byte)
