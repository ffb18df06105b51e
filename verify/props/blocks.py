"""Two different blocks never touch the same element of a tensor that either of them writes.

Blocks run in any order and at the same time, so such a pair would make the result depend on luck,
unless a barrier of the whole grid stands between the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tileproof.verify import grid, terms
from tileproof.verify.digits import Digit, difference
from tileproof.verify.encode import Answer
from tileproof.verify.facts import Access, Context
from tileproof.verify.model import Counterexample, Step, Verdict
from tileproof.verify.terms import Poly, Symbol, Term, apply, const, le, poly, sub, var

from . import barriers
from ._run import PROVED, Goal, Launch, found, undecided
from .bounds import digit_holds

# (digit, its extent, block index or None for a period, coefficient), outermost first
Spread = tuple[tuple[int, Term, Symbol | None, int], ...]


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per pair of accesses to a written tensor, at least one of them a write."""
    blocks = [b for b in launch.facts.blocks if launch.engine.ranges.of(var(b))[1] > 0]
    written = dict.fromkeys(
        a.buffer.tensor for a in launch.facts.accesses if a.mode == "write" and a.buffer.tensor
    )
    for tensor in written:
        sites = [a for a in launch.facts.accesses if a.buffer.tensor == tensor]
        spreads = {a: _spread(launch, a, blocks) for a in sites}
        for i, first in enumerate(sites):
            for second in sites[i:]:
                atomic = first.atomic and second.atomic  # no race; order: see determinism
                if "write" in (first.mode, second.mode) and not atomic:
                    same = spreads[first] is not None and spreads[first] == spreads[second]
                    yield PROVED if same else _apart(launch, first, second, blocks)


def _spread(launch: Launch, access: Access, blocks: list[Symbol]) -> Spread | None:
    """How blocks spread an access over the tensor, if each keeps to ranges of its own.

    In each digit, less the multiples of a period, the block indices must be the leading digits of a
    mixed radix: with coefficients c1 > c2 > …, what follows ci stays within 0..ci. Then different
    blocks differ in a leading digit, whatever else they do, and this holds between any two accesses
    spread alike.
    """
    for digits in (access.digits, access.coordinates):
        if digits and (spread := _over(launch, access, digits, blocks)) is not None:
            return spread
    return None


def _over(
    launch: Launch, access: Access, digits: list[Digit], blocks: list[Symbol]
) -> Spread | None:
    if len(digits) != 1 and not all(digit_holds(launch, d, access).proved for d in digits):
        return None
    spread: list[tuple[int, Term, Symbol | None, int]] = []
    for position, digit in enumerate(digits):
        parts = difference(digit.term, blocks)
        if parts is None:
            return None
        order = sorted(parts[0].items(), key=lambda item: -item[1])
        if not order:
            continue
        symbol, coefficient = order[0]
        period = coefficient * (launch.engine.ranges.of(var(symbol))[1] + 1)
        rest = _less_multiples(parts[1], period)
        steps: list[tuple[int, Term]] = []
        for symbol, coefficient in reversed(order):
            steps.append((coefficient, rest))
            rest = terms.add(rest, terms.mul(var(symbol), const(coefficient)))
        if poly(rest).terms != poly(digit.term).terms:
            steps.append((period, rest))
            spread.append((position, digit.extent, None, period))
        for coefficient, tail in steps:
            if coefficient <= 0 or not _below(launch, access, digit, tail, coefficient):
                return None
        spread += [(position, digit.extent, symbol, coefficient) for symbol, coefficient in order]
    if not {symbol for _, _, symbol, _ in spread} >= set(blocks):
        return None  # blocks that differ only in a missing index would meet
    return tuple(spread)


def _less_multiples(term: Term, period: int) -> Term:
    """The summands of a term that are no multiples of `period`."""
    form = poly(term)
    kept = {m: c for m, c in form.terms.items() if period <= 0 or c % period}
    return Poly(kept, form.atoms).term()


def _below(launch: Launch, access: Access, digit: Digit, tail: Term, coefficient: int) -> bool:
    last = const(coefficient - digit.lanes)
    return launch.engine.within(tail, const(0), last, access.context).proved


def _apart(launch: Launch, first: Access, second: Access, blocks: list[Symbol]) -> Goal:
    """The general question, with two of everything: can two different blocks meet?"""
    verb = "both write" if second.mode == first.mode else "read and write"
    message = f"blocks {{}} and {{}} {verb} {{}} of {first.buffer.tensor}"
    return meeting(launch, first, second, blocks, "blocks", message)


def meeting(
    launch: Launch,
    first: Access,
    second: Access,
    apart: list[Symbol],
    name: str,
    message: str,
) -> Goal:
    """PROVED if threads that differ in one of the indices `apart` never touch the same element.

    `message` has places for both and for the element. In shared memory they are of one block.
    """
    shared = not first.buffer.tensor
    twin = _twins(launch, second, launch.facts.blocks if shared else [])
    path = tuple(terms.substitute(c, twin) for c in second.context.path)
    loops = tuple(twin[s].value for s in second.context.loops)
    between = grid.order(
        barriers.of_grid(launch), first, second, twin, lambda t: launch.engine.ranges.of(t)[0]
    )
    differ = const(0)
    for b in apart:
        differ = apply("or", differ, apply("ne", var(b), twin[b]))
    overlap = _overlap(launch, first, second, twin)
    context = Context((*first.context.path, *path), (*first.context.loops, *loops))
    everyone = [*launch.facts.symbols.values()]
    extra = [*everyone, *(twin[s].value for s in everyone if s in twin)]
    violation = apply("and", apply("and", differ, overlap), between.unordered)
    answer = launch.engine.never(violation, context, extra)
    if answer.proved:
        return PROVED
    what = f"{name} of {first.site} and {second.site}"
    if answer.point is None:
        return undecided(answer, what)
    if between.open:
        missing = "a barrier of the grid may order them, which is not followed"
        return Goal(Verdict.UNKNOWN, f"{what}: {missing}")
    example = _example(launch, first, second, twin, answer, name, message)
    return found(example, answer.point, answer.loads)


def _overlap(launch: Launch, first: Access, second: Access, twin: dict[Symbol, Term]) -> Term:
    """That two accesses of one tensor share an element: digit by digit where each lies in its
    range, which spares the solver products of unknowns."""
    mine, other = [Digit(first.index, const(0), first.lanes)], [second.index]
    if len(first.digits) == len(second.digits) > 1 and all(
        digit_holds(launch, d, a).proved for a in (first, second) for d in a.digits
    ):
        mine, other = first.digits, [d.term for d in second.digits]
    overlap = const(1)
    for position, (digit, term) in enumerate(zip(mine, other, strict=True)):
        gap = sub(terms.substitute(term, twin), digit.term)
        lanes = second.lanes if position == len(mine) - 1 else 1
        near = apply("and", le(const(1 - lanes), gap), le(gap, const(digit.lanes - 1)))
        overlap = apply("and", overlap, near)
    return overlap


def _twins(launch: Launch, access: Access, alike: list[Symbol]) -> dict[Symbol, Term]:
    """A second copy of every index but those `alike`, and of data; sizes, which all blocks see
    alike, stay shared."""
    twin: dict[Symbol, Term] = {}
    mentioned = access.index.symbols.union(*(c.symbols for c in access.context.path))
    data = sorted((s for s in mentioned if s.kind == "opaque"), key=lambda s: s.name)
    indices = [s for s in launch.facts.symbols.values() if s not in alike]
    for s in (*indices, *access.context.loops, *data):
        lo, hi = terms.substitute(s.lo, twin), terms.substitute(s.hi, twin)
        twin[s] = var(Symbol(s.name, s.kind, lo, hi, s.origin))
    return twin


def _example(
    launch: Launch,
    first: Access,
    second: Access,
    twin: dict[Symbol, Term],
    answer: Answer,
    name: str,
    message: str,
) -> Counterexample:
    assert answer.point is not None
    values = answer.point.values
    copies = {t.value: s for s, t in twin.items()}
    one = {s: v for s, v in values.items() if s not in copies}
    two = {s: v for s, v in one.items() if s.kind in ("dim", "block")}
    two |= {copies[s]: v for s, v in values.items() if s in copies}
    tensor = first.buffer.tensor
    shared = None
    for a in launch.replay(one).touched:
        for b in launch.replay(two).touched:
            meets = max(a.offset, b.offset) < min(a.offset + a.lanes, b.offset + b.lanes)
            modes = {a.mode, b.mode}
            if a.memory == b.memory == tensor and meets and "write" in modes:
                shared = max(a.offset, b.offset)
    places = [launch.describe(p) for p in (one, two)]
    who = [p["block"] if name == "blocks" else (p["block"], p["thread"]) for p in places]
    where = "an element" if shared is None else f"element {shared}"
    return Counterexample(
        name,
        first.site,
        message.format(*who, where),
        buffer=tensor,
        offset=shared,
        steps=tuple(_step(a, p) for a, p in zip((first, second), places, strict=True)),
        confirmed=shared is not None and who[0] != who[1],
        **places[0],
    )


def _step(access: Access, place: dict[str, Any]) -> Step:
    verb = "writes" if access.mode == "write" else "reads"
    here = {k: place[k] for k in ("block", "thread", "loops")}
    return Step(f"{verb} {access.buffer.tensor}", access.site, **here)
