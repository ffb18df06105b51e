"""Which bytes of shared memory an access may touch, and by which threads, by enumeration.

Every thread and every iteration of the inner loops is evaluated; an iteration of a followed loop
counts modulo the period with which it occurs in the index (the ring of a pipeline), and so does the
index of the block, which both have (a rank in its cluster). Conditions that
cannot be enumerated are dropped, so a footprint is never too small, and what it shows apart needs
no solver.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import terms
from .facts import Access
from .terms import Symbol, Term, apply, const, evaluate, mul, poly, var
from .windows import Meeting, Who

_MOST_POINTS = 1 << 20
_MOST_ITERATIONS = 4096
_MOST_PLACES = 64
_WARP = 32


Place = tuple[tuple[Symbol, int], ...]


@dataclass(frozen=True, eq=False)
class Stamp:
    """Per byte from `start` on, the least and the greatest thread touching it (none: lo > hi).

    `twice` says that some byte is touched more than once.
    """

    start: int
    lo: np.ndarray
    hi: np.ndarray
    twice: bool

    @property
    def stop(self) -> int:
        return self.start + len(self.lo)

    def meets(self, other: Stamp, who: Who) -> bool:
        """Whether two threads that `who` does not rule out share a byte."""
        if who == "itself":
            return self.twice
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        if start >= stop:
            return False
        mine, theirs = (slice(start - s.start, stop - s.start) for s in (self, other))
        a, b = (self.lo[mine], self.hi[mine]), (other.lo[theirs], other.hi[theirs])
        both = (a[0] <= a[1]) & (b[0] <= b[1])
        if who == "any":
            return bool(both.any())
        if who == "warps":
            a, b = ((lo // _WARP, hi // _WARP) for lo, hi in (a, b))
        return bool((both & ~((a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0]))).any())


def byte_range(access: Access) -> tuple[Term, Term]:
    """First byte in the arena and the one after the last; parts of a byte count as all of it."""
    bits, start = access.buffer.bits, const(access.buffer.start)
    if bits % 8 == 0:
        first = terms.add(mul(access.index, const(bits // 8)), start)
        return first, terms.add(first, const(access.lanes * bits // 8))
    bit = mul(access.index, const(bits))
    last = terms.add(bit, const(access.lanes * bits - 1))
    first, stop = (apply("div", t, const(8)) for t in (bit, last))
    return terms.add(first, start), terms.add(stop, const(access.buffer.start + 1))


class Footprints:
    """Footprints of one launch, each computed once."""

    def __init__(
        self, threads: Iterable[Symbol], followed: set[Symbol], blocks: Iterable[Symbol] = ()
    ) -> None:
        """`blocks` are indices of the block, the same for both accesses of a meeting."""
        self.followed = followed
        self._threads = list(threads)
        self._blocks = list(blocks)
        self._stamps: dict[tuple[Access, tuple[int, ...], Place], Stamp | None] = {}
        self._periods: dict[tuple[Access, Symbol], int] = {}

    def apart(self, meeting: Meeting) -> bool:
        """Whether enumeration shows that the two accesses never meet."""
        iterations = self._iterations(meeting, _MOST_ITERATIONS)
        if iterations is None:
            iterations = self._iterations(meeting, 0)
        if iterations is None:
            return False
        for place, (one, two) in itertools.product(self._places(meeting), iterations):
            a, b = self.stamp(meeting.first, one, place), self.stamp(meeting.second, two, place)
            if a is None or b is None or a.meets(b, meeting.who):
                return False
        return True

    def stamp(self, access: Access, iteration: tuple[int, ...], place: Place = ()) -> Stamp | None:
        """Who touches what at one iteration of the followed loops, in a block at `place`; None if
        that is not known."""
        mentioned = access.index.symbols.union(*(c.symbols for c in access.context.path))
        key = (access, iteration, tuple(p for p in place if p[0] in mentioned))
        if key not in self._stamps:
            self._stamps[key] = self._stamp(*key)
        return self._stamps[key]

    def _places(self, meeting: Meeting) -> list[Place]:
        """Block indices that speak for all, as far as the two indices hang on them."""
        both = (meeting.first, meeting.second)
        chosen = [s for s in self._blocks if any(s in a.index.symbols for a in both)]
        periods = [math.lcm(*(self._period(a, s) for a in both)) for s in chosen]
        if not 0 < math.prod(periods) <= _MOST_PLACES:
            return [()]
        residues = itertools.product(*map(range, periods))
        return [tuple(zip(chosen, each, strict=True)) for each in residues]

    def _loops(self, access: Access) -> list[Symbol]:
        return [s for s in access.context.loops if s in self.followed]

    def _iterations(
        self, meeting: Meeting, most: int
    ) -> set[tuple[tuple[int, ...], tuple[int, ...]]] | None:
        """Every pair of iterations at which the two may meet, modulo the periods.

        A loop of up to `most` iterations is enumerated, any other by one period. None if there are
        too many, or no period.
        """
        sides = [(meeting.first, s, var(s)) for s in self._loops(meeting.first)]
        split = len(sides)
        sides += [(meeting.second, s, meeting.where[s]) for s in self._loops(meeting.second)]
        periods = [self._period(access, s) for access, s, _ in sides]
        free = sorted({s for _, _, at in sides for s in at.symbols}, key=lambda s: s.name)
        point: dict[Symbol, Any] = {}
        exact = set()
        for i, s in enumerate(free):
            shape = [1] * len(free)
            shape[i] = -1
            # Loops that do not go together with this one may have no period.
            with_it = [(at, n) for (_, _, at), n in zip(sides, periods, strict=True)
                       if s in at.symbols]  # fmt: skip
            common = math.lcm(*(n for _, n in with_it))
            span = s.hi.value - s.lo.value if s.lo.is_const and s.hi.is_const else None
            if span is not None and span < most:
                exact.add(s)
                point[s] = np.arange(s.lo.value, s.hi.value + 1).reshape(shape)
            elif common and all(_repeats(at, common, s) for at, _ in with_it):
                point[s] = np.arange(common).reshape(shape)
            else:
                return None
        if math.prod(v.size for v in point.values()) > _MOST_ITERATIONS:
            return None
        grid = np.broadcast_shapes(*(v.shape for v in point.values()))
        keep: Any = np.ones(grid, bool)
        for c in (*meeting.given, *meeting.first.context.path):
            if c.symbols <= exact and not any(True for _ in c.loads()):
                keep = keep & np.asarray(evaluate(c, point)).astype(bool)
        columns = []
        for (_, _, at), repeats in zip(sides, periods, strict=True):
            column = np.broadcast_to(evaluate(at, point), grid)[keep]
            columns.append(column % repeats if repeats else column)
        if not columns:
            return {((), ())} if keep.any() else set()
        rows = set(zip(*(c.tolist() for c in columns), strict=True))
        return {(row[:split], row[split:]) for row in rows}

    def _period(self, access: Access, s: Symbol) -> int:
        """After how many iterations of `s` the footprint repeats; 0 if it does not."""
        key = (access, s)
        if key not in self._periods:
            inner = [t for t in access.context.loops if t not in self.followed]
            found = [
                period(e, s) for e in (access.index, *(e for t in inner for e in (t.lo, t.hi)))
            ]
            # A condition without a period is dropped.
            found += filter(None, (period(c, s) for c in access.context.path))
            self._periods[key] = math.lcm(*found)
        return self._periods[key]

    def _stamp(self, access: Access, iteration: tuple[int, ...], place: Place) -> Stamp | None:
        point: dict[Symbol, Any] = dict(zip(self._loops(access), iteration, strict=True))
        point |= place
        counted = list(point)
        inner = [s for s in access.context.loops if s not in self.followed]
        axes = [*self._threads, *inner]
        total = 1
        for i, s in enumerate(axes):
            if not (s.lo.symbols | s.hi.symbols) <= point.keys():
                return None
            lo = int(np.min(evaluate(s.lo, point)))
            hi = int(np.max(evaluate(s.hi, point)))
            total *= max(0, hi - lo + 1)
            if total > _MOST_POINTS:
                return None
            shape = [1] * len(axes)
            shape[i] = -1
            point[s] = np.arange(lo, hi + 1).reshape(shape)
        grid = np.broadcast_shapes(*(point[s].shape for s in axes))
        first, stop = byte_range(access)
        if not first.symbols <= point.keys() or any(True for _ in first.loads()):
            return None
        keep: Any = True
        for s in inner:
            keep = keep & (point[s] >= evaluate(s.lo, point)) & (point[s] <= evaluate(s.hi, point))
        for c in access.context.path:
            certain = c.symbols <= point.keys() and not any(True for _ in c.loads())
            if certain and all(period(c, s) for s in counted):
                keep = keep & np.asarray(evaluate(c, point)).astype(bool)
        keep = np.broadcast_to(keep, grid)
        thread: Any = 0
        for s in reversed(self._threads):
            thread = thread * (s.hi.value + 1) + point[s]
        return _stamped(
            np.broadcast_to(evaluate(first, point), grid)[keep],
            np.broadcast_to(evaluate(stop, point), grid)[keep],
            np.broadcast_to(thread, grid)[keep],
        )


def _stamped(first: np.ndarray, stop: np.ndarray, thread: np.ndarray) -> Stamp:
    if not len(first):
        return Stamp(0, np.zeros(0, np.int32), np.zeros(0, np.int32), False)
    start, end = int(first.min()), int(stop.max())
    lo = np.full(end - start, np.iinfo(np.int32).max, np.int32)
    hi = np.full(end - start, -1, np.int32)
    count = 0
    for i in range(int((stop - first).max())):
        inside = first + i < stop
        at, who = (first + i - start)[inside], thread[inside].astype(np.int32)
        np.minimum.at(lo, at, who)
        np.maximum.at(hi, at, who)
        count += len(at)
    return Stamp(start, lo, hi, count > int((lo <= hi).sum()))


def _repeats(at: Term, common: int, s: Symbol) -> bool:
    """Whether `at`, modulo `common`, is the same after `common` steps of `s`."""
    found = period(apply("mod", at, const(common)), s)
    return found > 0 and common % found == 0


def period(term: Term, s: Symbol) -> int:
    """A number of steps of `s` after which the term repeats; 0 if none is seen, 1 without `s`."""
    if s not in term.symbols:
        return 1
    if term.op == "mod" and term.args[1].is_const and term.args[1].value > 0:
        form, n = poly(term.args[0]), term.args[1].value
        found = 1
        for monomial, c in form.terms.items():
            atoms = [form.atoms[a] for a in monomial]
            if not any(s in a.symbols for a in atoms):
                continue
            if atoms == [var(s)]:
                found = math.lcm(found, n // math.gcd(c, n))
            else:
                inner = [period(a, s) for a in atoms]
                if 0 in inner:
                    return 0
                found = math.lcm(found, *inner)
        return found
    if term.op == "var":
        return 0
    inner = [period(a, s) for a in term.args]
    return 0 if 0 in inner else math.lcm(*inner)
