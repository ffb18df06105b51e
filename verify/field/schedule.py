"""Who runs when: groups of warps that wait for each other, and copies that come early or late.

Every schedule here is one that hardware may choose, so a correct program leaves the same values on
each; a barrier, a wait or a fence that is missing shows as another value, or as a wait without end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .memory import FaultError


@dataclass(frozen=True)
class Schedule:
    """`ahead`: no warp in particular, or whether the first or last one runs ahead of the others.
    Asynchronous copies and multiplies happen as `late` as waits let them, or at once; so does what
    asynchronous units see of the writes of threads, which fences end."""

    ahead: Literal["", "first", "last"] = ""
    late: bool = True


TOGETHER = Schedule()
EVERY = (TOGETHER, *(Schedule(who, late) for late in (True, False) for who in ("first", "last")))


class DeadlockError(FaultError):
    """Threads wait for what never comes."""


def run_all(
    programs: Sequence[Iterator[Callable[[], bool]]],
    coming: list[Callable[[], None]],
    schedule: Schedule,
) -> None:
    """Runs programs to their ends. They yield what they wait for; an event of `coming` happens
    when nobody can go on without one."""
    order = list(range(len(programs)))
    if schedule.ahead == "last":
        order.reverse()
    waits: dict[int, Callable[[], bool]] = dict.fromkeys(order, lambda: True)

    def advance() -> bool:
        moved = False
        for number in order:
            if number not in waits or not waits[number]():
                continue
            moved = True
            found = next(programs[number], None)
            if found is None:
                del waits[number]
            else:
                waits[number] = found
            if schedule.ahead:  # and the one that is ahead goes on if it can
                return True
        return moved

    while waits:
        if advance():
            continue
        if not coming:
            raise DeadlockError("threads wait for ever")
        coming.pop(0 if schedule.ahead != "last" else -1)()
    if coming:
        raise FaultError("a block ends before its copies do")


class Groups:
    """Asynchronous operations of a thread, in groups: they happen when they must, or at once."""

    def __init__(self, late: bool) -> None:
        self.late = late
        self.groups: list[list[Callable[[], None]]] = [[]]  # the last is not committed

    def add(self, happens: Callable[[], None]) -> None:
        if self.late:
            self.groups[-1].append(happens)
        else:
            happens()

    def commit(self) -> None:
        self.groups.append([])

    def wait(self, pending: int) -> None:
        """Ends all but the newest `pending` committed groups."""
        while len(self.groups) > pending + 1:
            for happens in self.groups.pop(0):
                happens()

    def taken(self) -> list[Callable[[], None]]:
        """All operations under way, which are no longer in groups."""
        everything = [happens for group in self.groups for happens in group]
        self.groups = [[]]
        return everything


class Meeting:
    """Where `count` threads of every block meet, again and again."""

    def __init__(self, blocks: int, count: int) -> None:
        self.count = count
        self.arrived = np.zeros(blocks, np.int64)
        self.rounds = np.zeros(blocks, np.int64)

    def arrive(self, blocks: Any, done: Callable[[Any], None] = lambda _: None) -> Any:
        """Threads of `blocks` arrive, one for each entry. Gives what they wait for; `done` is told
        in which blocks all have arrived."""
        mine = np.bincount(blocks, minlength=len(self.arrived))
        self.arrived += mine
        if (self.arrived > self.count).any():
            most = int(self.arrived.max())
            raise FaultError(f"{most} threads at a barrier of {self.count}")
        here = np.flatnonzero(mine)
        wanted = self.rounds[here] + 1
        full = np.flatnonzero(self.arrived == self.count)
        done(full)
        self.arrived[full] = 0
        self.rounds[full] += 1
        return lambda: bool((self.rounds[here] >= wanted).all())


class Meetings:
    """Every place where threads of a block meet, by name and number of threads."""

    def __init__(self, blocks: int, threads: int) -> None:
        self.blocks, self.threads = blocks, threads
        self._known: dict[Any, Meeting] = {}

    def of(self, name: Any, count: int) -> Meeting:
        return self._known.setdefault((name, count), Meeting(self.blocks, count))


class Mbarriers:
    """An array of mbarriers, of every block."""

    def __init__(self, name: str, blocks: int, count: int) -> None:
        self.name = name
        shape = (blocks, count)
        self.count, self.pending, self.bytes, self.phase = (
            np.zeros(shape, np.int64) for _ in range(4)
        )

    def _places(self, block: Any, slot: Any, *, fresh: bool = False) -> tuple[Any, Any]:
        if ((slot < 0) | (slot >= self.count.shape[1])).any():
            raise FaultError(f"{self.name}: an mbarrier outside its array")
        if not fresh and (self.count[block, slot] == 0).any():
            raise FaultError(f"{self.name}: an mbarrier used before its initialization")
        return block, slot

    def init(self, block: Any, slot: Any, count: Any) -> None:
        at = self._places(block, slot, fresh=True)
        if (np.asarray(count) < 1).any():
            raise FaultError(f"{self.name}: an mbarrier for {int(np.min(count))} arrivals")
        self.count[at] = self.pending[at] = count
        self.bytes[at] = self.phase[at] = 0

    def expect(self, block: Any, slot: Any, size: Any) -> None:
        np.add.at(self.bytes, self._places(block, slot), size)

    def complete(self, block: Any, slot: Any, size: Any) -> None:
        self.expect(block, slot, -size)
        self._close(self._places(block, slot))

    def arrive(self, block: Any, slot: Any) -> None:
        keys, counts = np.unique(np.stack([block, slot]), axis=1, return_counts=True)
        at = self._places(*keys)
        while (counts > 0).any():
            now = np.minimum(counts, self.pending[at])
            if ((now == 0) & (counts > 0)).any():
                raise FaultError(f"{self.name}: an arrival more than the mbarrier counts")
            self.pending[at] -= now
            counts = counts - now
            self._close(at)

    def _close(self, at: tuple[Any, Any]) -> None:
        """Ends the phases that nothing is missing from."""
        over = (self.pending[at] == 0) & (self.bytes[at] == 0)
        block, slot = at[0][over], at[1][over]
        # Several threads may have completed one: it ends once.
        block, slot = np.unique(np.stack([block, slot]), axis=1)
        self.phase[block, slot] += 1
        self.pending[block, slot] = self.count[block, slot]

    def passed(self, block: Any, slot: Any, parity: Any) -> Callable[[], bool]:
        """Whether the phases of this parity are over: the current ones, or those before."""
        at = self._places(block, slot)
        wanted = np.where((self.phase[at] & 1) == (parity & 1), self.phase[at] + 1, 0)
        return lambda: bool((self.phase[at] >= wanted).all())
