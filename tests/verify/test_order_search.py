"""The search over all lengths against single lengths, one at a time, of random small protocols.

Whatever is wrong for some length must be wrong for the search, and nothing else.
"""

from __future__ import annotations

import random

import pytest

from tileproof.verify.order.control import Ask, Segment
from tileproof.verify.order.explore import explore
from tileproof.verify.order.plan import Plan
from tileproof.verify.order.trace import Access, Event, Trace
from tileproof.verify.replay import UndeterminedError

LENGTHS = 26
WORDS = "n"


class Role:
    """What one thread does in iteration `k`: a list of steps, each at some iterations only."""

    def __init__(self, before, steps, after):
        self.before, self.steps, self.after = before, steps, after

    def body(self, k):
        return [step(k) for when, step in self.steps if when(k)]

    def period(self):
        """After how many iterations the loop does the same, the first one left out."""
        fits = (p for p in (1, 2, 3, 4, 6, 8, 12) if self.repeats(p))
        return next(fits, 24)

    def repeats(self, period):
        return all(self.body(k) == self.body(k + period) for k in range(1, 25))


def arrive(name, slots):
    return lambda k: Event("arrive", (name, k % slots))


def wait(name, slots, phase):
    return lambda k: Event("wait", (name, k % slots), (k // slots + phase) % 2)


def touch(mode, cells, ahead=0):
    return lambda k: (mode, (k + ahead) % cells)


def protocol(rng):
    """A ring for a producer and one or two readers, with up to two mistakes."""
    slots, cells = rng.randint(1, 3), rng.randint(1, 4)
    readers = rng.randint(1, 2)
    late = rng.randint(0, 2)  # iterations after which a slot is read again
    roles = [[wait("free", slots, 1), touch("write", cells), arrive("full", slots)]]
    for _ in range(readers):
        roles.append([wait("full", slots, 0), touch("read", cells, -late * rng.randint(0, 1)),
                      arrive("free", slots)])  # fmt: skip
    always = lambda k: True  # noqa: E731
    steps = [[(always, s) for s in role] for role in roles]
    for _ in range(rng.randint(0, 2)):
        role = rng.choice(steps)
        at = rng.randrange(len(role))
        when = rng.choice((
            lambda k: k == 0, lambda k: k > 0, lambda k: k % 2 == 0, lambda k: k % 3 != 1, always,
        ))  # fmt: skip
        kind = rng.choice(("some", "swap", "again", "other"))
        if kind == "some":
            role[at] = (when, role[at][1])
        elif kind == "swap" and at:
            role[at - 1], role[at] = role[at], role[at - 1]
        elif kind == "again":
            role.insert(at, (when, role[at][1]))
        else:
            other = touch(rng.choice(("read", "write")), cells, rng.randint(0, 2))
            role.insert(at, (when, other))
    inits = [Event("init", (name, s), 1 if name == "full" else readers)
             for name in ("full", "free") for s in range(slots)]  # fmt: skip
    meet = Event("barrier", ("", 0), 1 + readers)
    afters = [[meet, ("write", 0)] if rng.random() < 0.3 else [] for _ in steps]
    if any(afters):
        afters = [a or [meet] for a in afters]
    return [Role([*(inits if i == 0 else []), meet], s, afters[i])
            for i, s in enumerate(steps)]  # fmt: skip


def segment(thread, steps, name, ask=None, after=()):
    made = Segment(ask=ask, after=list(after))
    for number, step in enumerate(steps):
        if isinstance(step, Event):
            made.events.append(step)
            made.nodes.append(None)
        else:
            mode, cell = step
            site = f"{name}.{number}"
            made.accesses.append(
                Access(thread, mode, "cells", cell, cell + 1, len(made.events), number, site, {})
            )
    return made


def of_length(role, thread, n):
    """The whole of a thread, for one length."""
    steps = [*role.before]
    for k in range(n):
        steps += role.body(k)
    return Trace([segment(thread, [*steps, *role.after], f"{thread}")])


def of_any_length(role, thread, head=1):
    """The graph of its segments: 0 before the loop, 1 after it, then one for each class."""
    last = head + role.period()
    made = [segment(thread, role.before, f"{thread}.b", Ask("loop", WORDS, first=True, exact=0),
                    (1, 2)),
            segment(thread, role.after, f"{thread}.a")]  # fmt: skip
    for k in range(last):
        following = k + 1 if k + 1 < last else head
        ask = Ask("loop", WORDS, exact=k + 1 if k + 1 < head else None)
        made.append(segment(thread, role.body(k), f"{thread}.{k}", ask, (1, 2 + following)))
    return Trace(made)


def wrong(traces):
    return explore(Plan(traces)).wrong


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_some_length_shows(seed):
    rng = random.Random(seed)
    counts = {True: 0, False: 0}
    for _ in range(60):
        roles = protocol(rng)
        shown = any(
            wrong({t: of_length(role, t, n) for t, role in enumerate(roles)})
            for n in range(LENGTHS)
        )
        try:
            found = wrong({t: of_any_length(role, t) for t, role in enumerate(roles)})
        except UndeterminedError:
            continue
        assert found or not shown
        counts[found] += 1
    assert min(counts.values()) >= 5, counts
