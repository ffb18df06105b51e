"""One thread cut at its questions: loops and conditions that sizes decide.

Between two questions a thread is followed by numbers, as far as the classes of :mod:`.values` are
numbers. What it may do is a graph of such segments: from the start, then after each answer. A state
is what is left to do, and the integers the thread keeps: variables, and local memory that nothing
but loads and stores touches. Local integers are taken not to wrap.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tileproof.verify.intrinsics import UnmodelledError
from tileproof.verify.replay import _ARITHMETIC, _BITWISE, Setting, UndeterminedError
from tileproof.verify.timeline import Timeline

from .lanes import Lanes, agreed, hashable
from .numbers import Numbers
from .parts import COMPOUND, Parts
from .values import CoarseError, Form, widened

if TYPE_CHECKING:
    from .trace import Access, Event

_MOST_STEPS = 400_000
_MOST_SEGMENTS = 2_000
_MOST_CLASSES = 128  # of one loop or counter: its period, its head
_COARSEST = (1, 1)
_LEAVES = ("BufferStore", "Bind", "Evaluate", "AllocBuffer", "DeclBuffer")


@dataclass(frozen=True)
class Ask:
    """What a thread wants to know, alike for all threads that ask it with the same words.

    * ``loop``: whether the loop at `depth` (0 is outermost) of `text` iterations has another one.
      `first` says that it has just been come to.
    * ``more``: whether those iterations are more than `ahead` behind this one, or behind the first
      one if `depth` is None.
    * ``if``: a condition, which may hang on the iterations of the outermost `depth` open loops.
      That the same condition elsewhere, or a length, may decide it is not seen.
    `exact` is the number of the iteration while it is one.
    """

    kind: str
    text: str
    depth: int | None = 0
    ahead: int = 0
    first: bool = False
    exact: int | None = None


@dataclass
class Segment:
    """What a thread does until it asks, or ends. `after` are the segments by the answer: no, yes.

    `nodes` are the calls behind the events, with the loop variables there.
    """

    events: list[Event] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    ask: Ask | None = None
    after: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Frame:
    """A statement to do; or, with the iteration `at`, a loop to go on with, up to `stop` if that is
    known."""

    stmt: Any
    at: Any = None
    stop: int | None = None


_Rest = tuple[_Frame, Any] | None  # what is left to do, innermost first


@dataclass(frozen=True)
class _Point:
    rest: _Rest
    env: dict[Any, Any]
    local: dict[Any, Any]
    roots: dict[Any, Any]
    operands: dict[Any, Any]
    around: dict[str, int]
    texts: dict[Any, tuple[str, set[int]]]
    open: tuple[Any, ...]


class Control(Timeline):
    """Follows one thread from question to question."""

    def __init__(self, *source: Any) -> None:
        super().__init__(*source)
        self.numbers = Numbers(self)
        self.classes: dict[Any, tuple[int, int]] = {}  # period and head of each unknown
        self.loops: dict[str, tuple[Any, int]] = {}  # of unknown length, and their depth

    def syncs(self, call: Any) -> bool:
        """Whether a call may synchronise."""
        raise NotImplementedError

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        self.begin()
        self.local: dict[Any, Any] = {}
        self.open: tuple[Any, ...] = ()  # loops of unknown length around, outermost first
        self.texts: dict[Any, tuple[str, set[int]]] = {}  # names of unknown variables

    def segments(self, setting: Setting) -> list[Segment]:
        """All that one thread may do. Raises UndeterminedError where something else than a size
        decides about the order of things, CoarseError to be asked again with finer classes."""
        self.prepare(setting)
        if self.leaves:
            raise UnmodelledError("a thread that may return")
        start = self._point((_Frame(self.function.body), None))
        numbers = {self._key(start): 0}
        todo, found = [start], list[Segment]()
        while todo:
            point = todo.pop(0)
            self._restore(point)
            self.result = Segment()
            found.append(self.result)
            ends = self._advance(point.rest)
            for after in ends:
                key = self._key(after)
                if key not in numbers:
                    numbers[key] = len(numbers)
                    todo.append(after)
                self.result.after.append(numbers[key])
            if len(found) > _MOST_SEGMENTS:
                raise UndeterminedError("a loop whose iterations do not repeat")
        return found

    # -- states ------------------------------------------------------------------------------

    def _point(self, rest: _Rest) -> _Point:
        return _Point(
            rest, dict(self.env), dict(self.local), dict(self.roots), dict(self.operands.known),
            dict(self.around), dict(self.texts), self.open,
        )  # fmt: skip

    def _restore(self, p: _Point) -> None:
        self.env, self.local, self.roots = dict(p.env), dict(p.local), dict(p.roots)
        self.operands.known, self.around, self.open = dict(p.operands), dict(p.around), p.open
        self.texts = dict(p.texts)

    def _key(self, p: _Point) -> Any:
        parts = [
            frozenset((self._id(k), self._plain(v)) for k, v in values.items())
            for values in (p.env, p.local, p.roots, p.operands, p.texts)
        ]
        rest, frames = p.rest, []
        while rest is not None:
            frame, rest = rest
            frames.append((self._id(frame.stmt), _plain(frame.at), frame.stop))
        return tuple(frames), *parts, tuple(self._id(s) for s in p.open)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._plain(v) for v in value)
        if isinstance(value, set):
            return tuple(sorted(value))
        return _plain(value) if isinstance(value, int | str | Form | Lanes) else self._id(value)

    def _id(self, k: Any) -> Any:
        if isinstance(k, tuple):
            return self._id(k[0]), k[1]
        return self.ids.setdefault(k, len(self.ids))

    def _relevant(self) -> set[Any]:
        """Those that store counters matter too."""
        self.ids: dict[Any, int] = {}
        written = {m.tensor for m in self.maps.values()}
        stored = {p for p in self.function.params if self.names.get(p) in written}
        self.parts = Parts(self.function, self.syncs, stored)
        return super()._relevant() | self.parts.counting

    # -- from question to question -------------------------------------------------------------

    def _advance(self, rest: _Rest) -> list[_Point]:
        """Run to the next question; the states after no and yes, none at the end."""
        while rest is not None:
            frame, rest = rest
            s, kind = frame.stmt, type(frame.stmt).__name__
            if frame.at is not None and frame.stop is None:
                return self._head(s, frame.at, rest, first=False)
            if frame.at is not None:
                rest = self._counted(frame, rest)
            elif s not in self.parts.syncing:
                self.stmt(s)
            elif kind == "SeqStmt":
                for part in reversed(list(s.seq)):
                    rest = (_Frame(part), rest)
            elif kind == "AttrStmt":
                self.enter(s)
                rest = (_Frame(s.body), rest)
            elif kind == "IfThenElse":
                taken = self.truth(s.condition)
                if taken is None:
                    return self._ask(s, rest)
                body = s.then_case if taken else s.else_case
                rest = rest if body is None else (_Frame(body), rest)
            elif kind == "For":
                low = self.whole(s.min)
                try:
                    extent = self.whole(s.extent)
                except UndeterminedError:
                    self.open = (*self.open, s)
                    return self._head(s, low, rest, first=True)
                rest = self._counted(_Frame(s, low, low + extent), rest)
            else:
                self.stmt(s)
        return []

    def enter(self, s: Any) -> None:
        """Begin an AttrStmt. A block index that is not given is not known."""
        if str(s.attr_key) == "thread_extent":
            tag = str(s.node.thread_tag)
            if tag.startswith("threadIdx") or tag in self.setting.indices:
                self.env[self.same(s.node.var)] = self.setting.indices.get(tag, 0)

    def _counted(self, frame: _Frame, rest: _Rest) -> _Rest:
        """The next iteration of a loop of known length."""
        s, at, stop = frame.stmt, frame.at, frame.stop
        name = str(s.loop_var.name)
        if at >= stop:
            self.env.pop(s.loop_var, None)
            self.around.pop(name, None)
            return rest
        self.env[self.same(s.loop_var)] = self.around[name] = at
        return (_Frame(s.body), (_Frame(s, at + 1, stop), rest))

    def _head(self, s: Any, at: Any, rest: _Rest, first: bool) -> list[_Point]:
        """Whether a loop of unknown length has an iteration `at`."""
        for v in (s.loop_var, *self.parts.inside[s]):
            for known in (self.env, self.operands.known, self.texts):
                known.pop(v, None)
            self._forget(v)
        at = self._widened(s.loop_var, at)
        counting = {loop.loop_var for loop in self.open}
        for v, value in list(self.env.items()):
            if isinstance(value, Form) and not value.still and v not in counting:
                self._keep(self.env, v, value)
        for place, value in list(self.local.items()):
            self._keep(self.local, place, value)
        low = self.whole(s.min)
        depth = len(self.open) - 1
        text, _ = self._name(s.extent, self.open[:-1])
        self.loops.setdefault(text, (s, depth))
        exact = at - low if isinstance(at, int) else None
        self.result.ask = Ask("loop", text, depth, first=first, exact=exact)
        yes = (_Frame(s.body), (_Frame(s, at + 1), rest))
        name = str(s.loop_var.name)
        self.around.pop(name, None)
        within = self.open
        self.open = self.open[:-1]
        no = self._point(rest)
        self.open, self.env[self.same(s.loop_var)] = within, at
        self.around[name] = at if isinstance(at, int) else at.constant
        return [no, self._point(yes)]

    def _keep(self, known: dict[Any, Any], key: Any, value: Any) -> None:
        kept = self._widened(key, value)
        if kept is None:
            del known[key]
        else:
            known[key] = kept

    def _widened(self, key: Any, value: Any) -> Any:
        unknown = self._id(key)
        return widened(value, unknown, *self.classes.get(unknown, _COARSEST))

    def _forget(self, data: Any) -> None:
        """A buffer of counters is not known any more."""
        for place in [p for p in self.local if p[0].same_as(data)]:
            del self.local[place]

    def _ask(self, s: Any, rest: _Rest) -> list[_Point]:
        self.result.ask, holds = self._compared(s.condition) or (self._condition(s.condition), True)
        ways = []
        for body in (s.else_case, s.then_case):
            ways.append(self._point(rest if body is None else (_Frame(body), rest)))
        return ways if holds else ways[::-1]

    def _compared(self, e: Any) -> tuple[Ask, bool] | None:
        """A condition on how far the end of a loop is: a question, and the answer that means yes.

        It compares ``iteration + ahead`` with the number of iterations, of which there is one now.
        """
        kind = type(e).__name__
        if kind not in ("LT", "LE", "GT", "GE", "EQ", "NE"):
            return None
        for less, more, swapped in ((e.a, e.b, False), (e.b, e.a, True)):
            try:
                value = self.value(less)
            except UndeterminedError:
                continue
            while type(more).__name__ in ("Add", "Sub") and type(more.b).__name__ == "IntImm":
                value += int(more.b.value) * (1 if type(more).__name__ == "Sub" else -1)
                more = more.a
            text, used = self._name(more, self.open)
            for depth, loop in enumerate(self.open):
                if used or self._name(loop.extent, self.open[:depth])[0] != text:
                    continue
                ahead = value - self.env[loop.loop_var]
                if self.number(loop.min) or isinstance(ahead, Form):
                    return None
                ahead = int(ahead)
                if kind in ("EQ", "NE"):
                    last = Ask("more", text, depth, ahead), kind == "NE"
                    return last if ahead == 1 else None
                if swapped:  # the number of iterations on the left
                    kind = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}[kind]
                equal = kind in ("LE", "GT")
                return Ask("more", text, depth, ahead - equal), kind in ("LT", "LE")
        return None

    def _condition(self, e: Any) -> Ask:
        text, used = self._name(e, self.open)
        return Ask("if", text, max(used, default=-1) + 1)

    # -- names of what is not known ------------------------------------------------------------

    def _name(self, e: Any, loops: tuple[Any, ...]) -> tuple[str, set[int]]:
        """An expression in words that mean the same number for every thread; which loops it hangs
        on. Raises UndeterminedError if there are none."""
        used: set[int] = set()

        def name(e: Any) -> str:
            kind = type(e).__name__
            if kind == "IntImm":
                return str(int(e.value))
            if kind == "Var":
                for depth, loop in enumerate(loops):
                    if loop.loop_var.same_as(e):
                        used.add(depth)
                        return f"#{depth}"
                if isinstance(self.env.get(e), int | Lanes):
                    return str(int(self.env[e]))
                if e in self.texts:
                    known, hangs = self.texts[e]
                    used.update(hangs)
                    return known
                if e in self.parts.uniform:
                    return f"{e.name}.{self._id(e)}"
                raise UndeterminedError(str(e.name))
            if kind == "Cast":
                return f"{e.dtype}({name(e.value)})"
            if kind in _ARITHMETIC or kind in ("And", "Or"):
                return f"({name(e.a)} {kind} {name(e.b)})"
            if kind == "Not":
                return f"!{name(e.a)}"
            if kind == "BufferLoad" and e.buffer.data in self.parts.fixed:
                place = ", ".join(name(i) for i in e.indices)
                return f"load.{self._id(e.buffer.data)}[{place}]"
            if kind == "BufferLoad":
                return str(self.whole(e))
            if kind == "Call" and str(e.op.name) in (*_BITWISE, "tirx.if_then_else"):
                return f"{e.op.name}({', '.join(name(a) for a in e.args)})"
            if kind == "Select":
                parts = (e.condition, e.true_value, e.false_value)
                return f"select({', '.join(name(a) for a in parts)})"
            if kind == "Call":
                return str(self.whole(e))
            raise UndeterminedError(kind)

        return name(e), used

    def bind(self, s: Any) -> None:
        self.texts.pop(s.var, None)
        self.env.pop(s.var, None)
        try:
            self.env[self.same(s.var)] = agreed(self.value(s.value))
        except UndeterminedError:
            self.visit(s.value)
            if s.var not in self.parts.decisive:
                return
            with contextlib.suppress(UndeterminedError):
                self.texts[s.var] = self._name(s.value, self.open)

    # -- numbers -----------------------------------------------------------------------------

    def number(self, e: Any) -> Any:
        """A number, or one of each thread."""
        found = self.value(e)
        if isinstance(found, Form):
            # A counter that comes back to 0 is a number once the head holds all of its round.
            head = max(self.classes.get(u, _COARSEST)[1] for u in found.parts)
            self._refine(found.later(head), e)
        return found

    def whole(self, e: Any) -> int:
        """The same, where it must be one number of all threads."""
        return int(self.number(e))

    def value(self, e: Any) -> Any:
        try:
            return self.numbers[e]()
        except CoarseError as why:
            self._refine(why, e)
            raise

    def walked(self, e: Any) -> Any:
        """The value of an expression that is no arithmetic."""
        ranked = type(e).__name__ == "Call" and str(e.op.name) == "tl.block_rank_in_cluster"
        if ranked and "blockIdx.x" not in self.setting.indices:
            raise UndeterminedError("a block's rank in its cluster")
        if type(e).__name__ == "BufferLoad" and e.buffer.data in self.parts.counters:
            place = (e.buffer.data, self.whole(e.indices[0]))
            if place in self.local:
                return self.local[place]
            raise UndeterminedError(str(e.buffer.name))
        return super().value(e)

    def _refine(self, why: CoarseError, e: Any) -> None:
        """Raise the error if finer classes are affordable, else say that the number is unknown."""
        after = self._finer(why)
        if not after or max(max(n) for n in after.values()) > _MOST_CLASSES:
            raise UndeterminedError(f"an iteration's number ({str(e)[:40]})") from None
        raise why

    def _finer(self, why: CoarseError) -> dict[Any, tuple[int, int]]:
        """Classes that would decide; none if the number hangs on the cluster."""
        after: dict[Any, tuple[int, int]] = {}
        if any(isinstance(u, str) for u in why.finer):
            return after
        for u, (factor, periods) in why.finer.items():
            period, head = self.classes.get(u, _COARSEST)
            after[u] = period * factor, head + period * periods
        return after

    def periods(self) -> dict[str, int]:
        """The period of each loop of unknown length."""
        return {
            text: self.classes.get(self._id(loop.loop_var), _COARSEST)[0]
            for text, (loop, _) in self.loops.items()
        }

    def finer(self, why: CoarseError) -> None:
        """Follow threads with finer classes from now on."""
        self.classes |= self._finer(why)

    def truth(self, e: Any) -> bool | None:
        """Whether a condition holds, None if sizes decide."""
        kind = type(e).__name__
        if kind in ("And", "Or"):
            sides = [self.truth(e.a), self.truth(e.b)]
            if (kind == "Or") in sides:
                return kind == "Or"
            return None if None in sides else kind == "And"
        try:
            return bool(self.number(e))
        except UndeterminedError:
            return None

    def fits(self, e: Any, value: int) -> int:
        return value  # what may wrap is a property of its own

    # -- statements without a question -----------------------------------------------------------

    def stmt(self, s: Any) -> None:
        if self.steps > _MOST_STEPS:
            raise UndeterminedError("a run too long to follow")
        kind = type(s).__name__
        if kind not in (*_LEAVES, *COMPOUND):
            raise UnmodelledError(f"the statement {kind}")
        if kind == "AttrStmt":
            self.enter(s)
            self.stmt(s.body)
        elif kind == "IfThenElse" and s in self.relevant:
            self.branch(s)
        else:
            super().stmt(s)
            if kind == "BufferStore" and s.buffer.data in self.parts.counters:
                self._store(s)

    def _store(self, s: Any) -> None:
        data = s.buffer.data
        try:
            place = (data, self.whole(s.indices[0]))
        except UndeterminedError:
            self._forget(data)
            return
        try:
            self.local[place] = agreed(self.value(s.value))
        except UndeterminedError:
            self.local.pop(place, None)

    def branch(self, s: Any) -> None:
        taken = self.truth(s.condition)
        if taken is not None:
            body = s.then_case if taken else s.else_case
            if body is not None:
                self.stmt(body)
            return
        before, ways, events = dict(self.local), [], len(self.result.events)
        for body in (s.then_case, s.else_case):
            self.local = dict(before)
            if body is not None:
                self.stmt(body)
            ways.append(self.local)
        if len(self.result.events) > events:
            raise UndeterminedError(f"synchronisation under a condition on {s.condition}")
        one, two = ({k: _plain(v) for k, v in way.items()} for way in ways)
        self.local = {k: v for k, v in ways[0].items() if one[k] == two.get(k)}
        self.loose = True

    def loop(self, s: Any) -> None:
        try:
            super().loop(s)
        except UndeterminedError as why:
            raise UndeterminedError(f"loop {s.loop_var.name}: {why}") from None


def _plain(value: Any) -> Any:
    return value.key if isinstance(value, Form) else hashable(value)
