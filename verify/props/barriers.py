"""Whether one thread comes to a barrier never depends on what only that thread knows.

Two threads of a block (of a warp, a cluster or the grid, for what those do together) agree on every
condition and on every loop around the call. The conditions are taken in order: while the outer ones
agree, the two threads are in the same iteration, and the next holds for both or for neither.
A barrier of the grid needs all blocks at once, which only a cooperative launch gives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tileproof.verify import cluster, grid, tensor, terms
from tileproof.verify.encode import Answer
from tileproof.verify.facts import Context, Sync
from tileproof.verify.model import Counterexample, Step, Verdict
from tileproof.verify.replay import UndeterminedError
from tileproof.verify.terms import Symbol, Term, apply, const, var

from ._run import PROVED, Goal, Launch, found, undecided

_WARP = 32


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per call that threads must make together."""
    decided: dict[tuple[object, ...], Goal] = {}
    for sync in launch.facts.syncs:
        if sync.effect.collective == "none":
            continue
        # Calls in one place stand or fall together; one report of it is enough.
        key = (sync.effect.collective, sync.context.path, sync.context.loops)
        if key not in decided:
            decided[key] = _uniform(launch, sync)
        yield decided[key]


def beside_order(launch: Launch) -> Iterator[Goal]:
    """What the order of things in a block leaves open: that the blocks of a cluster come to its
    barriers alike, and the lanes of a warp to what it does to tensor memory."""
    decided: set[tuple[object, ...]] = set()
    for sync in launch.facts.syncs:
        group = sync.effect.collective
        key = (group, sync.context.path, sync.context.loops)
        if group == "warp" and not tensor.is_collective(str(sync.node.op.name)):
            continue
        if group in ("cluster", "warp") and key not in decided:
            decided.add(key)
            yield _uniform(launch, sync)


def of_grid(launch: Launch) -> list[Sync]:
    """The barriers of the grid that every thread of it is shown to come to."""
    return [s for s in grid.barriers(launch.facts) if _uniform(launch, s) is PROVED]


def _uniform(launch: Launch, sync: Sync) -> Goal:
    if sync.effect.collective == "grid" and not launch.cooperative:
        message = f"{sync.site} waits for every block of a launch that is not cooperative"
        example = Counterexample("barriers", sync.site, message, confirmed=True)
        return Goal(Verdict.REFUTED, message, example)
    context = sync.context
    outcome = PROVED
    for at in range(len(context.path) + 1):
        before = Context(context.path[:at], _around(context, at))
        for loop, entered in zip(context.loops, context.entered, strict=True):
            if entered == at:
                for end in (loop.lo, loop.hi):
                    outcome = _agree(launch, sync, before, end) if outcome is PROVED else outcome
        if at < len(context.path) and outcome is PROVED:
            outcome = _agree(launch, sync, before, context.path[at])
    return outcome


def _around(context: Context, at: int) -> tuple[Symbol, ...]:
    """The loops entered before condition `at` is asked."""
    return tuple(
        s for s, entered in zip(context.loops, context.entered, strict=True) if entered <= at
    )


def _agree(launch: Launch, sync: Sync, before: Context, term: Term) -> Goal:
    """Whether two threads that came this far see the same value."""
    threads = launch.facts.threads
    wide = sync.effect.collective in ("cluster", "grid")
    kinds = ("thread", "opaque", "block") if wide else ("thread", "opaque")
    own = [s for s in term.symbols if s.kind in kinds]
    if not own:
        return PROVED
    twins: dict[Symbol, Term] = {}
    everything = {
        *threads,
        *own,
        *(launch.facts.blocks if wide else ()),
        *(s for c in before.path for s in c.symbols if s.kind == "opaque"),
    }
    for s in sorted(everything, key=lambda s: s.name):
        twins[s] = var(Symbol(f"{s.name}'", s.kind, s.lo, s.hi, s.origin))
    violation = apply("ne", term, terms.substitute(term, twins))
    if sync.effect.collective == "warp":
        one = launch.facts.linear_thread
        two = terms.substitute(one, twins)
        same = apply("eq", *(apply("div", t, const(_WARP)) for t in (one, two)))
        violation = apply("and", violation, same)
    if sync.effect.collective == "cluster":
        violation = apply("and", violation, cluster.same(twins, launch.clusters))
    path = (*before.path, *(terms.substitute(c, twins) for c in before.path))
    others = [t.value for s, t in twins.items() if s.kind != "opaque"]
    everyone = [*launch.facts.symbols.values(), *others]
    answer = launch.engine.never(violation, Context(path, before.loops), everyone)
    if answer.proved:
        return PROVED
    if answer.point is None:
        return undecided(answer, f"barrier {sync.site}")
    return found(_example(launch, sync, twins, term, answer), answer.point, answer.loads)


def _example(
    launch: Launch, sync: Sync, twins: dict[Symbol, Term], term: Term, answer: Answer
) -> Counterexample:
    assert answer.point is not None
    values = answer.point.values
    kinds = ("dim", "block", "loop")
    one = {s: v for s, v in values.items() if s.kind in kinds}
    two = dict(one)
    for s, twin in twins.items():
        if s.kind in ("thread", "block"):
            one[s], two[s] = values[s], values[twin.value]
    counts = []
    with contextlib.suppress(UndeterminedError):
        counts = [launch.reached(p, sync.node) for p in (one, two)]
    who = [int(terms.evaluate(launch.facts.linear_thread, p)) for p in (one, two)]
    group = sync.effect.collective
    message = f"threads {who[0]} and {who[1]} of a {group} do not both come to {sync.site}"
    if counts and counts[0] != counts[1]:
        message += f" ({counts[0]} and {counts[1]} times)"
    places = [launch.describe(p) for p in (one, two)]
    steps = []
    for i, p in enumerate(places):
        here = {k: p[k] for k in ("block", "thread", "loops")}
        times = f"comes {counts[i]} times" if counts else f"decides by {terms.show(term)}"
        steps.append(Step(times, sync.site, **here))
    return Counterexample(
        "barriers",
        sync.site,
        message,
        steps=tuple(steps),
        confirmed=bool(counts) and counts[0] != counts[1],
        **places[0],
    )
