"""All runs of a block, over every length of the loops that sizes decide: a finite search.

A run goes on by itself until it must know whether a loop has another iteration; then it goes on
once for each answer, so that every number of iterations is some way through the answers. Two
states of one :func:`signature` go on alike whatever the answers, and only one of them is followed.
That makes the search finite where the roles of a kernel keep together, and it is exact. The
signature leaves out nothing that a step reads, but says it by what the step compares:

* Steps of an agent are only compared with marks: the ends of its accesses that somebody may still
  meet, its expectations and its waits that a phase has to know. So of each step in a clock the
  number of marks that are not above it is kept. Counting marks is monotone, so it commutes with the
  maximum that joins clocks; a mark made later lies above every step known now, in both states.
* Phases of a barrier are compared with its number of complete phases (to be it, or to be its like
  modulo 2), with -1 (initialised), and with the phases that copies end with. So their distance to
  the complete ones is kept, and the number of the latter that are not above. Distances are cut at
  three phases: who lags so far and does anything at the barrier is at fault whatever the distance,
  and an idle thread that does so ends the search. What an idle thread waits for is not cut.
* Iterations are compared with the number of iterations of their own loop, and conditions are known
  by the iterations they hang on. So distances are kept, between agents in a loop, and to its end if
  that is known; from an agent that has yet to come to a loop, all of it. What an iteration's number
  does besides lies in its segment, which speaks for the whole class of iterations (`control.py`).

What is over for every agent that does more than wait is in no comparison to come, and left out; so
is a piece that the same agent has done again (see ``Run._subsumed``), and what nobody can ask any
more. A role that runs away from another makes ever new distances: the search stops, and says so.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from tileproof.verify.replay import UndeterminedError

from .plan import Plan
from .run import Run
from .state import FAR, Actor, Clock, Level, Path

_MOST_STATES = 3_000
_MOST_AGENTS = 40
_NEVER = -9


def explore(plan: Plan) -> Run:
    """The first run with anything wrong in it, else the last one. Raises UndeterminedError where
    the search does not end."""
    if plan.open and len(plan.agents) > _MOST_AGENTS:
        raise UndeterminedError(f"more than {_MOST_AGENTS} kinds of threads around such loops")
    run = Run(plan)
    todo, seen = [run], set[Any]()
    while todo:
        run = todo.pop()
        answers = run.go()
        if run.wrong:
            return run
        if not answers:
            continue
        state = signature(run)
        if state in seen:
            continue
        seen.add(state)
        if len(seen) > _MOST_STATES:
            raise UndeterminedError(f"more than {_MOST_STATES} states of loops of unknown length")
        for answer in answers:
            other = run.copied()
            other.decide(answer)
            todo.append(other)
    return run


def signature(run: Run) -> Any:
    """What a state is told by; equal for states that go on alike."""
    run.prune()
    _forget(run)
    scale = _Scale(run)
    agents = tuple(_agent(run, a, scale) for a in run.actors)
    barriers = []
    for key, b in sorted(run.barriers.items()):
        waits = tuple((i, scale.step(i, after), parity) for i, after, parity, _ in b.waits)
        expects = tuple((i, scale.step(i, at)) for i, at, _ in b.expects)
        clocks = scale.clock(b.clock), scale.clock(b.last)
        barriers.append(
            (key, b.count, b.waiting, b.bytes, b.complete % 2, clocks, expects, waits, b.there)
        )
    live = []
    for (agent, piece), numbers in sorted(run.live.items()):
        ends = tuple(scale.end(run.entries[i]) for i in numbers)
        live.append((agent, piece, ends))
    return run.turn, run.moved, agents, tuple(barriers), tuple(live), _loops(run), run.loose


def _agent(run: Run, a: Actor, scale: _Scale) -> Any:
    where = a.segment, a.at, a.came, a.asked, a.touched, a.finished
    if a.finished:
        return where
    knows = scale.waiting(run, a) if run.idle(a) else (scale.clock(a.clock), scale.seen(a))
    names = {i: (key, n) for key, ids in run.live.items() for n, i in enumerate(ids)}
    issued = tuple(tuple(names.get(i) for i in ids) for ids in a.issued.values())
    groups = []
    for queue in a.groups.values():
        while queue and not queue[0]:
            queue.pop(0)  # a group without anything that is still under way
        groups.append(tuple(tuple(names.get(i) for i in ids) for ids in queue))
    uses = sorted((text, len(path), n) for (text, path), n in a.uses.items())
    path = tuple((text, at) for text, at in _relative(run, a.path))
    return where, knows, scale.clock(a.passed), issued, tuple(groups), tuple(uses), path


class _Scale:
    """How steps and phases are told by what they are compared with."""

    def __init__(self, run: Run) -> None:
        self.run, count = run, run.plan.steps
        marks: list[set[int]] = [set() for _ in range(run.plan.size)]
        for numbers in run.live.values():
            for i in numbers:
                e = run.entries[i]
                if e.place is not None:
                    marks[e.place].add(e.phases)
                elif e.end is not None:
                    marks[e.agent].add(e.end)
                    if e.piece.tensor:
                        marks[run.plan.units[e.agent] + 1].add(e.end)
        for b in run.barriers.values():
            for agent, after, _, _ in b.waits:
                marks[agent].add(after)
            for agent, at, _ in b.expects:
                marks[agent].add(at)
        self.marks = [sorted(m) for m in marks]
        self.complete = [0] * count + [0] * (run.plan.size - count)
        for b in run.barriers.values():
            self.complete[b.place] = b.complete
        self.steps = count

    def step(self, agent: int, step: int) -> int:
        return bisect_right(self.marks[agent], step)

    def phase(self, place: int, phases: int) -> tuple[int, int]:
        if phases < 0:
            return _NEVER, 0
        apart = max(phases - self.complete[place], -FAR)
        return apart, bisect_right(self.marks[place], phases)

    def waiting(self, run: Run, a: Actor) -> Any:
        """What an idle agent knows of the barriers it waits for."""
        places = [run.plan.place[key] for key in sorted(run.part(a).idle_waits)]
        return tuple(int(a.clock.known[p]) - self.complete[p] for p in places)

    def phases(self, clock: Clock) -> Any:
        known = clock.known.tolist()
        return tuple(self.phase(i, known[i]) for i in range(self.steps, len(known)))

    def clock(self, clock: Clock | None) -> Any:
        if clock is None:
            return None
        parts = (clock.known.tolist(), clock.fenced.tolist())
        steps = tuple(self.step(i, part[i]) for part in parts for i in range(self.steps))
        return steps, self.phases(clock)

    def seen(self, a: Actor) -> Any:
        """What an agent knew at its last fence, of tensor memory."""
        return tuple(self.step(i, int(a.seen[i])) for i in range(len(self.run.actors), self.steps))

    def end(self, e: Any) -> Any:
        if e.place is not None:
            later = e.phases > self.complete[e.place]
            return e.place, bisect_right(self.marks[e.place], e.phases), later
        if e.end is None:
            return None
        handed = self.step(self.run.plan.units[e.agent] + 1, e.end) if e.piece.tensor else None
        return self.step(e.agent, e.end), handed


# -- loops -----------------------------------------------------------------------------------


def _forget(run: Run) -> None:
    """Leave out what nobody can ask any more."""
    for a in run.actors:
        path = a.path
        a.uses = {u: n for u, n in a.uses.items() if path[: len(u[1])] == u[1]}
    for loop in list(run.trips):
        if not any(_may_come(run, a, loop) or _inside(a, loop) for a in run.actors):
            del run.trips[loop]
    for text, path in list(run.conditions):
        if not any(_may_ask(run, a, text, path) for a in run.actors):
            del run.conditions[text, path]


def _inside(a: Actor, loop: Any) -> Level | None:
    return next((level for level in a.levels if level.loop == loop), None)


def _may_come(run: Run, a: Actor, loop: tuple[str, Path, int]) -> bool:
    """Whether an agent that is not in a loop may still come to it."""
    text, path, before = loop
    if _inside(a, loop) or not _may_ask(run, a, text, path):
        return False
    return a.path[: len(path)] != path or a.uses.get((text, path), 0) <= before


def _may_ask(run: Run, a: Actor, text: str, path: Path) -> bool:
    if a.finished or text not in run.part(a).texts:
        return False
    for (mine, at), (name, then) in zip(a.path, path, strict=False):
        if mine != name or at < then:
            return True
        if at > then:
            return False
    return True


def _relative(run: Run, path: Path) -> tuple[tuple[str, Any], ...]:
    """Iterations by their distance to the foremost agent in the same loop."""
    out: list[tuple[str, Any]] = []
    for i, (text, at) in enumerate(path):
        there = [a.path[i][1] for a in run.actors
                 if not a.finished and a.path[:i] == path[:i] and len(a.path) > i
                 and a.path[i][0] == text]  # fmt: skip
        out.append((text, at - max(there)) if there else (text, ("alone", at)))
    return tuple(out)


def _loops(run: Run) -> Any:
    trips = []
    for loop, (least, exactly) in run.trips.items():
        text, path, before = loop
        end = least if exactly is None else exactly
        whole = any(_may_come(run, a, loop) for a in run.actors)
        levels = [(a.who.number, _inside(a, loop)) for a in run.actors if not a.finished]
        apart = tuple((n, end - level.at) for n, level in levels if level is not None)
        seen = end if whole else None
        trips.append((text, _relative(run, path), before, exactly is None, seen, apart))
    conditions = [(text, _relative(run, path), holds)
                  for (text, path), holds in run.conditions.items()]  # fmt: skip
    return tuple(sorted(trips, key=repr)), tuple(sorted(conditions, key=repr))
