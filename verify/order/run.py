"""One run of a block's agents, in turns, and why every other run is alike.

Each step has a clock: of every agent, how far it is known to have come, and of every barrier, how
many phases are known to be complete. The order found this way is that of every run, by induction,
if
  * who arrives at a phase, expects bytes or starts a copy for it knows all earlier phases complete;
  * bytes are expected before some arrival at their phase, so that it cannot end without them;
  * a wait by parity can return in one phase only: the earliest one it may find has that parity or
    the next has, and no later phase ends without the thread that waits.
A thread that waits, and does nothing that others need before the block meets at its next barrier
(if it ever does), is taken to see each phase.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from tileproof.verify.replay import UndeterminedError
from tileproof.verify.tensor import UNIT

from . import tensor
from .conflicts import Conflict, Piece, within
from .plan import Part, Plan
from .state import ENGINES, FAR, Actor, Answer, Barrier, Clock, Entry, Fault, Level, Path, Place
from .trace import Event, Key


class Run:
    """The state of a block. It goes on until it ends, is stuck, or has to know more."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        nothing = np.full(plan.size, -1, np.int64)
        self.blank = Clock(nothing, nothing)
        self.actors = [Actor(a, self.blank, nothing) for a in plan.agents]
        self.barriers: dict[Key, Barrier] = {}
        self.entries: dict[int, Entry] = {}
        self.live: dict[tuple[int, int], list[int]] = {}
        self.next = 0
        self.trips: dict[tuple[str, Path, int], tuple[int, int | None]] = {}
        self.conditions: dict[tuple[str, Path], bool] = {}
        self.turn, self.moved, self.loose = 0, False, False
        self.fault: Fault | None = None
        self.doubt: Fault | None = None  # a fault that lets the run go on, and shows another there
        self.found: dict[Any, Conflict] = {}
        self.outliving: dict[int, Piece] = {}
        self.at_ease: set[int] = set()  # classes that are taken to see each phase
        self.grown = 64

    def copied(self) -> Run:
        """The same state, with nothing in common that changes; what was found is common."""
        other = copy.copy(self)
        other.actors = [a.copied() for a in self.actors]
        other.barriers = {k: copy.copy(b) for k, b in self.barriers.items()}
        other.entries, other.live = dict(self.entries), {k: list(v) for k, v in self.live.items()}
        other.trips, other.conditions = dict(self.trips), dict(self.conditions)
        return other

    # -- turns -------------------------------------------------------------------------------

    def go(self) -> list[Answer]:
        """Run until the end, a fault (none of both has answers), or a question: the answers."""
        answers = self._go()
        self.fault = self.fault or self.doubt
        return [] if self.fault else answers

    def _go(self) -> list[Answer]:
        while self.fault is None:
            while self.turn < len(self.actors):
                answers = self._turn(self.actors[self.turn])
                if answers or self.fault:
                    return answers
                self.turn += 1
            if not self.moved:
                self._end()
                return []
            self.turn, self.moved = 0, False
        return []

    def _turn(self, a: Actor) -> list[Answer]:
        """An agent goes on to its next question, or until it has to wait."""
        if a.finished:
            return []
        if a.asked:
            answer = self._answer(a)
            if isinstance(answer, list):
                return answer
            self._answered(a, answer)
            self.moved = True
        part = self.part(a)
        while self.fault is None:
            self._touch(a, part)
            if a.at == len(part.events):
                self._asks(a, part)
                return []
            if not self._step(a, part):
                return []
            self.moved = True
        return []

    def part(self, a: Actor) -> Part:
        return self.plan.parts[a.who.cls][a.segment]

    @property
    def wrong(self) -> bool:
        """Whether anything was found."""
        return bool(self.fault or self.found or self.outliving)

    def idle(self, a: Actor) -> bool:
        """Whether an agent only waits from here on."""
        return a.touched and a.at >= self.part(a).idle_from

    def _end(self) -> None:
        stuck = [a for a in self.actors if not a.finished]
        if stuck:
            waits = "; ".join(self._waits(a) for a in stuck[:4])
            self._wrong(f"no thread can go on: {waits}", *(self._place(a) for a in stuck[:4]))
            return
        for b in self.barriers.values():
            for agent, _, place in b.expects:
                self._unsure(b, agent, place)
            if b.bytes and self.fault is None:
                self._wrong(f"{b.name} is left with {b.bytes} bytes outstanding")

    def _waits(self, a: Actor) -> str:
        e = self.part(a).events[a.at]
        b = self.barriers[e.key]
        if e.kind in ("barrier", "meet"):
            return f"thread {a.who.thread} at {b.name}, which {b.waiting} of {b.count} threads miss"
        lacks = f"{b.waiting} of {b.count} arrivals" if b.waiting else f"{b.bytes} bytes"
        return (
            f"thread {a.who.thread} waits for parity {e.amount} of {b.name}, whose phase"
            f" {b.complete} lacks {lacks}"
        )

    def _place(self, a: Actor) -> Place:
        return a.who.thread, a.segment, a.at

    def _wrong(self, message: str, *at: Place) -> None:
        if self.fault is None:
            self.fault = Fault(message, at)

    # -- questions ---------------------------------------------------------------------------

    def _asks(self, a: Actor, part: Part) -> None:
        """The end of a segment: a question, or the end of the thread."""
        if a.asked:
            return
        self.moved = True
        if part.ask is None:
            a.finished = True
            for ids in (*a.groups["store"], a.issued["store"]):
                for i in ids:
                    if self.entries[i].open:
                        self.outliving.setdefault(
                            self.entries[i].piece.number, self.entries[i].piece
                        )
            return
        a.asked = True
        if part.ask.kind != "loop":
            return
        if part.ask.first:
            use = (part.ask.text, a.path)
            before = a.uses.get(use, 0)
            a.uses[use] = before + 1
            a.levels.append(Level(part.ask.text, 0, (*use, before)))
        else:
            a.levels[-1] = replace(a.levels[-1], at=a.levels[-1].at + 1)

    def _answer(self, a: Actor) -> bool | list[Answer]:
        """The answer to an agent's question, or the answers there may be."""
        ask = self.part(a).ask
        assert ask is not None
        if ask.kind == "if":
            about = (ask.text, a.path[: ask.depth])
            if about in self.conditions:
                return self.conditions[about]
            return [Answer(about, holds=h, loose=True) for h in (False, True)]
        level = a.levels[ask.depth or 0]
        least, exactly = self.trips.get(level.loop, (0, None))
        at = level.at + ask.ahead
        if exactly is not None:
            return at < exactly
        if at < least:
            return True
        loose = bool(level.loop[1]) or level.loop[2] > 0
        ends = [n for n in range(least, at + 1)
                if ask.exact is None or loose or self.plan.possible(ask.text, n)]  # fmt: skip
        more = Answer(level.loop, more=at, loose=loose)
        return [*(Answer(level.loop, exactly=n, loose=loose) for n in ends), more]

    def decide(self, answer: Answer) -> None:
        """Take one of the answers there may be."""
        self.loose |= answer.loose
        if answer.holds is not None:
            self.conditions[answer.about] = answer.holds
        elif answer.more is not None:
            self.trips[answer.about] = answer.more + 1, None
        else:
            self.trips[answer.about] = 0, answer.exactly

    def _answered(self, a: Actor, yes: bool) -> None:
        part = self.part(a)
        assert part.ask is not None
        if part.ask.kind == "loop" and not yes:
            a.levels.pop()
        a.segment, a.at = part.after[yes], 0
        a.asked = a.touched = False

    # -- events ------------------------------------------------------------------------------

    def _step(self, a: Actor, part: Part) -> bool:
        """Take the next event; False if the agent has to wait."""
        e, n = part.events[a.at], a.done
        if not a.came:
            a.came, a.clock = True, a.clock.at(a.who.number, 2 * n)
            if e.kind in ("barrier", "meet"):
                self._come(a, e)
        clock: Clock | None = a.clock
        if e.kind == "init":
            self._init(a, e)
            clock = a.clock.at(self.plan.place[e.key], 0)
        elif e.kind == "fence":
            clock = Clock(a.clock.known, np.maximum(a.clock.fenced, a.clock.known))
        elif e.kind == "before" and a.who.number in self.plan.units:
            clock = a.clock.at(self.plan.units[a.who.number] + 1, 2 * n)
        elif e.kind == "after":
            a.seen = a.clock.known
        elif e.kind in ("barrier", "meet"):
            clock, a.passed = a.passed and a.clock.join(a.passed), None
        elif e.kind == "wait":
            clock = self._waited(a, e, at_ease=a.at in part.passive)
        elif e.kind == "commit":
            a.groups[e.engine].append(a.issued[e.engine])
            a.issued[e.engine] = []
        elif e.kind == "drain":
            self._drain(a, e)
        elif e.kind not in ("before", "point"):
            self._signal(a, e)
        if clock is None or self.fault:
            return False
        a.clock = clock.at(a.who.number, 2 * n + 1)
        a.at, a.done, a.came, a.touched = a.at + 1, n + 1, False, False
        return True

    def _init(self, a: Actor, e: Event) -> None:
        place = self.plan.place[e.key]
        b = Barrier(e.key, place, e.amount, e.amount)
        if e.key in self.barriers or not a.who.alone:
            self._wrong(f"{b.name} is initialised twice", self._place(a))
            return
        self.barriers[e.key] = b

    def _ready(self, a: Actor, e: Event) -> Barrier | None:
        b = self.barriers.get(e.key)
        if b is None or a.clock.known[b.place] < 0:
            name = Barrier(e.key, 0, 0, 0).name
            text = f"thread {a.who.thread} uses {name} before it is known to be initialised"
            self._wrong(text, self._place(a))
            return None
        return b

    def _signal(self, a: Actor, e: Event) -> None:
        """An arrival, bytes expected, or a copy, which completes at once."""
        b = self._ready(a, e)
        if b is None:
            return
        known = a.clock.known[b.place]
        if known != b.complete:
            text = (
                f"thread {a.who.thread} comes to phase {b.complete} of {b.name} and knows only"
                f" {known} to be complete: it may come too early"
            )
            self._wrong(text, self._place(a))
            return
        clock = a.clock
        if e.engine == UNIT and a.who.number in self.plan.units:
            clock = clock.at(self.plan.units[a.who.number], 2 * a.done)
        b.clock = clock if b.clock is None else b.clock.join(clock)
        if e.kind == "load":
            b.bytes -= e.amount * a.who.weight
            self._ends_with(b, self._loaded(a))
        else:
            b.bytes += e.amount * a.who.weight
        if e.kind == "expect":
            b.expects += ((a.who.number, 2 * a.done, self._place(a)),)
        if e.kind == "arrive":
            if e.engine in ENGINES:
                groups = (*a.groups[e.engine], a.issued[e.engine])
                self._ends_with(b, [i for ids in groups for i in ids])
            b.waiting -= a.who.weight
            b.expects = tuple(x for x in b.expects if a.clock.known[x[0]] < x[1])
            if b.waiting < 0:
                text = f"more than {b.count} arrivals at phase {b.complete} of {b.name}"
                self._wrong(text, self._place(a))
        if b.waiting == 0 and b.bytes == 0:
            self._complete(b)

    def _complete(self, b: Barrier) -> None:
        assert b.clock is not None
        clock = b.clock if b.last is None else b.clock.join(b.last)
        for agent, _, place in b.expects:
            self._unsure(b, agent, place)
        for agent, after, parity, place in b.waits:
            if clock.known[agent] < after:
                self._late(b, self.plan.agents[agent].thread, parity, b.complete, place)
        b.complete += 1
        b.last = clock.at(b.place, b.complete)
        if b.meeting:
            b.last = self.blank.at(b.place, b.complete)
            self._spoken_for(b.there)
        for i in b.there:
            self.actors[i].passed = b.last
        b.waiting, b.clock, b.expects, b.waits, b.there = b.count, None, (), (), ()

    def _spoken_for(self, lanes: tuple[int, ...]) -> None:
        """Lanes have met: what the first does next says that all have come from their waits."""
        first = min((self.actors[i] for i in lanes), key=lambda a: a.who.thread)
        number, step = first.who.number, 2 * first.done + 1
        others = set(lanes) - {number}
        for b in self.barriers.values():
            b.waits = tuple(
                (number, step, parity, at) if agent in others else (agent, after, parity, at)
                for agent, after, parity, at in b.waits
            )

    def _unsure(self, b: Barrier, agent: int, place: Place) -> None:
        thread = self.plan.agents[agent].thread
        text = (
            f"thread {thread} expects bytes at phase {b.complete} of {b.name}, which may be"
            " complete without it"
        )
        self.doubt = self.doubt or Fault(text, (place,))

    def _late(self, b: Barrier, thread: int, parity: int, phase: int, place: Place) -> None:
        text = (
            f"thread {thread} may still wait for parity {parity} of {b.name} when phase {phase} is"
            " complete, which has the other"
        )
        self.doubt = self.doubt or Fault(text, (place,))

    def _come(self, a: Actor, e: Event) -> None:
        place = self.plan.place[e.key]
        new = Barrier(e.key, place, e.amount, e.amount, meeting=e.kind == "meet")
        b = self.barriers.setdefault(e.key, new)
        a.passed = None
        if b.count != e.amount:
            self._wrong(
                f"{b.name} is met with {b.count} and with {e.amount} threads", self._place(a)
            )
            return
        if max(0, a.clock.known[place]) != b.complete:
            text = f"thread {a.who.thread} may come to {b.name} while others still wait there"
            self._wrong(text, self._place(a))
            return
        b.clock = a.clock if b.clock is None else b.clock.join(a.clock)
        b.waiting -= a.who.weight
        b.there += (a.who.number,)
        if b.waiting < 0:
            self._wrong(f"more than {b.count} threads come to {b.name}", self._place(a))
        elif b.waiting == 0:
            self._complete(b)

    def _waited(self, a: Actor, e: Event, at_ease: bool) -> Clock | None:
        """Returns once the newest complete phase has the parity; before the first it is odd."""
        b = self._ready(a, e)
        if b is None:
            return None
        known = int(a.clock.known[b.place])
        needs = known if (known - 1) & 1 == e.amount & 1 else known + 1
        if b.complete < needs:
            return None
        if at_ease:
            self.at_ease.add(a.who.cls)
            if b.complete - known >= FAR and self.plan.open:
                text = f"thread {a.who.thread} waits for {b.name} long after other phases of it"
                raise UndeterminedError(text)
            if b.complete > needs or b.last is None:
                return a.clock.at(b.place, needs)
            return a.clock.join(b.last)
        if b.complete > needs:
            self._late(b, a.who.thread, e.amount, b.complete - 1, self._place(a))
            return a.clock.at(b.place, needs)
        b.waits += ((a.who.number, 2 * a.done + 1, e.amount, self._place(a)),)
        return a.clock if b.last is None else a.clock.join(b.last)

    # -- accesses ----------------------------------------------------------------------------

    def _touch(self, a: Actor, part: Part) -> None:
        """What the agent does before its next event."""
        if a.touched:
            return
        a.touched = True
        pieces = part.pieces.get(a.at, ())
        for c in within(pieces, self.plan.follow) if any(p.engine for p in pieces) else ():
            self.found.setdefault((c.why, c.first.node, c.second.node), c)
        now = [(p, self._begin(a, p)) for p in pieces]
        for p, number in now:
            self._compare(a, p, {n for _, n in now})
            old = self.live.setdefault((a.who.number, p.number), [])
            old[:] = [i for i in old if not self._subsumed(self.entries[i], p)]
            old.append(number)
        if len(self.entries) > self.grown:
            self.prune()
            self.grown = 2 * len(self.entries) + 64

    def _begin(self, a: Actor, p: Piece) -> int:
        number, self.next = self.next, self.next + 1
        step = 2 * a.done
        if p.engine == UNIT:
            self.entries[number] = Entry(a.who.number, p, None, self.plan.units[a.who.number], step)
        else:
            self.entries[number] = Entry(a.who.number, p, None if p.engine else step)
        if p.engine in ENGINES:
            a.issued[p.engine].append(number)
        return number

    def _loaded(self, a: Actor) -> list[int]:
        pieces = self.part(a).pieces.get(a.at, ())
        return [self.live[a.who.number, p.number][-1] for p in pieces if p.load == a.at]

    def _ends_with(self, b: Barrier, numbers: list[int]) -> None:
        for i in numbers:
            if self.entries[i].open:
                self.entries[i] = replace(self.entries[i], place=b.place, phases=b.complete + 1)

    def _drain(self, a: Actor, e: Event) -> None:
        groups = a.groups[e.engine]
        while len(groups) > e.amount:
            for i in groups.pop(0):
                if self.entries[i].open:
                    self.entries[i] = replace(self.entries[i], end=2 * a.done)

    def _subsumed(self, old: Entry, again: Piece) -> bool:
        """Whether who knows the end of the same piece, done again, knows that of `old`."""
        ends = again.load is not None or again.engine in ("wgmma", "store", UNIT)
        return old.end is not None or ends

    def _compare(self, a: Actor, p: Piece, now: set[int]) -> None:
        """The piece, as it begins, with all that was done before it."""
        for (agent, _), numbers in self.live.items():
            for i in numbers:
                old = self.entries[i]
                if i in now or not old.piece.overlaps(p):
                    continue
                if p.tensor:
                    why = tensor.missing(self.plan, a, old, p)
                elif agent == a.who.number:
                    why = self._of_one(a, old, p)
                else:
                    ordered = self._over(old, a)
                    copies = old.piece.engine or p.engine
                    why = "copy" if copies else "race"
                    if ordered:
                        why = "" if self._fenced(old, p, a) else "fence"
                if why:
                    self._meet(why, old.piece, p, same=agent == a.who.number)

    def _over(self, old: Entry, a: Actor) -> bool:
        """Whether an agent knows that a piece has ended."""
        if old.place is not None:
            return bool(a.clock.known[old.place] >= old.phases)
        return old.end is not None and bool(a.clock.known[old.agent] >= old.end)

    def _fenced(self, old: Entry, p: Piece, a: Actor) -> bool:
        """What was written by ordinary stores, asynchronous copies see after a fence only."""
        if old.piece.proxy or not p.proxy or old.piece.mode != "write":
            return True
        return old.end is not None and bool(a.clock.fenced[old.agent] >= old.end)

    def _of_one(self, a: Actor, old: Entry, p: Piece) -> str:
        if old.piece.engine:
            # What a thread has waited for is over; multiplies of a warp follow each other.
            over = old.end is not None if old.place is None else self._over(old, a)
            return "" if over else "copy"
        return "" if self._fenced(old, p, a) else "fence"

    def _meet(self, why: str, one: Piece, two: Piece, same: bool) -> None:
        met = self.plan.met(one, two, same)
        if met is not None:  # the first conflict of each pair of statements is kept
            key = (why, met[0].node, met[1].node)
            self.found.setdefault(key, Conflict(why, *met))

    def prune(self) -> None:
        """Forget what every agent that goes on knows to be over, also of its own."""
        going = [a for a in self.actors if not (a.finished or self.idle(a))]
        kept: set[int] = set()
        for key, numbers in list(self.live.items()):
            left = [i for i in numbers if not all(self._behind(self.entries[i], a) for a in going)]
            kept.update(left)
            if left:
                self.live[key] = left
            else:
                del self.live[key]
        for a in self.actors:
            for ids in (*a.issued.values(), *(g for gs in a.groups.values() for g in gs)):
                kept.update(i for i in ids if self.entries[i].open)
                ids[:] = [i for i in ids if i in kept]
        self.entries = {i: e for i, e in self.entries.items() if i in kept}

    def _behind(self, old: Entry, a: Actor) -> bool:
        if old.piece.tensor:
            return tensor.settled(self.plan, a, old)
        if old.open or not self._over(old, a):
            return False
        if old.piece.proxy or old.piece.mode != "write":
            return True
        return old.end is not None and bool(a.clock.fenced[old.agent] >= old.end)
