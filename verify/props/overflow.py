"""Every machine integer in an index, a guard or the host's arithmetic holds its mathematical value.

On the device and in the host function, at the ends of the domain. The other properties rest on it.
"""

from __future__ import annotations

from collections.abc import Iterator

from tileproof.verify.encode import Answer
from tileproof.verify.facts import Check
from tileproof.verify.model import Counterexample
from tileproof.verify.terms import const, evaluate, show

from ._run import PROVED, Goal, Launch, found, undecided


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per arithmetic node."""
    for check in launch.facts.checks:
        yield _fits(launch, check, on_host=False)
    if launch.host is not None:
        for check in launch.host.checks:
            yield _fits(launch, check, on_host=True)


def _fits(launch: Launch, check: Check, on_host: bool) -> Goal:
    engine = launch.engine
    if on_host:
        # The host runs before any block exists, so also for sizes that launch none.
        answer = engine.on_host(check.term, const(check.lo), const(check.hi), check.context)
    else:
        answer = engine.within(check.term, const(check.lo), const(check.hi), check.context)
    if answer.proved:
        return PROVED
    if answer.point is None:
        return undecided(answer, f"{check.what} of {check.site}")
    return found(_example(launch, check, answer, on_host), answer.point, answer.loads)


def _example(launch: Launch, check: Check, answer: Answer, on_host: bool) -> Counterexample:
    assert answer.point is not None
    point = answer.point.values
    where = "host: " if on_host else ""
    try:
        value = int(evaluate(check.term, point))
    except (KeyError, ZeroDivisionError):  # data decides, or a divisor that is 0 itself
        return Counterexample(
            "overflow",
            check.site,
            f"{where}{show(check.term)} does not fit {check.what}",
            **launch.describe(point),
        )
    outside = not check.lo <= value <= check.hi
    confirmed = outside and not answer.point.needs_data
    if confirmed and not on_host and check.what.startswith(("int", "cast")):
        overflows = launch.replay(point).overflows
        confirmed = any(node.same_as(check.node) for node, _ in overflows)
    limit = f"{check.lo}..{check.hi}"
    message = f"{where}{check.what} holds {limit}, the value is {value}"
    return Counterexample(
        "overflow", check.site, message, confirmed=confirmed, **launch.describe(point)
    )
