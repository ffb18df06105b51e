"""A loop whose trips cannot be counted, as one generic trip ``k``.

Sound for every trip: a register gets ``start + k * step`` only if a trip with arbitrary registers
adds a step that does not depend on anything the loop changes; every other register that the loop
writes may hold any value. A step is a factor times a unit: 1, or an unknown positive number such as
that of blocks. Registers with one unit share a clock, ``k * unit``, of which a proof needs only
that it is no less than k; so steps stay linear. Clocks are bounded by the condition of the back
edge, which held after each of the trips before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

from . import bits, walk
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
    steps: dict[str, tuple[Term, int]] = {}
    for r, h in arbitrary.items():
        after = back.registers.get(r)
        if after is None or r not in state.registers:
            continue
        step = bits.sub(after, h)
        if any(_since(v, mark) for v in walk.variables(step)):
            continue
        if (found := _unit(step)) is not None:
            steps[r] = found
    conditions = [c for p in back.path[len(state.path) :] for c in _parts(p)]
    clocks = list(dict.fromkeys(unit for unit, _ in steps.values()))

    def at(ticks: Mapping[Term, Term]) -> dict[Term, Term]:
        """The changed registers when each clock shows so much; one that is left out shows 0."""
        return {
            arbitrary[r]: bits.add(
                state.registers[r], bits.resize(ticks[unit], arbitrary[r].width, True), factor
            )
            if unit in ticks
            else state.registers[r]
            for r, (unit, factor) in steps.items()
        }

    tracked = set(at({}))
    known = [
        c for c in conditions if all(not _since(v, mark) or v in tracked for v in walk.variables(c))
    ]
    loop = _Loop(thread, state, known, at, {arbitrary[r]: unit for r, (unit, _) in steps.items()})
    ticks, facts = {}, []
    for unit in clocks:
        most, bound = loop.bound(unit)
        ticks[unit] = bits.var(f"~k{bits.serial()}", 64, (0, most), unit.zeros)
        facts += bound(ticks[unit])
    before = {unit: bits.sub(tick, unit) for unit, tick in ticks.items()}
    if ticks:
        first = bits.eq(next(iter(ticks.values())), bits.const(0, 64))
        facts += [bits.any_((first, walk.substitute(c, at(before)))) for c in known]
    one = bits.const(1, 64)
    trips = ticks.get(one)
    if trips is not None:  # k trips are k * unit >= k
        facts += [bits.negate(bits.less(tick, trips)) for tick in ticks.values()]
    for unit, tick in ticks.items():
        if unit is not one:
            k = trips or bits.var(f"~k{bits.serial()}", 64, (0, tick.range[1]))
            thread.exact[tick] = bits.eq(tick, bits.mul(k, unit))
    now = at(ticks)
    generic = {
        r: now[h] if r in steps else bits.fresh(h.width, bits.LOOP) for r, h in arbitrary.items()
    }
    registers = {r: v for r, v in state.registers.items() if r not in changed} | generic
    path = (*state.path, *(f for f in facts if bits.number(f) != 1))
    _, exits = thread.region(body, header, State(path, registers))
    return list(exits.items())


def _unit(step: Term) -> tuple[Term, int] | None:
    """A step as a factor times a positive unit of 64 bits; None if its sign is not known."""
    if (n := bits.number(step)) is not None:
        return bits.const(1, 64), n
    constant, parts = bits.linear(step)
    factor = gcd(constant, *parts.values())
    for f in (factor, -factor):
        whole = bits.combine(step.width, constant // f, {a: c // f for a, c in parts.items()})
        if whole.range[0] > 0 and bits.fits(whole):
            return bits.extend(whole, 64, True), f
    return None


def _since(v: Term, mark: int) -> bool:
    """Whether a variable was made after `mark`: it stands for something the loop changes."""
    name = str(v.value)
    if not name.startswith("~") and not name.endswith("]"):
        return False  # a size, a place in the grid, a base address
    return int(name.rpartition("[")[2].strip("~k]")) > mark


def _parts(p: Term) -> tuple[Term, ...]:
    return p.args if p.op == "all" else (p,)


At = Callable[[Mapping[Term, Term]], dict[Term, Term]]
Bound = tuple[int, Callable[[Term], list[Term]]]


@dataclass
class _Loop:
    """A loop's start, the conditions that held after each earlier trip, and its registers."""

    thread: Thread
    state: State
    conditions: list[Term]
    at: At
    units: Mapping[Term, Term]

    def bound(self, unit: Term) -> Bound:
        """The best upper bound of a clock that a condition gives, and facts of its tick."""
        best: Bound = _ENDLESS, lambda tick: []
        for c in self.conditions:
            if any(self.units.get(v, unit) is not unit for v in walk.variables(c)):
                continue
            negated = c.op == "not"
            inner = c.args[0] if negated else c
            found = None
            if inner.op in ("slt", "ult"):
                a, b = inner.args
                if inner.op == "ult" and min(a.width, b.width) < 64:
                    a, b = (bits.extend(t, 64, False) for t in (a, b))
                left, right = (b, a) if negated else (a, b)  # a < b, or b <= a
                found = self._falling(left, right, int(negated), unit)
            elif inner.op == "eq" and negated and bits.number(unit) == 1:
                found = self._meeting(inner)
            if found is not None and found[0] < best[0]:
                best = found
        return best

    def _start(self, t: Term) -> Term:
        return walk.substitute(t, self.at({}))

    def _rate(self, t: Term, unit: Term) -> int | None:
        """How much `t` grows with a clock, if by a constant, while all other clocks stand still."""
        tick = bits.var("~k-1", 64, (0, 1))
        moved = walk.substitute(t, self.at({unit: tick}))
        change = bits.sub(moved, self._start(t))
        return bits.number(walk.substitute(change, {tick: bits.const(1, 64)}))

    def _exact(self, t: Term, rate: int, unit: Term, most: int) -> bool:
        """Whether `t` grows by `rate` and does not wrap while the clock shows 0 to `most`."""
        tick = bits.var(f"~k{bits.serial()}", 64, (0, most))
        moved = walk.substitute(t, self.at({unit: tick}))
        expected = bits.add(self._start(t), bits.resize(tick, t.width, True), rate)
        return moved is expected and bits.fits(moved)

    def _falling(self, left: Term, right: Term, slack: int, unit: Term) -> Bound | None:
        """``left < right + slack`` holds after each earlier trip, and the gap falls each time."""
        rates = self._rate(left, unit), self._rate(right, unit)
        if rates[0] is None or rates[1] is None or rates[0] <= rates[1]:
            return None
        gap = self._start(right).range[1] + slack - self._start(left).range[0]
        # The clock before this trip's was below gap / (fall of one tick).
        most = max(0, -(-gap // (rates[0] - rates[1])) - 1 + unit.range[1]) if gap > 0 else 0
        exact = self._exact(left, rates[0], unit, most) and self._exact(right, rates[1], unit, most)
        return (most, lambda tick: []) if exact and most <= _ENDLESS else None

    def _meeting(self, equal: Term) -> Bound | None:
        """``left != right`` after each earlier trip: the gap closes in whole steps from above."""
        left, right = equal.args
        one = bits.const(1, 64)
        rates = self._rate(left, one), self._rate(right, one)
        if rates[0] is None or rates[1] is None or rates[0] == rates[1]:
            return None
        fast, slow = rates[0], rates[1]
        if fast < slow:
            left, right, fast, slow = right, left, slow, fast
        gap = bits.sub(*(bits.extend(self._start(t), 64, True) for t in (right, left)))
        rate = fast - slow
        if not bits.fits(gap):
            return None
        most = max(0, gap.range[1] // rate)
        if most > _ENDLESS or not (
            self._exact(left, fast, one, most) and self._exact(right, slow, one, most)
        ):
            return None
        zero = bits.const(0, 64)
        left_over = bits.divide("urem", gap, bits.const(rate, 64))
        wanted = bits.negate(bits.less(gap, zero)), bits.eq(left_over, zero)
        if not all(self.thread.holds(self.state.path, w) for w in wanted):
            return None
        return most, lambda tick: [bits.negate(bits.less(gap, bits.scale(tick, rate)))]
