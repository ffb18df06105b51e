"""Sizes that make loops of unknown length as long as a run of the search has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tileproof.verify import terms
from tileproof.verify.facts import Context
from tileproof.verify.replay import Setting
from tileproof.verify.terms import Symbol, Term, apply, const, var

from .run import Run
from .values import Form

if TYPE_CHECKING:
    from tileproof.verify.props import Launch

# Lengths of the outer and the inner loops that are tried where a run's own lengths are no example.
_TRIED = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 3), (2, 5), (4, 8), (8, 3))
_PERIODS = 3


class Sizes:
    """What a launch's sizes say about the lengths of its loops; `loops` by their words, `block` are
    the indices of the block that is followed where they, or their ranks in a cluster, are known; 0
    in examples elsewhere."""

    def __init__(
        self, launch: Launch, loops: Mapping[str, tuple[Any, int]], block: Mapping[str, int | Form]
    ) -> None:
        self.launch, self.loops, self.block = launch, loops, block

    @cached_property
    def extents(self) -> dict[str, Term]:
        """Lengths as terms over sizes and block indices, of the loops that hang on nothing else."""
        facts = self.launch.facts
        contexts = [part.context for part in (*facts.accesses, *facts.syncs)]
        symbols = {s for context in contexts for s in context.loops}
        found = {}
        for text, (loop, _) in self.loops.items():
            for s in symbols:
                if s.origin is None or not loop.loop_var.same_as(s.origin):
                    continue
                length = terms.sub(terms.add(s.hi, const(1)), s.lo)
                if all(u.kind in ("dim", "block") for u in length.symbols):
                    found[text] = length
        return found

    def possible(self, text: str, n: int) -> bool:
        """Whether a loop may have `n` iterations, at some size and in some block."""
        length = self.extents.get(text)
        return length is None or self._point(apply("eq", length, const(n))) is not False

    def examples(self, run: Run, periods: Mapping[str, int]) -> Iterator[Setting]:
        """A block of a launch with the lengths of a run, or with some that its kind may have."""
        for later in range(_PERIODS):
            wanted = []
            for (text, _, _), (least, exactly) in run.trips.items():
                length = self.extents.get(text)
                if length is not None and exactly is not None:
                    n = exactly + later * periods.get(text, 1)
                    wanted.append(apply("eq", length, const(n)))
                elif length is not None:
                    wanted.append(terms.le(const(least), length))
            yield from self._setting(wanted)
        for outer, inner in _TRIED:
            yield from self._setting(
                [
                    apply("eq", length, const(inner if self.loops[text][1] else outer))
                    for text, length in self.extents.items()
                ]
            )

    def _setting(self, wanted: list[Term]) -> Iterator[Setting]:
        condition = const(1)
        blocks = [s for s in self.launch.facts.symbols.values() if s.kind == "block"]
        for term in (*wanted, *map(self._placed, blocks)):
            condition = apply("and", condition, term)
        point = self._point(condition)
        if isinstance(point, dict):
            yield self.launch.setting(self.launch.domain.complete(point))

    def _placed(self, s: Symbol) -> Term:
        at = self.block.get(s.name, 0)
        if isinstance(at, Form):
            return apply("eq", apply("mod", var(s), const(at.step)), const(at.constant))
        return apply("eq", var(s), const(at))

    def _point(self, condition: Term) -> dict[Symbol, int] | bool:
        """A point that meets a condition; False if there is none, True if that is not decided."""
        symbols = self.launch.facts.symbols.values()
        answer = self.launch.engine.never(condition, Context((), ()), symbols)
        if answer.point is not None:
            return dict(answer.point.values)
        return not answer.proved
