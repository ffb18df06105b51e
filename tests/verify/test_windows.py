"""Random programs of barriers, copies, waits and loops: the walk against running every thread.

What the walk, the footprints and the solver call safe for every trip count must be safe at the trip
counts tried; and what they do not must clash at one of them.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import pytest

from tileproof.verify import footprint, props, terms
from tileproof.verify.domain import Domain
from tileproof.verify.encode import Engine
from tileproof.verify.facts import Access, Buffer, Context, Facts, Sync
from tileproof.verify.intrinsics import BARRIER, Effect
from tileproof.verify.model import Verdict
from tileproof.verify.props import Launch
from tileproof.verify.terms import Symbol, add, apply, const, evaluate, mul, sub, var

THREADS, WARP = 4, 2
TRIPS = range(7)


@dataclass(frozen=True)
class Loop:
    symbol: Symbol
    body: tuple[object, ...]


class Program:
    """Straight code and loops over N rounds or a few, which may nest, from a seed."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.trips = Symbol("N", "dim", const(0), const(1 << 20))
        self.thread = Symbol("threadIdx.x", "thread", const(0), const(THREADS - 1))
        self.facts = Facts("random", symbols={"threadIdx.x": self.thread})
        self.slots = self.rng.choice((1, 2, 3))
        shape = (const(self.slots * THREADS),)
        self.buffer = Buffer("tile", "shared.dyn", 8, shape, arena="shared.dyn")
        self.body = self.statements(self.rng.randrange(4), Context())
        for _ in range(self.rng.choice((1, 1, 2))):
            self.body.append(self.loop(Context(), 2))
            self.body += self.statements(self.rng.randrange(3), Context())

    def order(self):
        return len(self.facts.accesses) + len(self.facts.syncs)

    def loop(self, context, depth):
        lo = self.rng.choice((0, 0, 1))
        hi = sub(var(self.trips), const(1)) if depth == 2 else const(self.rng.randrange(-1, 3))
        symbol = Symbol(f"k{depth}", "loop", const(lo), hi)
        inside = context.inside(symbol)
        body = self.statements(self.rng.randrange(1, 5), inside)
        if depth > 1 and self.rng.random() < 0.3:
            body.append(self.loop(inside, depth - 1))
            body += self.statements(self.rng.randrange(3), inside)
        return Loop(symbol, tuple(body))

    def statements(self, count, context):
        return [self.statement(context) for _ in range(count)]

    def statement(self, context):
        kinds = ("access", "access", "barrier", "barrier", "commit", "wait", "warp")
        kind = self.rng.choice(kinds)
        if kind == "access":
            return self.access(context)
        if context.loops and self.rng.random() < 0.2:
            odd = apply("mod", var(context.loops[-1]), const(2))
            context = context.given(apply("eq", odd, const(self.rng.randrange(2))))
        effect = {
            "barrier": BARRIER,
            "warp": Effect(sync="warp", collective="warp"),
            "commit": Effect(sync="commit"),
            "wait": Effect(sync="wait", pending=self.rng.randrange(3)),
        }[kind]
        fact = Sync(effect, context, self.order(), object())
        self.facts.syncs.append(fact)
        return fact

    def access(self, context):
        own, thread = self.rng.random() < 0.6, var(self.thread)
        column = thread if own else sub(const(THREADS - 1), thread)
        slot = const(self.rng.randrange(self.slots))
        if context.loops:
            slot = apply("mod", add(var(context.loops[-1]), slot), const(self.slots))
        if self.rng.random() < 0.2:
            context = context.given(apply("lt", thread, const(self.rng.randrange(1, THREADS))))
        mode = self.rng.choice(("read", "read", "write", "copy"))
        fact = Access(
            self.buffer,
            "read" if mode == "read" else "write",
            add(mul(slot, const(THREADS)), column),
            1,
            1,
            context,
            self.order(),
            object(),
            asynchronous=mode == "copy",
        )
        self.facts.accesses.append(fact)
        return fact


def run(program, point):
    """(access, byte, begin, end) of all one thread does; times are (barriers, warp's, steps)."""
    done, groups, open_group = [], [], []
    now = [0, 0, 0]

    def step(fact, here):
        now[2] += 1
        if not all(evaluate(c, here) for c in fact.context.path):
            return
        if isinstance(fact, Access):
            event = [fact, int(evaluate(fact.index, here)), tuple(now), tuple(now)]
            done.append(event)
            if fact.asynchronous:
                event[3] = (math.inf,) * 3
                open_group.append(event)
        elif fact.effect.sync in ("barrier", "warp"):
            now[:2] = (now[0] + 1, 0) if fact.effect.sync == "barrier" else (now[0], now[1] + 1)
        elif fact.effect.sync == "commit":
            groups.append(open_group[:])
            open_group.clear()
        else:
            while len(groups) > fact.effect.pending:
                for event in groups.pop(0):
                    event[3] = tuple(now)

    def walk(items, here):
        for item in items:
            if isinstance(item, Loop):
                lo, hi = (int(evaluate(e, here)) for e in (item.symbol.lo, item.symbol.hi))
                for k in range(lo, hi + 1):
                    walk(item.body, {**here, item.symbol: k})
            else:
                step(item, here)

    walk(program.body, point)
    return done


def clash(program):
    """Whether two threads, or a copy and its own thread, meet at some trip count."""
    for n in TRIPS:
        runs = [run(program, {program.thread: t, program.trips: n}) for t in range(THREADS)]
        for (t, mine), (u, theirs) in itertools.product(enumerate(runs), repeat=2):
            depth = 3 if t == u else 2 if t // WARP == u // WARP else 1
            for a, b in itertools.product(mine, theirs):
                if a is b or a[1] != b[1] or "write" not in (a[0].mode, b[0].mode):
                    continue
                if a[3][:depth] >= b[2][:depth] and b[3][:depth] >= a[2][:depth]:
                    return True
    return False


class Unplayed(Launch):
    """There is no IR behind these facts to replay on."""

    def timeline(self, point):
        return []


def proved(program):
    domain = Domain(dims={"N": program.trips})
    launch = Unplayed(program.facts, domain, Engine(program.facts, domain), None, {}, None)
    goals = [*props.races.races(launch), *props.races.copies(launch)]
    return all(g.verdict is Verdict.PROVED for g in goals)


@pytest.mark.parametrize("part", range(4))
def test_the_walk_agrees_with_running_every_thread(part, monkeypatch):
    monkeypatch.setattr(props.races, "_WARP", WARP)
    monkeypatch.setattr(footprint, "_WARP", WARP)
    count = {True: 0, False: 0}
    for seed in range(part * 60, part * 60 + 60):
        program = Program(seed)
        safe = proved(program)
        assert safe is not clash(program), seed
        count[safe] += 1
        terms.forget()
    assert min(count.values()) >= 10


class Ring(Program):
    """N copies go round two slots, whose oldest is read after a loop that waits for nothing."""

    count = 2  # of slots

    def __init__(self, pending):
        super().__init__(0)
        self.facts = Facts("ring", symbols={"threadIdx.x": self.thread})
        shape = (const(self.count * THREADS),)
        self.buffer = Buffer("tile", "shared.dyn", 8, shape, arena="shared.dyn")
        k = Symbol("k", "loop", const(0), sub(var(self.trips), const(1)))
        j = Symbol("j", "loop", const(0), const(2))
        self.body = [
            Loop(
                k,
                (
                    self.sync("wait", k, pending=1),
                    self.move(var(k), Context().inside(k)),
                    self.sync("commit", k),
                ),
            ),
            Loop(j, (self.sync("warp", j),)),
            self.sync("wait", pending=pending),
            self.move(var(self.trips)),
        ]

    def move(self, slot, context=None):
        """A copy to the slot in a loop, a read of it outside."""
        index = add(mul(apply("mod", slot, const(self.count)), const(THREADS)), var(self.thread))
        mode = "write" if context else "read"
        at = (index, 1, 1, context or Context(), self.order(), object())
        fact = Access(self.buffer, mode, *at, asynchronous=mode == "write")
        self.facts.accesses.append(fact)
        return fact

    def sync(self, kind, *loops, pending=0):
        context = Context()
        for loop in loops:
            context = context.inside(loop)
        fact = Sync(Effect(sync=kind, pending=pending), context, self.order(), object())
        self.facts.syncs.append(fact)
        return fact


@pytest.mark.parametrize("pending", [1, 2])
def test_a_loop_forgets_nothing_of_how_it_was_reached(pending):
    # The copy before the last is complete when one may be under way, not when two may.
    program = Ring(pending)
    assert clash(program) is (pending == 2)
    assert proved(program) is (pending == 1)


class Refills(Ring):
    """N times two slots are filled, and `turns` of a loop wait for all copies but the last."""

    def __init__(self, turns):
        super().__init__(0)
        self.facts = Facts("refills", symbols={"threadIdx.x": self.thread})
        n = Symbol("n", "loop", const(0), sub(var(self.trips), const(1)))
        g = Symbol("g", "loop", const(0), const(1))
        t = Symbol("t", "loop", const(0), const(turns - 1))
        fill = Loop(
            g, (self.move(var(g), Context().inside(n).inside(g)), self.sync("commit", n, g))
        )
        barrier = Sync(BARRIER, Context().inside(n).inside(t), self.order() + 1, object())
        turn = [self.sync("wait", n, t, pending=1), barrier]
        self.facts.syncs.append(barrier)
        wait = Loop(t, (*turn, self.sync("commit", n, t)))
        self.body = [Loop(n, (fill, wait))]


@pytest.mark.parametrize("turns", [1, 2])
def test_a_loop_is_left_as_its_last_turn_leaves_it(turns):
    # The copy to the second slot is complete after two turns, after one it may be under way.
    program = Refills(turns)
    assert clash(program) is (turns == 1)
    assert proved(program) is (turns == 2)


class Ahead(Ring):
    """N times three slots go round in a loop of eight turns, whose `guarded` copies end two turns
    before it does; each turn waits for all groups but the last."""

    count = 3

    def __init__(self, guarded):
        super().__init__(0)
        self.facts = Facts("ahead", symbols={"threadIdx.x": self.thread})
        n = Symbol("n", "loop", const(0), sub(var(self.trips), const(1)))
        g = Symbol("g", "loop", const(0), const(1))
        k = Symbol("k", "loop", const(0), const(7))
        fill = Loop(
            g, (self.move(var(g), Context().inside(n).inside(g)), self.sync("commit", n, g))
        )
        inside = Context().inside(n).inside(k)
        turn = [self.sync("wait", n, k, pending=1), Sync(BARRIER, inside, self.order() + 1, None)]
        self.facts.syncs.append(turn[1])
        after = add(var(k), const(2))
        where = inside.given(apply("lt", after, const(8))) if guarded else inside
        turn += [self.move(after, where), self.sync("commit", n, k)]
        self.body = [Loop(n, (fill, Loop(k, tuple(turn))))]


@pytest.mark.parametrize("guarded", [True, False])
def test_where_a_copy_is_made_says_how_many_turns_follow(guarded):
    # What the last two turns copy is under way when the slots are filled again; a guard makes none.
    program = Ahead(guarded)
    assert clash(program) is not guarded
    assert proved(program) is guarded
