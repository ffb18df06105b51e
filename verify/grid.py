"""Barriers of the whole grid: when two accesses of different blocks may meet in spite of them.

A barrier orders what comes before it in any block and what comes after it in any other, if every
thread of the grid comes to it (which `barriers` proves of it) and the launch is cooperative, so
that all blocks run at once. A copy by cp.async begins after the barrier before it and may last
beyond the next. Accesses of the asynchronous proxy are not ordered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .facts import Access, Facts, Sync
from .terms import Symbol, Term, add, apply, const, sub, var

RESIDENT = "all blocks of a cooperative launch are on the device at once, else a driver refuses it"


@dataclass(frozen=True)
class Order:
    """When nothing orders two accesses; `open` if a barrier was left out of account."""

    unordered: Term
    open: bool


def barriers(facts: Facts) -> list[Sync]:
    """The barriers of the whole grid."""
    return [s for s in facts.syncs if s.effect.collective == "grid"]


def order(
    usable: list[Sync],
    first: Access,
    second: Access,
    twin: Mapping[Symbol, Term],
    least: Callable[[Term], int],
) -> Order:
    """What `usable` barriers do to two accesses, in terms of `twin`'s loop variables of `second`.

    `least` is a lower bound of a term.
    """
    if any(a.asynchronous and not _begins_in_order(a) for a in (first, second)):
        return Order(const(1), bool(usable))
    left_out = False
    loops: dict[Symbol, list[Sync]] = {}
    known = {*first.context.path, *second.context.path}
    early, late = sorted((first, second), key=lambda a: a.order)
    for s in usable:
        if not known.issuperset(s.context.path) or len(s.context.loops) > 1:
            left_out = True
            continue
        if not s.context.loops:
            if early.order < s.order < late.order:
                if not early.asynchronous:
                    return Order(const(0), False)
                left_out = True
            continue
        (loop,) = s.context.loops
        inside = [loop in a.context.loops for a in (early, late)]
        if any(loop in c.symbols for c in s.context.path):
            left_out = True
        elif all(inside):
            loops.setdefault(loop, []).append(s)
        elif (
            early.order < s.order < late.order
            and not early.asynchronous
            and (any(inside) or least(sub(loop.hi, loop.lo)) >= 0)
        ):
            return Order(const(0), False)
        else:
            left_out = True
    unordered = const(1)
    for loop, within in loops.items():
        unordered = apply("and", unordered, _iterations(within, first, second, loop, twin[loop]))
        left_out = left_out or first.asynchronous or second.asynchronous
    return Order(unordered, left_out)


def _begins_in_order(access: Access) -> bool:
    name = str(access.node.op.name) if type(access.node).__name__ == "Call" else ""
    return name == "tl.ptx_cp_async"


def _iterations(
    within: list[Sync], first: Access, second: Access, loop: Symbol, other: Term
) -> Term:
    """In which iterations of a loop around both no barrier `within` it stands between the two.

    From one iteration to the next but one there is always one, which ends no copy before it.
    """
    one = var(loop)
    meet = const(0)
    early, late = sorted((first, second), key=lambda a: a.order)
    if early.asynchronous or not any(early.order < s.order < late.order for s in within):
        meet = apply("eq", one, other)
    for a, b, at, then in ((first, second, one, other), (second, first, other, one)):
        if a.asynchronous:
            meet = apply("or", meet, apply("lt", at, then))
        elif not any(a.order < s.order or s.order < b.order for s in within):
            meet = apply("or", meet, apply("eq", then, add(at, const(1))))
    return meet
