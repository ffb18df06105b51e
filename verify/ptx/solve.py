"""Deciding an obligation: intervals first, then Z3 over integers, then Z3 over bit-vectors.

Every query has a Z3 context of its own, with variables named and facts listed in the order in which
the query mentions them, and a budget in solver steps counted from zero: what is answered is a
function of the query, whatever was asked before. A goal with products of unknowns is first weakened
to one without (``products.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from . import bits, integers, products, walk, words
from .bits import Term
from .integers import Answer

_MOST_STEPS = 20_000_000  # of one kernel: half a minute or so


@dataclass
class Solver:
    """Decides goals under facts. `about` holds what is known of single variables.

    `exact` holds what a proof does without and a counterexample must meet. `steps` counts the
    solver's steps of all queries so far; when a kernel's are spent, nothing more is decided.
    """

    facts: Sequence[Term]
    about: Mapping[Term, Sequence[Term]]
    exact: dict[Term, Term] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        self.facts = [f for f in self.facts if bits.number(f) != 1]
        self._memo: dict[tuple[Term, ...], Answer] = {}

    def holds(self, path: Sequence[Term], goal: Term) -> bool:
        return self.decide(path, goal).holds is True

    def decide(self, path: Sequence[Term], goal: Term, more: Sequence[Term] = ()) -> Answer:
        """Whether `goal` follows from the facts, the path, and `more`."""
        if bits.number(goal) == 1:
            return Answer(True)
        key = (goal, *path, *more)
        if key not in self._memo:
            under = [*path, *more]
            weaker = products.follows(goal, lambda g: self._linear(under, g))
            self._memo[key] = Answer(True) if weaker else self._ask(under, goal)
        return self._memo[key]

    def _linear(self, path: list[Term], goal: Term) -> bool:
        """Whether `goal` follows over the integers; products in the path are left out."""
        if goal.op == "const" or self.steps > _MOST_STEPS:
            return goal.op == "const" and goal.value == 1
        key = (goal, *path, bits.true())
        if key not in self._memo:
            near = _near(path, goal)
            answer = Answer(None)
            for given in (near, path) if len(near) < len(path) else (near,):
                plain = [p for p in given if not products.occur(p)]
                answer = integers.ask(self._relevant([*plain, bits.negate(goal)]))
                self.steps += answer.steps
                if answer.holds:
                    break
            self._memo[key] = answer
        return self._memo[key].holds is True

    def _ask(self, path: list[Term], goal: Term) -> Answer:
        near = _near(path, goal)
        if len(near) < len(path):
            answer = self._integers(self._relevant([*near, bits.negate(goal)]))
            if answer.holds:
                return answer
        relevant = self._relevant([*path, bits.negate(goal)])
        answer = self._solve(relevant)
        defined = [self.exact[v] for v in walk.variables(*relevant) if v in self.exact]
        if answer.holds is False and defined:
            nearer = self._integers([*relevant, *defined])
            answer = answer if nearer.holds is None else nearer
        return answer

    def _solve(self, query: list[Term]) -> Answer:
        answer = self._integers(query)
        if answer.holds is None and self.steps <= _MOST_STEPS:
            answer = words.ask(query)
            self.steps += answer.steps
        return answer

    def _integers(self, query: list[Term]) -> Answer:
        if self.steps > _MOST_STEPS:
            return Answer(None)
        answer = integers.ask(query)
        self.steps += answer.steps
        return answer

    def smallest(
        self, path: Sequence[Term], goal: Term, model: Mapping[Term, int], sizes: Iterable[Term]
    ) -> Mapping[Term, int]:
        """A counterexample in the first block that has one, at the least sizes, one by one.

        Where the solver gives up, the search for a smaller one ends.
        """
        kept: list[Term] = []
        places = [v for v in model if str(v.value).startswith(("block.", "thread."))]
        for v in sorted(walk.variables(*sizes), key=lambda v: v.serial):
            lo, hi = v.range[0], model.get(v, v.range[0])
            while lo < hi:
                middle = (lo + hi) // 2
                limit = bits.negate(bits.less(bits.const(middle, v.width), v))
                answer = self.decide(path, goal, [*kept, limit])
                if answer.holds is False and answer.model is not None:
                    model, hi = answer.model, answer.model.get(v, lo)
                elif answer.holds is None:
                    return model
                else:
                    lo = middle + 1
            kept.append(bits.negate(bits.less(bits.const(hi, v.width), v)))
        for v in sorted(places, key=lambda v: str(v.value)):
            first = bits.eq(v, bits.const(0, v.width))
            answer = self.decide(path, goal, [*kept, first])
            if answer.holds is False and answer.model is not None:
                model = answer.model
                kept.append(first)
        return model

    def _relevant(self, query: list[Term]) -> list[Term]:
        """The query with all facts about what occurs in it."""
        out = [*self.facts, *query]
        done: set[Term] = set()
        while True:
            new = [v for v in walk.variables(*out) if v in self.about and v not in done]
            if not new:
                return out
            done.update(new)
            out += [f for v in new for f in self.about[v]]


def _near(path: list[Term], goal: Term) -> list[Term]:
    """The conditions of a path without those of data that the goal does not mention."""
    own = set(walk.variables(goal))
    return [p for p in path if all(v in own or not bits.untracked(v) for v in walk.variables(p))]
