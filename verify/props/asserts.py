"""What a program says of itself: every ``T.device_assert`` holds, every ``T.assume`` follows.

TileLang simplifies guards by what it is told to assume, so an assumption that the contracts do not
imply may have removed the very check that would have caught its failure.
"""

from __future__ import annotations

from collections.abc import Iterator

from tileproof.verify.encode import Answer, Engine
from tileproof.verify.facts import Claim, Facts
from tileproof.verify.model import Counterexample, Verdict
from tileproof.verify.terms import apply

from ._run import PROVED, Goal, Launch, found, undecided


def settle(facts: Facts, engine: Engine) -> None:
    """Decide which claims the rest of the program may rely on, in program order.

    After ``device_assert`` its condition is known, since the kernel would have stopped; an
    assumption is known where it follows from what is known already.
    """
    for claim in facts.claims:
        claim.held = claim.traps or _answer(engine, claim).proved


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per claim."""
    for claim in launch.facts.claims:
        answer = _answer(launch.engine, claim)
        if answer.proved:
            yield PROVED
        elif answer.point is None:
            yield undecided(answer, _name(claim))
        elif claim.traps or answer.point.numbers:
            yield found(_example(launch, claim, answer), answer.point, answer.loads)
        else:
            why = f"{_name(claim)} does not follow from the contracts"
            yield Goal(Verdict.ALARM, why, _example(launch, claim, answer))


def _answer(engine: Engine, claim: Claim) -> Answer:
    return engine.never(apply("not", claim.term), claim.context)


def _name(claim: Claim) -> str:
    return f"T.{'device_assert' if claim.traps else 'assume'}({claim.site})"


def _example(launch: Launch, claim: Claim, answer: Answer) -> Counterexample:
    assert answer.point is not None
    point = answer.point.values
    decided = launch.replay(point).decided
    fails = any(node.same_as(claim.node) and values == (0,) for node, values in decided)
    return Counterexample(
        "asserts",
        claim.site,
        f"{_name(claim)} fails",
        confirmed=fails and not answer.loads,
        **launch.describe(point),
    )
