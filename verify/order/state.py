"""What a run of a block is made of: its agents, what they know, its barriers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .conflicts import Piece
from .plan import Agent
from .trace import Key

Place = tuple[int, int, int]  # of an event: thread, segment, number
Path = tuple[tuple[str, int], ...]  # open loops of unknown length, and which iteration
FAR = 3  # phases by which no thread lags that waits rightly
ENGINES = ("cp.async", "wgmma", "store")


@dataclass(frozen=True)
class Fault:
    """What is wrong: a sentence, and the events it is about."""

    message: str
    at: tuple[Place, ...] = ()


@dataclass(frozen=True, eq=False)
class Clock:
    """Steps of each agent and phases of each barrier that are known; `fenced` of them through a
    fence between ordinary and asynchronous accesses. Step 2n comes to event n, 2n + 1 leaves it.
    Agents with tensor memory have two more places each: the step up to which the multiplies and
    copies they issued are complete, and that up to which their loads and stores are known to those
    behind a fence of tcgen05."""

    known: Any
    fenced: Any

    def join(self, other: Clock) -> Clock:
        return Clock(np.maximum(self.known, other.known), np.maximum(self.fenced, other.fenced))

    def at(self, place: int, value: int) -> Clock:
        known = self.known.copy()
        known[place] = max(known[place], value)
        return Clock(known, self.fenced)


@dataclass(frozen=True)
class Level:
    """An open loop: its words, the iteration, and which loop of those words it is: around which
    iterations, and how many came before it there."""

    text: str
    at: int
    loop: tuple[str, Path, int]


@dataclass(frozen=True)
class Entry:
    """A piece that an agent did; it ended with step `end` of the agent, or with phase `phases` of
    the barrier at `place` (step `phases` of the unit at `place`), or it has not ended (None)."""

    agent: int
    piece: Piece
    end: int | None = None
    place: int | None = None
    phases: int = 0

    @property
    def open(self) -> bool:
        return self.end is None and self.place is None


@dataclass(eq=False)
class Actor:
    """Where an agent is: before event `at` of a segment, with `done` events behind it. `came` says
    that it has come to that event, `phase` which meeting it waits for, `passed` what it learns
    there. `uses` counts the loops of some words it has come to in the open iterations. `seen` is
    what it knew at its last tcgen05.fence::after_thread_sync."""

    who: Agent
    clock: Clock
    seen: Any
    segment: int = 0
    at: int = 0
    done: int = 0
    came: bool = False
    asked: bool = False
    touched: bool = False
    finished: bool = False
    phase: int = 0
    passed: Clock | None = None
    levels: list[Level] = field(default_factory=list)
    uses: dict[tuple[str, Path], int] = field(default_factory=dict)
    issued: dict[str, list[int]] = field(default_factory=lambda: {e: [] for e in ENGINES})
    groups: dict[str, list[list[int]]] = field(default_factory=lambda: {e: [] for e in ENGINES})

    @property
    def path(self) -> Path:
        return tuple((level.text, level.at) for level in self.levels)

    def copied(self) -> Actor:
        other = copy.copy(self)
        other.levels, other.uses = list(self.levels), dict(self.uses)
        other.issued = {e: list(ids) for e, ids in self.issued.items()}
        other.groups = {e: [list(g) for g in groups] for e, groups in self.groups.items()}
        return other


@dataclass(eq=False)
class Barrier:
    """A barrier as it stands. `clock` is of what came to this phase, `last` of the one before;
    `expects` are the expectations of this phase that no arrival knows, `waits` those who wait or
    waited for the phase before, by their step after it."""

    key: Key
    place: int
    count: int
    waiting: int
    bytes: int = 0
    complete: int = 0
    clock: Clock | None = None
    last: Clock | None = None
    expects: tuple[tuple[int, int, Place], ...] = ()
    waits: tuple[tuple[int, int, int, Place], ...] = ()
    there: tuple[int, ...] = ()  # agents at a barrier of the block that is not complete
    meeting: bool = False  # of lanes, which learn nothing of each other's accesses

    @property
    def name(self) -> str:
        return f"{self.key[0]}[{self.key[1]}]" if self.key[0] else f"barrier {self.key[1]}"


@dataclass(frozen=True)
class Answer:
    """A choice about what is not known: that a loop has more than `more` iterations, that it has
    `exactly` so many, or what a condition is."""

    about: Any
    more: int | None = None
    exactly: int | None = None
    holds: bool | None = None
    loose: bool = False
