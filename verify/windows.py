"""Which accesses may meet: from each one, every way forward until a barrier has closed its window.

The walk follows the loops that synchronise, iteration by iteration, and keeps three facts: how many
groups of copies were committed since, whether the access is complete, and whether its warp has met
since. These are finitely many. Once a round of a loop brings nothing new, one more round at *some*
later iteration stands for all the rest: that round is the induction step, so trip counts need not
be known. Loops without synchronisation are not followed: each of their iterations may meet any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from .facts import Access, Facts, Sync
from .intrinsics import UnmodelledError
from .terms import Symbol, Term, add, apply, const, le, substitute, var

# Whom an access may still meet: a copy under way even its own thread, a finished access the other
# threads, and after the warp has met only threads of other warps. A copy under way meets itself
# in other iterations of the loops that are not followed.
Who = Literal["any", "threads", "warps", "itself"]
_MOST_PATHS = 64
_PATIENCE = 16  # rounds followed for the sake of a barrier that only some iterations have


@dataclass(eq=False)
class Loop:
    """A loop that synchronises, with what happens in it in program order."""

    symbol: Symbol
    items: list[Item]


Item: TypeAlias = "Access | Sync | Loop"


@dataclass(frozen=True, eq=False)
class Meeting:
    """`first` and `second` with nothing between them that orders them.

    `where` gives the iteration of `second` in each loop that synchronises, in terms of that of
    `first`; `given` is what holds on the way.
    """

    first: Access
    second: Access
    who: Who
    where: Mapping[Symbol, Term]
    given: tuple[Term, ...]


@dataclass(frozen=True)
class State:
    """Since the access: groups committed (to the cap), completion, and a meeting of the warp."""

    commits: int = 0
    done: bool = True
    warp: bool = False

    @property
    def who(self) -> Who:
        if not self.done:
            return "any"
        return "warps" if self.warp else "threads"


@dataclass(frozen=True)
class Path:
    """A way forward: the state reached, under which conditions; `splits` counts the barriers and
    waits that it passed by because of a condition."""

    state: State
    given: tuple[Term, ...] = ()
    splits: int = 0

    def under(self, *conditions: Term) -> Path:
        new = tuple(c for c in conditions if not c.is_const and c not in self.given)
        return replace(self, given=self.given + new)


def _alive(paths: Iterable[Path], condition: Term) -> list[Path]:
    """The paths on which a condition can hold, with it."""
    if condition.is_const and not condition.value:
        return []
    return [p.under(condition) for p in paths]


def _merged(paths: list[Path]) -> list[Path]:
    """One path a state, under what all that reached it have in common: more than there is."""
    by_state: dict[State, list[Path]] = {}
    for path in paths:
        by_state.setdefault(path.state, []).append(path)
    merged = []
    for state, same in by_state.items():
        common = set(same[0].given).intersection(*(p.given for p in same))
        given = tuple(c for c in same[0].given if c in common)
        merged.append(Path(state, given, max(p.splits for p in same)))
    return merged


def synchronising(facts: Facts) -> set[Symbol]:
    """The loops whose iterations a barrier, a commit or a wait may tell apart."""
    return {loop for s in facts.syncs if s.effect.sync is not None for loop in s.context.loops}


def tree(facts: Facts) -> list[Item]:
    """Shared accesses and synchronisation as a tree of the loops that synchronise."""
    events: list[Access | Sync] = [a for a in facts.accesses if a.buffer.arena and a.peer is None]
    events += [s for s in facts.syncs if s.effect.sync is not None]
    followed = synchronising(facts)
    root: list[Item] = []
    open_loops: list[Loop] = []
    for event in sorted(events, key=lambda e: e.order):
        loops = [loop for loop in event.context.loops if loop in followed]
        depth = 0
        while depth < min(len(loops), len(open_loops)) and open_loops[depth].symbol is loops[depth]:
            depth += 1
        del open_loops[depth:]
        for symbol in loops[depth:]:
            loop = Loop(symbol, [])
            (open_loops[-1].items if open_loops else root).append(loop)
            open_loops.append(loop)
        (open_loops[-1].items if open_loops else root).append(event)
    return root


class Walk:
    """Finds the meetings of every access.

    `twin` makes a second thread's copy of a condition, `feasible` says whether conditions can hold
    together; it may say yes when they cannot.
    """

    def __init__(
        self,
        facts: Facts,
        twin: Callable[[Term], Term],
        feasible: Callable[[tuple[Term, ...]], bool],
    ) -> None:
        self.root = tree(facts)
        self.twin, self.feasible = twin, feasible
        waits = [s.effect.pending for s in facts.syncs if s.effect.sync == "wait"]
        self.cap = max(waits, default=0) + 1
        self.own_length = {
            loop: any(s.kind == "thread" for s in loop.lo.symbols | loop.hi.symbols)
            for loop in synchronising(facts)
        }

    def from_(self, access: Access) -> Iterator[Meeting]:
        """Every meeting that starts at `access`, once each.

        Raises UnmodelledError where the loops or conditions are beyond the walk.
        """
        for symbol in access.context.loops:
            if self.own_length.get(symbol):
                raise UnmodelledError(f"a loop {symbol.name} of thread-dependent length")
        self.first = access
        self.found: dict[tuple[object, ...], Meeting] = {}
        stack = self._stack(access)
        where = {loop.symbol: var(loop.symbol) for loop, _ in stack if loop is not None}
        state = State(done=not access.asynchronous)
        self._meet(access, Path(state), where, "itself" if access.asynchronous else "threads")
        for other in self._beside(access, stack[-1]):
            self._meet(other, Path(state), where)
        paths = [Path(state)]
        for loop, rest in reversed(stack):
            paths = self._body(rest, paths, where)
            if loop is not None:
                here = var(loop.symbol)
                leaving = _alive(paths, apply("eq", here, loop.symbol.hi))
                outer = {s: t for s, t in where.items() if s is not loop.symbol}
                paths = leaving + self._rounds(loop, paths, here, 1, outer)
                # Where the access is at all may say how many rounds must follow.
                own = access.context.path
                paths = [p for p in paths if not p.given or self.feasible((*own, *p.given))]
                where = outer
        yield from self.found.values()

    def _stack(self, access: Access) -> list[tuple[Loop | None, list[Item]]]:
        """The loops around an access, outermost first, each with what follows in its body."""
        items, out = self.root, []
        loop: Loop | None = None
        inside = [s for s in access.context.loops if s in self.own_length]
        for symbol in inside:
            at = next(
                i
                for i, item in enumerate(items)
                if isinstance(item, Loop) and item.symbol is symbol
            )
            out.append((loop, items[at + 1 :]))
            loop = items[at]  # type: ignore[assignment]
            items = loop.items  # type: ignore[union-attr]
        out.append((loop, items[items.index(access) + 1 :]))
        return out

    def _beside(self, access: Access, last: tuple[Loop | None, list[Item]]) -> Iterator[Access]:
        """For a copy: earlier accesses of a loop around both, met in that loop's next iteration."""
        if not access.asynchronous:
            return
        inner = {s for s in access.context.loops if s not in self.own_length}
        for item in last[0].items if last[0] is not None else self.root:
            if item is access:
                return
            if isinstance(item, Access) and inner & set(item.context.loops):
                yield item

    def _meet(
        self, second: Access, path: Path, where: Mapping[Symbol, Term], who: Who | None = None
    ) -> None:
        if "write" not in (self.first.mode, second.mode):
            return
        if self.first.buffer.arena != second.buffer.arena:
            return
        who = who or path.state.who
        places = {s: where[s] for s in second.context.loops if s in where}
        key = (second, who, *places.values(), path.given)
        self.found.setdefault(key, Meeting(self.first, second, who, places, path.given))

    def _body(
        self, items: list[Item], paths: list[Path], where: Mapping[Symbol, Term]
    ) -> list[Path]:
        for item in items:
            paths = list(dict.fromkeys(paths))
            if len(paths) > _MOST_PATHS:
                paths = _merged(paths)
            if isinstance(item, Loop):
                paths = self._enter(item, paths, where)
            elif isinstance(item, Sync):
                paths = [q for p in paths for q in self._sync(p, item, where)]
            else:
                for path in paths:
                    self._meet(item, path, where)
        return paths

    def _sync(self, path: Path, sync: Sync, where: Mapping[Symbol, Term]) -> list[Path]:
        kind, state = sync.effect.sync, path.state
        after: State | None = state
        if kind == "barrier":
            after = None if state.done else state
        elif kind == "warp":
            after = replace(state, warp=state.done)
        elif state.done:  # commits and waits are for copies under way
            return [path]
        elif kind == "commit":
            after = replace(state, commits=min(state.commits + 1, self.cap))
        elif state.commits > sync.effect.pending:
            after = State()
        if after == state:
            return [path]
        conditions = [substitute(c, where) for c in sync.context.path]
        if kind in ("barrier", "warp"):  # it orders two threads only if both come
            conditions += [self.twin(c) for c in conditions]
        if any(c.is_const and not c.value for c in conditions):
            return [replace(path, splits=path.splits + 1)]
        known = {*path.given, *self.first.context.path}
        missing = [c for c in dict.fromkeys(conditions) if c not in known and not c.is_const]
        out = [] if after is None else [replace(path, state=after).under(*missing)]
        if missing:
            together = missing[0]
            for c in missing[1:]:
                together = apply("and", together, c)
            without = apply("not", together)
            out.append(replace(path.under(without), splits=path.splits + 1))
        return out

    def _enter(self, loop: Loop, paths: list[Path], where: Mapping[Symbol, Term]) -> list[Path]:
        if not paths:
            return []
        if self.own_length[loop.symbol]:
            raise UnmodelledError(f"a loop {loop.symbol.name} of thread-dependent length")
        lo, hi = (substitute(t, where) for t in (loop.symbol.lo, loop.symbol.hi))
        return _alive(paths, apply("lt", hi, lo)) + self._rounds(loop, paths, lo, 0, where)

    def _rounds(
        self, loop: Loop, paths: list[Path], start: Term, n: int, where: Mapping[Symbol, Term]
    ) -> list[Path]:
        """The iterations from ``start + n`` on; the paths that leave the loop."""
        symbol, hi = loop.symbol, substitute(loop.symbol.hi, where)
        leaving: list[Path] = []
        seen: set[State] = set()
        rounds = 0
        while True:
            at = add(start, const(n))
            paths = _alive(paths, le(at, hi))
            paths = [p for p in paths if not p.splits or self.feasible(p.given)]
            states = {p.state for p in paths}
            if states <= seen and not (any(p.splits for p in paths) and rounds < _PATIENCE):
                break
            seen |= states
            paths = self._body(loop.items, paths, {**where, symbol: at})
            leaving += _alive(paths, apply("eq", at, hi))
            n, rounds = n + 1, rounds + 1
        if not paths:
            return leaving
        # Nothing new: any later iteration, from any state there may be by then, under what all ways
        # to that state have in common. At least one follows, so only its ends leave.
        later = Symbol(symbol.name, "loop", at, hi, symbol.origin)
        common = {p.state: p.under(le(at, hi)).given for p in _merged(paths)}
        pending = list(common)
        ends: dict[State, None] = {}
        while pending:
            state = pending.pop()
            origin = Path(state, common[state])
            for end in self._body(loop.items, [origin], {**where, symbol: var(later)}):
                there = common.get(end.state, origin.given)
                both = tuple(c for c in there if c in origin.given)
                ends[end.state] = None
                if end.state not in common or both != there:
                    common[end.state] = both
                    pending.append(end.state)
        return leaving + [Path(state, common[state]) for state in ends]
