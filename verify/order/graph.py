"""What comes before what in a block: one run of its threads, and why every other run is alike.

Threads that synchronise alike form a class, of which two stand for all. They are run in turns until
all end. Each step has a clock: of every thread followed, how far it is known to have come, and of
every barrier, how many phases are known to be complete. The order found this way is that of every
run, by induction, if
  * who arrives at a phase, expects bytes or starts a copy for it knows all earlier phases complete;
  * bytes are expected before some arrival at their phase, so that it cannot end without them;
  * a wait by parity can return in one phase only: the earliest one it may find has that parity or
    the next has, and no later phase ends without the thread that waits.
A thread that waits, and does nothing any more that others need, is taken to see each phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .trace import Event, Key, Trace


@dataclass(frozen=True)
class Fault:
    """What is wrong: a sentence, the threads it is about and their numbers of events."""

    message: str
    at: tuple[tuple[int, int], ...] = ()


@dataclass(eq=False)
class Agent:
    """A thread that is followed; it stands for `weight` threads of its class."""

    number: int
    thread: int
    cls: int
    weight: int
    events: list[Event]
    done: int = 0
    clocks: list[Clock] = field(default_factory=list)  # after 0, 1, … events
    before: list[Clock] = field(default_factory=list)  # when it comes to event 0, 1, …
    known: dict[int, tuple[Key, int]] = field(default_factory=dict)  # wait → phases it needs
    phase: dict[int, int] = field(default_factory=dict)  # event → phase of its barrier


@dataclass(frozen=True, eq=False)
class Clock:
    """Steps of each agent and phases of each barrier that are known; `fenced` of them through a
    fence between ordinary and asynchronous accesses. Step 2n comes to event n, 2n + 1 leaves it."""

    known: Any
    fenced: Any

    def join(self, other: Clock) -> Clock:
        return Clock(np.maximum(self.known, other.known), np.maximum(self.fenced, other.fenced))

    def at(self, place: int, value: int) -> Clock:
        known = self.known.copy()
        known[place] = max(known[place], value)
        return Clock(known, self.fenced)


@dataclass(eq=False)
class Barrier:
    """A barrier as it stands in the run."""

    place: int
    count: int
    waiting: int
    bytes: int = 0
    complete: int = 0
    clock: Clock | None = None  # of what came to this phase
    phases: list[Clock] = field(default_factory=list)
    arrivals: list[tuple[Agent, int]] = field(default_factory=list)
    expects: list[tuple[Agent, int, list[tuple[Agent, int]]]] = field(default_factory=list)


class Graph:
    """The classes of a block's threads and the order of their steps; see the module."""

    def __init__(self, traces: Mapping[int, Trace]) -> None:
        self.traces, self.faults = traces, list[Fault]()
        classes: dict[tuple[Event, ...], list[int]] = {}
        for thread, trace in traces.items():
            classes.setdefault(tuple(trace.events), []).append(thread)
        self.members = list(classes.values())
        self.agents: list[Agent] = []
        self.first: list[tuple[Agent, Agent | None]] = []
        for cls, (events, threads) in enumerate(classes.items()):
            own = [
                Agent(len(self.agents) + i, thread, cls, weight, list(events))
                for i, (thread, weight) in enumerate(
                    [(threads[0], 1), (threads[-1], len(threads) - 1)][: len(threads)]
                )
            ]
            self.agents += own
            self.first.append((own[0], own[1] if len(own) > 1 else None))
        keys = sorted({e.key for a in self.agents for e in a.events if e.kind != "fence"})
        self.size = len(self.agents) + len(keys)
        self.place = {key: len(self.agents) + i for i, key in enumerate(keys)}
        self.barriers: dict[Key, Barrier] = {}
        self._run()
        if not self.faults:
            self._check()

    # -- the run -----------------------------------------------------------------------------

    def _run(self) -> None:
        nothing = np.full(self.size, -1, np.int64)
        for a in self.agents:
            a.clocks.append(Clock(nothing, nothing))
        moved = True
        while moved and not self.faults:
            moved = False
            for a in self.agents:
                while a.done < len(a.events) and not self.faults and self._step(a):
                    moved = True
        stuck = [a for a in self.agents if a.done < len(a.events)]
        if stuck and not self.faults:
            waits = "; ".join(self._waits(a) for a in stuck[:4])
            self.faults.append(Fault(f"no thread can go on: {waits}", self._places(stuck)))

    def _waits(self, a: Agent) -> str:
        e = a.events[a.done]
        name = _named(e.key)
        if e.kind == "barrier":
            b = self.barriers[e.key]
            return f"thread {a.thread} at {name}, which {b.waiting} of {b.count} threads miss"
        b = self.barriers[e.key]
        lacks = f"{b.waiting} of {b.count} arrivals" if b.waiting else f"{b.bytes} bytes"
        return (
            f"thread {a.thread} waits for parity {e.amount} of {name}, whose phase {b.complete}"
            f" lacks {lacks}"
        )

    def _places(self, agents: list[Agent]) -> tuple[tuple[int, int], ...]:
        return tuple((a.thread, a.done) for a in agents[:4])

    def _step(self, a: Agent) -> bool:
        """Take the next event; False if it has to wait."""
        n, e = a.done, a.events[a.done]
        if len(a.before) == n:
            a.before.append(a.clocks[n].at(a.number, 2 * n))
            if e.kind == "barrier":
                self._come(a, n, e)
        clock: Clock | None = a.before[n]
        if e.kind == "init":
            self._init(a, n, e)
            assert clock is not None
            clock = clock.at(self.place[e.key], 0)
        elif e.kind == "fence":
            assert clock is not None
            clock = Clock(clock.known, np.maximum(clock.fenced, clock.known))
        elif e.kind == "barrier":
            clock = self._passed(a, n, e)
        elif e.kind == "wait":
            clock = self._waited(a, n, e)
        else:
            self._signal(a, n, e)
        if clock is None or self.faults:
            return False
        a.clocks.append(clock.at(a.number, 2 * n + 1))
        a.done += 1
        return True

    def _init(self, a: Agent, n: int, e: Event) -> None:
        if e.key in self.barriers or a.weight != 1 or self.first[a.cls][1] is not None:
            self.faults.append(Fault(f"{_named(e.key)} is initialised twice", ((a.thread, n),)))
            return
        self.barriers[e.key] = Barrier(self.place[e.key], e.amount, e.amount)

    def _ready(self, a: Agent, n: int, e: Event) -> Barrier | None:
        b = self.barriers.get(e.key)
        if b is None or a.before[n].known[b.place] < 0:
            text = f"thread {a.thread} uses {_named(e.key)} before it is known to be initialised"
            self.faults.append(Fault(text, ((a.thread, n),)))
            return None
        return b

    def _signal(self, a: Agent, n: int, e: Event) -> None:
        """An arrival, bytes expected, or a copy, which completes at once."""
        b = self._ready(a, n, e)
        if b is None:
            return
        a.phase[n] = b.complete
        if a.before[n].known[b.place] != b.complete:
            known = a.before[n].known[b.place]
            text = (
                f"thread {a.thread} comes to phase {b.complete} of {_named(e.key)} and knows only"
                f" {known} to be complete: it may come too early"
            )
            self.faults.append(Fault(text, ((a.thread, n),)))
            return
        b.clock = a.before[n] if b.clock is None else b.clock.join(a.before[n])
        if e.kind == "load":
            b.bytes -= e.amount * a.weight
        else:
            b.bytes += e.amount * a.weight
        if e.kind == "expect":
            b.expects.append((a, n, b.arrivals))
        if e.kind == "arrive":
            b.waiting -= a.weight
            b.arrivals.append((a, n))
            if b.waiting < 0:
                text = f"more than {b.count} arrivals at phase {b.complete} of {_named(e.key)}"
                self.faults.append(Fault(text, ((a.thread, n),)))
        if b.waiting == 0 and b.bytes == 0:
            self._complete(b)

    def _complete(self, b: Barrier) -> None:
        assert b.clock is not None
        clock = b.clock if not b.phases else b.clock.join(b.phases[-1])
        b.complete += 1
        b.phases.append(clock.at(b.place, b.complete))
        b.waiting, b.clock, b.arrivals = b.count, None, []

    def _come(self, a: Agent, n: int, e: Event) -> None:
        b = self.barriers.setdefault(e.key, Barrier(self.place[e.key], e.amount, e.amount))
        a.phase[n] = b.complete
        if b.count != e.amount:
            text = f"{_named(e.key)} is met with {b.count} and with {e.amount} threads"
            self.faults.append(Fault(text, ((a.thread, n),)))
            return
        if max(0, a.before[n].known[b.place]) != b.complete:
            text = f"thread {a.thread} may come to {_named(e.key)} while others still wait there"
            self.faults.append(Fault(text, ((a.thread, n),)))
            return
        b.clock = a.before[n] if b.clock is None else b.clock.join(a.before[n])
        b.waiting -= a.weight
        if b.waiting < 0:
            text = f"more than {b.count} threads come to {_named(e.key)}"
            self.faults.append(Fault(text, ((a.thread, n),)))
        elif b.waiting == 0:
            self._complete(b)

    def _passed(self, a: Agent, n: int, e: Event) -> Clock | None:
        b, phase = self.barriers[e.key], a.phase.get(n, 0)
        return a.before[n].join(b.phases[phase]) if b.complete > phase else None

    def _waited(self, a: Agent, n: int, e: Event) -> Clock | None:
        """Returns once the newest complete phase has the parity; before the first it is odd."""
        b = self._ready(a, n, e)
        if b is None:
            return None
        known = int(a.before[n].known[b.place])
        needs = known if (known - 1) & 1 == e.amount & 1 else known + 1
        a.known[n] = (e.key, needs)
        if b.complete < needs:
            return None
        return a.before[n].join(b.phases[needs - 1]) if needs else a.before[n]

    # -- that every run is like it -----------------------------------------------------------

    def _check(self) -> None:
        for key, b in self.barriers.items():
            for a, n, arrivals in b.expects:
                if not any(c.before[m].known[a.number] >= 2 * n for c, m in arrivals):
                    text = (
                        f"thread {a.thread} expects bytes at phase {a.phase[n]} of {_named(key)},"
                        " which may be complete without it"
                    )
                    self.faults.append(Fault(text, ((a.thread, n),)))
            if b.bytes:
                text = f"{_named(key)} is left with {b.bytes} bytes outstanding"
                self.faults.append(Fault(text))
        for a in self.agents:
            for n, (key, needs) in a.known.items():
                if self._idle(a, n):
                    continue
                b = self.barriers[key]
                after = 2 * n + 1
                latest = next(
                    (u for u, c in enumerate(b.phases) if c.known[a.number] >= after), b.complete
                )
                if latest > needs:
                    text = (
                        f"thread {a.thread} may still wait for parity {a.events[n].amount} of"
                        f" {_named(key)} when phase {latest - 1} is complete, which has the other"
                    )
                    self.faults.append(Fault(text, ((a.thread, n),)))

    def _idle(self, a: Agent, n: int) -> bool:
        """Whether a thread does nothing after event n that another needs."""
        trace = self.traces[a.thread]
        return all(e.kind in ("wait", "fence") for e in a.events[n:]) and not any(
            x.start > n for x in trace.accesses
        )

    # -- the order ---------------------------------------------------------------------------

    def end_of_load(self, a: Agent, n: int) -> tuple[int, int]:
        """(barrier's place, phases) that tell that the copy issued by event n is complete."""
        b = self.barriers[a.events[n].key]
        return b.place, a.phase[n] + 1


def _named(key: Key) -> str:
    return f"{key[0]}[{key[1]}]" if key[0] else f"barrier {key[1]}"
