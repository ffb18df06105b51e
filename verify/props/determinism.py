"""The same bits every time, for a row of a batch whatever lies beside it.

Determinism: no atomic operation whose order reaches a result. Blocks that write apart (property
``blocks``) then leave nothing to luck.

Batch invariance, where the contract names batch dims. Take two runs of a block for the same place
in its tile, with other batch sizes and other block indices, on equal data. By induction over the
program they do the same, row for row, if
  1. no bound of a loop, condition or integer used as data differs between them, except a guard that
     holds for every row that exists;
  2. every access has the same columns in both, or the same place in memory of its block;
  3. a block reads no row it does not write, be it at a place of its own that the row's data
     chooses (the contract of an index whose elements are distinct);
  4. rows of one tile do not mix and are treated alike, which executing one tile shows
     (``alike.py``): by 1 to 3 every other tile does the same. It shows as well that no output hangs
     on what lay in shared or local memory before; a block of one row that it cannot follow is left
     with a remark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from tileproof.verify import rows, terms
from tileproof.verify.alike import run_tile
from tileproof.verify.encode import Answer
from tileproof.verify.facts import Access, Context, Decision
from tileproof.verify.flow import UnfollowedError
from tileproof.verify.intrinsics import UnmodelledError
from tileproof.verify.model import Counterexample, Step, Verdict
from tileproof.verify.rows import Place, RowlessError
from tileproof.verify.terms import Symbol, Term, apply, const, le, mul, var

from ._run import PROVED, Goal, Launch, undecided
from .blocks import meeting

# Integer operations that commute exactly. Of two zeros or NaNs a float maximum may pick either.
_COMMUTE = {"add", "max", "min", "or"}


def goals(launch: Launch) -> Iterator[Goal]:
    """Obligations of determinism per tensor written, of batch invariance per decision, access."""
    if not launch.domain.deterministic:
        return
    for tensor in dict.fromkeys(
        a.buffer.tensor for a in launch.facts.accesses if a.mode == "write"
    ):
        if tensor:
            sites = [a for a in launch.facts.accesses if a.buffer.tensor == tensor and a.atomic]
            integer = "int" in launch.domain.tensors[tensor].dtype
            yield _ordered(launch, tensor, sites, integer)
    for name, sites in _in_shared(launch).items():
        yield _ordered(launch, name, sites, all(map(_is_integer, sites)))
    if launch.domain.batch and any(a.buffer.tensor for a in launch.facts.accesses):
        yield from _Batch(launch).goals()


def _in_shared(launch: Launch) -> dict[str, list[Access]]:
    """Atomic accesses to each buffer in shared memory."""
    found: dict[str, list[Access]] = {}
    for a in launch.facts.accesses:
        if a.atomic and not a.buffer.tensor:
            found.setdefault(a.buffer.name, []).append(a)
    return found


def _is_integer(access: Access) -> bool:
    """Whether an atomic access in shared memory is to integers, by the type of its pointer."""
    pointer = access.node.args[0]
    typed = type(pointer).__name__ == "Call" and str(pointer.op.name) == "tirx.tvm_access_ptr"
    return typed and "int" in str(pointer.args[0].dtype)


def _ordered(launch: Launch, name: str, sites: list[Access], integer: bool) -> Goal:
    """No two threads meet in an element through atomics whose order shows; in shared memory, no
    two of a block, where barriers between them are not looked at."""
    shown = [a for a in sites if not (integer and a.atomic in _COMMUTE)]
    if integer and len({a.atomic for a in sites}) > 1:
        shown = sites  # each commutes with itself only
    shared = any(not a.buffer.tensor for a in sites)
    everyone = launch.facts.threads if shared else [*launch.facts.symbols.values()]
    message = f"threads {{}} and {{}} meet atomically in {{}} of {name}: their order shows"
    for first in shown:
        for second in sites:
            if first.mode == second.mode == "read":
                continue
            goal = meeting(launch, first, second, everyone, "determinism", message)
            if goal is not PROVED:
                return goal
    return PROVED


class _Batch:
    """The obligations of batch invariance of one launch."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.facts, self.domain, self.engine = launch.facts, launch.domain, launch.engine
        self.places: dict[Access, Place] = {}
        self.reasons: list[str] = []
        for a in launch.facts.accesses:
            if not a.buffer.tensor:
                continue
            try:
                self.places[a] = rows.place(a, self.domain, self.engine)
            except RowlessError as why:
                self.reasons.append(f"{a.site}: {why}")
        self.moves = rows.moving(self.facts, self.domain, self.places.values())
        self.twin = rows.twins(self.moves)

    def goals(self) -> Iterator[Goal]:
        yield from (Goal(Verdict.UNKNOWN, reason) for reason in self.reasons)
        for decision in self.facts.decisions:
            yield from self.decided(decision)
        for access, place in self.places.items():
            yield self.same(place.columns, access.context, access, _column_message)
        for access in self.facts.accesses:
            if not access.buffer.tensor:
                yield self.same((access.index,), access.context, access, _element_message)
        yield from self.neighbours()
        found = self.tile()
        if found.verdict is Verdict.UNKNOWN and self.single_row:
            # Nothing can mix; what is left open is whether all that is read was written.
            why = "whether an output hangs on memory of its block that nobody wrote is not known"
            self.launch.remarks.append(f"{why}: {found.reason}")
            found = PROVED
        yield found

    def decided(self, decision: Decision) -> Iterator[Goal]:
        """Each part of a condition, the bounds of a loop, or a value."""
        if decision.what != "condition":
            message = _loop_message if decision.what == "loop" else _value_message
            goal = self.same(decision.terms, decision.context, decision, message)
            if goal is not PROVED and self.walks_rows(decision):
                name = decision.node.loop_var.name
                why = f"loop {name} goes from row to row: what it carries along is not followed"
                goal = Goal(Verdict.UNKNOWN, why)
            yield goal
            return
        context = decision.context
        for part in terms.conjuncts(decision.terms[0]):
            if not self.row_exists(part):
                yield self.same((part,), context, decision, _condition_message)
            context = context.given(part)

    def walks_rows(self, decision: Decision) -> bool:
        """Whether a loop's index steps through the rows of an access: more trips are more rows."""
        if decision.what != "loop":
            return False
        sums = [terms.poly(p.row).atoms for p in self.places.values() if p.row is not None]
        steps = [a.value for atoms in sums for a in atoms.values() if a.op == "var"]
        return any(s.kind == "loop" and s.origin.same_as(decision.node.loop_var) for s in steps)

    def row_exists(self, condition: Term) -> bool:
        """Whether a condition holds wherever the row it guards is one of the tensor's."""
        guarded = [
            (a, p.row)
            for a, p in self.places.items()
            if p.row is not None and any(c is condition for c in a.context.path)
        ]
        for access, row in guarded:
            path = tuple(c for c in access.context.path if c is not condition)
            count = self.rows_in(access)
            real = apply("and", le(const(0), row), apply("lt", row, count))
            missed = apply("and", real, apply("not", condition))
            if not self.engine.never(missed, Context(path, access.context.loops)).proved:
                return False
        return bool(guarded)

    def rows_in(self, access: Access) -> Term:
        batch = {self.domain.dims[name] for name in self.domain.batch}
        shape = self.domain.tensors[access.buffer.tensor].shape
        return next(n for n in shape if n.symbols & batch)

    def same(self, found: tuple[Term, ...], context: Context, what: Any, message: Any) -> Goal:
        """Terms that two runs must agree on, given the same data of a row in both.

        That the data is the row's own is for :meth:`tile` to show, or to give up where data decides
        what is done rather than which value it is done with.
        """
        memo: dict[int, Term] = {}
        known = [rows.same_data(t, memo) for t in found]
        moved = [terms.substitute(t, self.twin) for t in known]
        differ = const(0)
        for a, b in zip(known, moved, strict=True):
            if terms.poly(a).terms != terms.poly(b).terms:
                differ = apply("or", differ, apply("ne", a, b))
        if differ.is_const and not differ.value:
            return PROVED
        extra = [*self.facts.symbols.values(), *(t.value for t in self.twin.values())]
        answer = self.engine.never(differ, rows.both(context, self.twin, memo), extra)
        if answer.proved:
            return PROVED
        if answer.point is None:
            return undecided(answer, f"batch invariance of {what.site}")
        return self.report(what, message, answer)

    @cached_property
    def single_row(self) -> bool:
        """Whether each block works on one row, so that nothing in it can belong to another."""
        try:
            sets = [
                rows.rows_of_a_block(a, p.row, self.moves, self.facts)[1]
                for a, p in self.places.items()
                if p.row is not None
            ]
        except RowlessError:
            return False
        return all(len(s) <= 1 for s in sets)

    def neighbours(self) -> Iterator[Goal]:
        """Every row a block reads is one it writes."""
        written: dict[frozenset[tuple[Symbol, int]], set[int]] = {}
        reads = []
        for access, place in self.places.items():
            row = place.row
            if row is None and access.mode == "write":
                row = self.chosen_by(access)
            if row is None:
                continue
            try:
                steps, offsets = rows.rows_of_a_block(access, row, self.moves, self.facts)
            except RowlessError as why:
                yield Goal(Verdict.UNKNOWN, f"rows of {access.site}: {why}")
                continue
            if access.mode == "read":
                reads.append((access, frozenset(steps.items()), offsets))
            else:
                written.setdefault(frozenset(steps.items()), set()).update(offsets.tolist())
        for access, step, offsets in reads:
            strange = sorted(set(offsets.tolist()) - written.get(step, set()))
            yield self.neighbour(access, strange[0]) if strange else PROVED

    def chosen_by(self, access: Access) -> Term | None:
        """The row whose index says where an access goes, in a tensor without rows: it is that row's
        own place if no other row can have the same index."""
        for load in access.index.loads():
            index = self.domain.tensors[load.value]
            batch = {self.domain.dims[name] for name in self.domain.batch}
            own = index.values is not None and index.values.distinct
            if own and len(index.shape) == 1 and index.shape[0].symbols & batch:
                return load.args[0]
        return None

    def neighbour(self, access: Access, offset: int) -> Goal:
        what = f"{access.site} reads a row that its block does not write ({offset:+d})"
        # Where that row exists; whether its data matters, the addresses do not say.
        row = self.places[access].row
        assert row is not None
        real = apply("and", le(const(0), row), apply("lt", row, self.rows_in(access)))
        answer = self.engine.never(real, access.context)
        if answer.proved:
            return PROVED
        if answer.point is None:
            return undecided(answer, what)
        point = answer.point.values
        example = Counterexample("determinism", access.site, what, **self.launch.describe(point))
        return Goal(Verdict.ALARM, what, example)

    def columns_only(self) -> list[Symbol]:
        """Blocks that choose among columns and nothing else: one of them speaks for all."""
        deciding = [t for d in self.facts.decisions for t in d.terms]
        deciding += [p.row for p in self.places.values() if p.row is not None]
        deciding += [a.index for a in self.facts.accesses if not a.buffer.tensor]
        return [b for b in self.facts.blocks if not any(b in t.symbols for t in deciding)]

    def tile(self) -> Goal:
        """One whole tile, executed on labels of rows and words for expressions."""
        name = self.facts.name
        batch = [self.domain.dims[name] for name in self.domain.batch]
        sized = {
            s
            for d in self.facts.decisions
            for t in d.terms
            for s in t.symbols
            if s.kind == "dim" and s not in batch
        }
        try:
            if len(batch) != 1:
                raise RowlessError("more than one batch dim")
            widths = [self.widths(s) for s in sorted(sized, key=lambda s: s.name)]
            rows_of = [
                rows.rows_of_a_block(a, p.row, self.moves, self.facts)[1]
                for a, p in self.places.items()
                if p.row is not None
            ]
            if not rows_of:
                raise RowlessError("no access has a row")
            count = 1 + int(max(r.max() for r in rows_of))
            lowest, multiple = int(batch[0].lo.value), self.domain.multiples.get(batch[0].name, 1)
            count = -(-max(count, lowest) // multiple) * multiple
            alone = {*self.moves, *self.columns_only()}
            choices = list(map(dict, itertools.product(*widths)))
            found = run_tile(self.launch, batch[0], count, choices, alone, self.places)
        except (RowlessError, UnfollowedError, UnmodelledError) as why:
            return Goal(Verdict.UNKNOWN, f"rows of a tile of {name}: {why}")
        if not found:
            return PROVED
        example = Counterexample("determinism", name, found, sizes={batch[0].name: count})
        return Goal(Verdict.ALARM, found, example)

    def widths(self, size: Symbol) -> list[tuple[Symbol, int]]:
        """Values of a size that speak for all: those up to the columns of one block.

        They do if block b of `width` columns decides at ``size`` what block 0 decides at
        ``min(size - b * width, width)``, as guards of a last block that is not full do.
        Raises UnfollowedError where that is not shown.
        """
        unknown = UnfollowedError(f"loops depend on {size.name}")
        blocks = [b for b in self.facts.blocks if b.hi.symbols == {size}]
        if len(blocks) != 1:
            raise unknown
        (block,) = blocks
        many = 1 << 30
        width = many // (1 + int(terms.evaluate(block.hi, {size: many})))
        left = terms.sub(var(size), mul(const(width), var(block)))
        first = {size: apply("min", left, const(width)), block: const(0)}
        deciding = [(d.terms, d.context) for d in self.facts.decisions]
        deciding += [((p.row,), a.context) for a, p in self.places.items() if p.row is not None]
        deciding += [((a.index,), a.context) for a in self.facts.accesses if not a.buffer.tensor]
        memo: dict[int, Term] = {}  # a tile that decides by data is not followed
        for found, context in deciding:
            for t in (rows.same_data(t, memo) for t in found):
                other = terms.substitute(t, first)
                differ = apply("ne", t, other)
                if other is not t and not self.engine.never(differ, context, first).proved:
                    raise unknown
        exists = apply("lt", const(0), left)
        if not self.engine.never(apply("not", exists), Context(), first).proved:
            raise unknown
        step = math.gcd(width, self.domain.multiples.get(size.name, 1))
        return [(size, n) for n in range(step, width + 1, step)]

    def report(self, what: Any, message: Any, answer: Answer) -> Goal:
        """A pair of runs that part: REFUTED if executing the IR twice shows it."""
        assert answer.point is not None
        values = answer.point.values
        copies = {t.value: s for s, t in self.twin.items()}
        one = {s: v for s, v in values.items() if s not in copies}
        two = {s: v for s, v in one.items() if s not in self.twin}
        two |= {copies[s]: v for s, v in values.items() if s in copies}
        results = [self.outcome(what, p) for p in (one, two)]
        confirmed = None not in results and results[0] != results[1]
        places = [self.launch.describe(p) for p in (one, two)]
        seen = [message(what, r) if confirmed else f"{what.site}" for r in results]
        where = [f"{_sizes(p)}, block {p['block']}" for p in places]
        text = f"{seen[0]} for {where[0]} but {seen[1]} for {where[1]}"
        if not confirmed:
            text = f"{what.site} may differ between {where[0]} and {where[1]}"
        steps = tuple(
            Step(f"{s} at {_sizes(p)}", what.site, p["block"], p["thread"], p["loops"])
            for s, p in zip(seen, places, strict=True)
        )
        example = Counterexample(
            "determinism", what.site, text, steps=steps, confirmed=confirmed, **places[0]
        )
        verdict = Verdict.REFUTED if confirmed else Verdict.ALARM
        return Goal(verdict, text, example)

    def outcome(self, what: Any, point: dict[Symbol, int]) -> Any:
        """What one run decides there, found by executing the IR; None if it does not get there."""
        trace = self.launch.replay(point)
        if isinstance(what, Decision):
            found = [v for node, v in trace.decided if node.same_as(what.node)]
            return found[0] if found else None
        touched = [t for t in trace.touched if t.node.same_as(what.node) and t.mode == what.mode]
        if not what.buffer.tensor:
            return next(((t.offset,) for t in touched), None)
        axis = self.batch_axis(what)
        return next(
            (tuple(n for a, n in enumerate(t.place) if a != axis) for t in touched if t.place), None
        )

    def batch_axis(self, access: Access) -> int | None:
        batch = {self.domain.dims[name] for name in self.domain.batch}
        shape = self.domain.tensors[access.buffer.tensor].shape
        return next((a for a, n in enumerate(shape) if n.symbols & batch), None)


def _sizes(described: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in described["sizes"].items())


def _loop_message(decision: Decision, bounds: tuple[int, int]) -> str:
    name = decision.node.loop_var.name
    start = f" from {bounds[0]}" if bounds[0] else ""
    return f"loop {name} runs {bounds[1]} times{start}"


def _condition_message(decision: Decision, taken: tuple[int]) -> str:
    return f"{decision.site} is {'true' if taken[0] else 'false'}"


def _value_message(decision: Decision, value: tuple[int]) -> str:
    return f"{decision.site}, used as data, is {value[0]}"


def _element_message(access: Access, element: tuple[int]) -> str:
    verb = "writes" if access.mode == "write" else "reads"
    return f"{verb} element {element[0]} of {access.buffer.name}"


def _column_message(access: Access, columns: tuple[Any, ...]) -> str:
    verb = "writes" if access.mode == "write" else "reads"
    return f"{verb} column {', '.join(map(str, columns))} of {access.buffer.name}"
