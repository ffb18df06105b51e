"""A loop whose trips cannot be counted, as one generic trip ``k``.

Sound for every trip: a register gets ``start + k * step`` only if a trip with arbitrary registers
adds a step that does not depend on anything the loop changes; every other register that the loop
writes may hold any value. ``k`` is bounded by the condition of the back edge, which held after
each of the trips before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import bits
from .bits import Term

if TYPE_CHECKING:
    from .execute import State, Thread

_ENDLESS = (1 << 40) - 1


def summarise(thread: Thread, header: int, state: State) -> list[tuple[int, State]]:
    """The loop's exits after any number of trips; its accesses are recorded for a generic one."""
    from .execute import State

    body = thread.graph.loops[header]
    changed = thread.written(body) & thread.graph.blocks[header].live_in
    mark = bits.serial()
    arbitrary = {r: bits.fresh(thread.entry.registers[r]) for r in sorted(changed)}
    recorded, unmodelled = len(thread.events), dict(thread.unmodelled)
    back, exits = thread.region(body, header, State(state.path, state.registers | arbitrary))
    del thread.events[recorded:]
    thread.unmodelled = unmodelled
    if back is None:
        return list(thread.region(body, header, state)[1].items())
    steps: dict[str, Term] = {}
    for r, h in arbitrary.items():
        after = back.registers.get(r)
        if after is None or r not in state.registers:
            continue
        step = bits.sub(after, h)
        if not any(_since(v, mark) for v in bits.variables(step)):
            steps[r] = step
    conditions = [c for p in back.path[len(state.path) :] for c in _parts(p)]

    def at(trip: Term) -> dict[Term, Term]:
        """The changed registers at the start of a trip."""
        return {
            arbitrary[r]: bits.add(
                state.registers[r], bits.mul(bits.resize(trip, s.width, True), s)
            )
            for r, s in steps.items()
        }

    known = [
        c
        for c in conditions
        if all(not _since(v, mark) or v in at(bits.const(0, 64)) for v in bits.variables(c))
    ]
    trip, facts = _trip(thread, state, known, at)
    previous = at(bits.sub(trip, bits.const(1, 64)))
    first = bits.eq(trip, bits.const(0, 64))
    facts += [bits.any_((first, bits.substitute(c, previous))) for c in known]
    now = at(trip)
    generic = {r: now[h] for r, h in arbitrary.items() if r in steps}
    registers = {r: v for r, v in state.registers.items() if r not in changed} | generic
    path = (*state.path, *(f for f in facts if bits.number(f) != 1))
    _, exits = thread.region(body, header, State(path, registers))
    return list(exits.items())


def _since(v: Term, mark: int) -> bool:
    """Whether a variable was made after `mark`: it stands for something the loop changes."""
    name = str(v.value)
    if not name.startswith("~") and not name.endswith("]"):
        return False  # a size, a place in the grid, a base address
    return int(name.rpartition("[")[2].strip("~k]")) > mark


def _parts(p: Term) -> tuple[Term, ...]:
    return p.args if p.op == "all" else (p,)


def _trip(thread, state, conditions, at) -> tuple[Term, list[Term]]:  # type: ignore[no-untyped-def]
    """The generic trip's number with the best bound that a condition gives."""
    best = None
    for c in conditions:
        negated = c.op == "not"
        inner = c.args[0] if negated else c
        bound = None
        if inner.op in ("slt", "ult"):
            a, b = inner.args
            if inner.op == "ult" and min(a.width, b.width) < 64:
                a, b = (bits.extend(t, 64, False) for t in (a, b))
            left, right = (b, a) if negated else (a, b)  # a < b, or b <= a
            bound = _falling(left, right, int(negated), at)
        elif inner.op == "eq" and negated:
            bound = _meeting(thread, state, inner, at)
        if bound is not None and (best is None or bound[0] < best[0]):
            best = bound
    most, facts = best or (_ENDLESS, None)
    trip = bits.var(f"~k{bits.serial()}", 64, (0, most))
    return trip, ([] if facts is None else facts(trip))


def _rate(t: Term, at) -> int | None:  # type: ignore[no-untyped-def]
    """How much `t` grows from trip to trip, if by a constant."""
    zero = bits.substitute(t, at(bits.const(0, 64)))
    wide = bits.var("~k-1", 64, (0, 1))
    moved = bits.substitute(t, at(wide))
    rate = bits.number(bits.substitute(bits.sub(moved, zero), {wide: bits.const(1, 64)}))
    if rate is None:
        return None
    return rate


def _exact(t: Term, rate: int, at, most: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether `t` grows by `rate` and does not wrap in trips 0..most."""
    trip = bits.var(f"~k{bits.serial()}", 64, (0, most))
    zero = bits.substitute(t, at(bits.const(0, 64)))
    moved = bits.substitute(t, at(trip))
    expected = bits.add(zero, bits.resize(trip, t.width, True), rate)
    return moved is expected and bits.fits(moved)


def _falling(left: Term, right: Term, slack: int, at):  # type: ignore[no-untyped-def]
    """``left < right + slack`` holds after each earlier trip, and the gap falls each time."""
    rates = _rate(left, at), _rate(right, at)
    if rates[0] is None or rates[1] is None or rates[0] <= rates[1]:
        return None
    start = at(bits.const(0, 64))
    low = bits.substitute(left, start).range[0]
    high = bits.substitute(right, start).range[1]
    most = max(0, -(-(high + slack - low) // (rates[0] - rates[1])))
    if most > _ENDLESS or not (
        _exact(left, rates[0], at, most) and _exact(right, rates[1], at, most)
    ):
        return None
    return most, None


def _meeting(thread, state, equal: Term, at):  # type: ignore[no-untyped-def]
    """``left != right`` after each earlier trip: the gap must close in whole steps from above."""
    left, right = equal.args
    rates = _rate(left, at), _rate(right, at)
    if None in rates or rates[0] == rates[1]:
        return None
    fast, slow = (r for r in rates if r is not None)
    if fast < slow:
        left, right, fast, slow = right, left, slow, fast
    start = at(bits.const(0, 64))
    ends = [bits.substitute(t, start) for t in (right, left)]
    gap = bits.sub(*(bits.extend(t, 64, True) for t in ends))
    rate = fast - slow
    constant, parts = bits.linear(gap)
    if constant % rate or any(c % rate for c in parts.values()) or not bits.fits(gap):
        return None
    most = max(0, gap.range[1] // rate)
    if most > _ENDLESS or not (_exact(left, fast, at, most) and _exact(right, slow, at, most)):
        return None
    if gap.range[0] < 0 and not thread.holds(
        state.path, bits.negate(bits.less(gap, bits.const(0, 64)))
    ):
        return None
    return most, lambda trip: [bits.negate(bits.less(gap, bits.scale(trip, rate)))]
