"""What the threads of a block may do, as one machine: classes, who stands for them, their pieces.

Threads of a class have the same graph of segments, with the same events and questions. One thread
of it and another that counts for all the rest are followed: the agents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tileproof.verify.tensor import UNIT

from .conflicts import Meeting, Piece, pieces_of
from .control import Ask
from .tensor import assumed, pipelined
from .trace import Event, Key, Trace

_WITHOUT_KEY = ("fence", "before", "after", "point", "commit", "drain")


def _only_waits(e: Event) -> bool:
    """Whether nobody needs a step of a thread. All lanes take part in a multiply of their warp."""
    own = e.kind in ("commit", "drain") and e.engine != "wgmma"
    return own or e.kind in ("wait", *_WITHOUT_KEY[:4])


@dataclass(frozen=True)
class Agent:
    """A thread that is followed; it stands for `weight` threads of its class."""

    number: int
    thread: int
    cls: int
    weight: int
    alone: bool


@dataclass(frozen=True)
class Part:
    """A segment of a class. `texts` are those of the questions from here on, `idle_from` is the
    first event from which on nothing is done that others need, `idle_waits` are the mbarriers that
    are waited for from there or from such a place in a later segment. `passive` are the waits after
    which nothing of that kind comes before a barrier of the block."""

    events: tuple[Event, ...]
    pieces: dict[int, list[Piece]]
    ask: Ask | None
    after: tuple[int, ...]
    texts: frozenset[str]
    idle_from: int
    idle_waits: frozenset[Key]
    passive: frozenset[int]


class Plan:
    """The program of a block. `possible` says whether a loop may have so many iterations. A clock
    has `steps` places of steps, then those of barriers; `units` are the first of the two that an
    agent with tensor memory has besides its own."""

    def __init__(
        self, traces: Mapping[int, Trace], possible: Callable[[str, int], bool] = lambda t, n: True
    ) -> None:
        self.traces, self.possible = traces, possible
        classes: dict[tuple[object, ...], list[int]] = {}
        alike: dict[int, tuple[object, ...]] = {}
        for thread, trace in traces.items():
            if id(trace) not in alike:
                parts = ((tuple(s.events), s.ask, tuple(s.after)) for s in trace.segments)
                alike[id(trace)] = tuple(parts)
            classes.setdefault(alike[id(trace)], []).append(thread)
        self.agents: list[Agent] = []
        self.classes = {t: c for c, threads in enumerate(classes.values()) for t in threads}
        self.parts: list[list[Part]] = []
        numbers = itertools.count()
        for cls, threads in enumerate(classes.values()):
            self.parts.append(self._parts(threads, numbers))
            for thread, weight in [(threads[0], 1), (threads[-1], len(threads) - 1)][
                : len(threads)
            ]:
                number = len(self.agents)
                self.agents.append(Agent(number, thread, cls, weight, len(threads) == 1))
        events = [e for parts in self.parts for p in parts for e in p.events]
        keys = sorted({e.key for e in events if e.kind not in _WITHOUT_KEY})
        uses = [
            any(q.tensor or q.engine == UNIT for p in parts for at in p.pieces.values() for q in at)
            for parts in self.parts
        ]
        holders = [a.number for a in self.agents if uses[a.cls]]
        self.units = {n: len(self.agents) + 2 * i for i, n in enumerate(holders)}
        self.steps = len(self.agents) + 2 * len(holders)
        self.size = self.steps + len(keys)
        self.place = {key: self.steps + i for i, key in enumerate(keys)}
        self.open = any(p.ask is not None for parts in self.parts for p in parts)
        self.assumed = False  # whether the order rests on what the PTX ISA does not list
        self._met: dict[tuple[int, int, bool], Meeting | None] = {}
        self._follow: dict[tuple[int, int], bool] = {}

    def _parts(self, threads: list[int], numbers: itertools.count[int]) -> list[Part]:
        segments = self.traces[threads[0]].segments
        traces = {id(t): t for t in (self.traces[n] for n in threads)}.values()
        pieces = [
            pieces_of([t.segments[i].accesses for t in traces], numbers)
            for i in range(len(segments))
        ]
        # What may still come after each segment: until nothing is added any more.
        quiet = [not p and all(_only_waits(e) for e in s.events)
                 for p, s in zip(pieces, segments, strict=True)]  # fmt: skip
        texts = [{s.ask.text} if s.ask else set() for s in segments]
        begins = [_idle_from(s.events, p) for s, p in zip(segments, pieces, strict=True)]
        meets = [_until_meeting(s.events, p) for s, p in zip(segments, pieces, strict=True)]
        leads = [m is not None for m in meets]  # from its beginning to a meeting, or to the end
        while True:
            further = [m is not None and (m < len(s.events) or all(leads[n] for n in s.after))
                       for m, s in zip(meets, segments, strict=True)]  # fmt: skip
            if further == leads:
                break
            leads = further
        while True:
            calm = [all(quiet[n] for n in s.after) for s in segments]
            still = [q and c for q, c in zip(quiet, calm, strict=True)]
            more = [
                t.union(*(texts[n] for n in s.after)) for t, s in zip(texts, segments, strict=True)
            ]
            if still == quiet and more == texts:
                break
            quiet, texts = still, more
        idle = [b if c else len(s.events) + 1
                for b, c, s in zip(begins, calm, segments, strict=True)]  # fmt: skip
        waits = [{e.key for e in s.events[i:] if e.kind == "wait"}
                 for s, i in zip(segments, idle, strict=True)]  # fmt: skip
        while True:
            more_waits = [w.union(*(waits[n] for n in s.after))
                          for w, s in zip(waits, segments, strict=True)]  # fmt: skip
            if more_waits == waits:
                break
            waits = more_waits
        return [
            Part(tuple(s.events), p, s.ask, tuple(s.after), frozenset(t), i, frozenset(w),
                 frozenset(_passive(s.events, p, all(leads[n] for n in s.after))))
            for s, p, t, i, w in zip(segments, pieces, texts, idle, waits, strict=True)
        ]  # fmt: skip

    def met(self, one: Piece, two: Piece, same: bool) -> Meeting | None:
        """Accesses of two threads, or of the same one, that share a byte."""
        key = (one.number, two.number, same)
        if key not in self._met:
            self._met[key] = one.meets_itself(two) if same else one.meets(two)
        return self._met[key]

    def follow(self, one: Piece, two: Piece) -> bool:
        """Whether accesses of tensor memory by one thread come in the order of their issue."""
        key = (one.number, two.number)
        if key not in self._follow:
            self._follow[key] = pipelined(one, two)
        self.assumed |= assumed(one, two) and self.met(one, two, True) is not None
        return self._follow[key]


def _idle_from(events: list[Event], pieces: Mapping[int, list[Piece]]) -> int:
    """The first event from which on a segment only waits, without touching anything later."""
    n = len(events)
    while n and _only_waits(events[n - 1]) and not any(at >= n for at in pieces):
        n -= 1
    return n


def _until_meeting(
    events: list[Event], pieces: Mapping[int, list[Piece]], start: int = 0
) -> int | None:
    """The next barrier of the block, or the end of the segment, if only waits come before."""
    for n in range(start, len(events) + 1):
        if n in pieces and (n > start or start == 0):
            return None
        if n == len(events) or events[n].kind == "barrier":
            return n
        if not _only_waits(events[n]):
            return None
    return None


def _passive(events: list[Event], pieces: Mapping[int, list[Piece]], leads: bool) -> Iterator[int]:
    """The waits of a segment after which only waits come until a meeting."""
    for n, e in enumerate(events):
        if e.kind == "wait":
            met = _until_meeting(events, pieces, n)
            if met is not None and (met < len(events) or leads):
                yield n
