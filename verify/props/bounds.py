"""Every access stays inside its buffer: global, shared and local."""

from __future__ import annotations

from collections.abc import Iterator

from tileproof.verify import terms
from tileproof.verify.digits import Digit
from tileproof.verify.encode import Answer
from tileproof.verify.facts import Access
from tileproof.verify.model import Counterexample, Verdict
from tileproof.verify.terms import const

from ._run import PROVED, Goal, Launch, found, undecided


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per access."""
    for access in launch.facts.accesses:
        yield _inside(launch, access)


def _inside(launch: Launch, access: Access) -> Goal:
    extent = access.buffer.extent
    if extent is None:
        return Goal(Verdict.UNKNOWN, f"no extent is known for {access.buffer.name}")
    answers = (digit_holds(launch, d, access) for d in access.digits)
    outside = next((a for a in answers if not a.proved), None)
    if outside is None and access.digits:
        return PROVED
    if access.buffer.strides is None:  # digits need not hold each, if their sum does
        last = terms.sub(extent, const(access.lanes))
        outside = launch.engine.within(access.index, const(0), last, access.context)
        if outside.proved:
            return PROVED
    if outside is None:
        return Goal(Verdict.UNKNOWN, f"bounds of {access.site}: strides that are no products")
    if outside.point is None:
        return undecided(outside, f"bounds of {access.site}")
    return found(_example(launch, access, outside), outside.point, outside.loads)


def digit_holds(launch: Launch, digit: Digit, access: Access) -> Answer:
    """Whether one digit of an access stays in its range."""
    hi = terms.sub(digit.extent, const(digit.lanes))
    return launch.engine.within(digit.term, const(0), hi, access.context)


def _example(launch: Launch, access: Access, answer: Answer) -> Counterexample:
    assert answer.point is not None
    point = answer.point.values
    confirmed = None
    for touched in launch.replay(point).touched:
        if touched.outside and touched.node.same_as(access.node) and touched.mode == access.mode:
            confirmed = touched
            break
    verb = "writes" if access.mode == "write" else "reads"
    what = f"{verb} outside {access.buffer.name}"
    if confirmed is not None:
        last = confirmed.offset + confirmed.lanes - 1
        span = f"{confirmed.offset}..{last}" if last > confirmed.offset else str(last)
        what = f"{verb} {access.buffer.name}[{span}] of {confirmed.extent} elements"
        if access.buffer.strides is not None:
            what += ", not all within a row"
    return Counterexample(
        "bounds",
        access.site,
        what,
        buffer=access.buffer.name,
        offset=confirmed.offset if confirmed else None,
        extent=confirmed.extent if confirmed else None,
        confirmed=confirmed is not None,
        **launch.describe(point),
    )
