"""A counterexample run again: one thread with every input a number, and no solver.

Terms of numbers fold to numbers, so the executor is then an interpreter: it takes branches, runs
loops trip by trip, and the access either leaves its memory or it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tileproof.codegen.hostir import Launch
from tileproof.verify.domain import Domain

from . import bits, contract, walk
from .bits import Term
from .cfg import Graph
from .execute import Event, Inputs, Region, Thread
from .parse import Entry, PtxError


@dataclass(frozen=True)
class Point:
    """Where a thread stands; `loaded` lists values read from each index tensor, in order."""

    sizes: Mapping[str, int]
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    loaded: Mapping[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Mapping[Term, int], dims: Mapping[str, Term]) -> Point:
        """The inputs a solver's model chose; what it left open is the least possible."""
        named = {str(v.value): n for v, n in model.items()}
        loaded: dict[str, list[tuple[int, int]]] = {}
        for name, n in named.items():
            if name.endswith("]") and not name.startswith("~"):
                tensor, _, serial = name[:-1].rpartition("[")
                loaded.setdefault(tensor, []).append((int(serial), n))
        sizes = {}
        for name, term in dims.items():
            least = {v: bits.const(named.get(str(v.value), v.range[0]), 64) for v in _inside(term)}
            sizes[name] = bits.number(walk.substitute(term, least)) or 0
        block, thread = (
            tuple(named.get(f"{what}.{axis}", 0) for axis in "xyz") for what in ("block", "thread")
        )
        values = {name: [n for _, n in sorted(pairs)] for name, pairs in loaded.items()}
        return cls(sizes, block, thread, values)  # type: ignore[arg-type]


def _inside(term: Term) -> list[Term]:
    return sorted(walk.variables(term), key=lambda v: v.serial)


def replay(
    launch: Launch,
    entry: Entry,
    graph: Graph,
    assumed: Domain,
    point: Point,
    instruction: int,
    kind: str,
    goals: Callable[[Thread, Event], list[Any]],
) -> str | None:
    """What goes wrong at `instruction` with these inputs, or None if nothing is seen to."""
    sizes = contract.assume(assumed)
    inputs, facts = contract.inputs(launch, assumed, sizes)
    fixed = {
        v: bits.const(n, 64)
        for name, term in sizes.dims.items()
        for v in walk.variables(term)
        for n in [point.sizes[name] // assumed.multiples.get(name, 1)]
    }
    for what, values in (("block", point.block), ("thread", point.thread)):
        for axis, n in zip("xyz", values, strict=True):
            known = bits.var(f"{what}.{axis}", 32)
            fixed[known] = bits.const(n, 32)
    met = [bits.number(walk.substitute(f, fixed)) for f in (*facts, *sizes.facts)]
    if any(m != 1 for m in met):
        return None
    thread = Thread(entry, graph, _numbers(inputs, fixed, point), lambda path, goal: False)
    try:
        thread.run()
    except PtxError:
        return None
    for event in thread.events:
        if event.instruction != instruction:
            continue
        for goal in goals(thread, event):
            if isinstance(goal, str) or goal.property != kind:
                continue
            certain = not goal.path
            if certain and any(bits.number(part) == 0 for part in goal.parts):
                return _words(event, goal)
    return None


def _numbers(inputs: Inputs, fixed: Mapping[Term, Term], point: Point) -> Inputs:
    def number(t: Term) -> Term:
        return walk.substitute(t, fixed)

    def region(r: Region) -> Region:
        values = iter(point.loaded.get(r.name, ()))
        elements = r.elements

        def element(name: str, width: int) -> Term:
            assert elements is not None
            value = next(values, None)
            return elements(name, width) if value is None else bits.const(value, width)

        return replace(r, size=number(r.size), elements=element if elements else None)

    return Inputs(
        [number(p) for p in inputs.params],
        {k: number(v) for k, v in inputs.special.items()},
        {v: region(r) for v, r in inputs.regions.items()},
        number(inputs.shared_bytes),
        {position: number(box) for position, box in inputs.boxes.items()},
    )


def _words(event: Event, goal: Any) -> str:
    touch = event.touch
    offset, size, count = (bits.number(t) for t in (goal.offset, goal.size, touch.count))
    verb = "writes" if touch.write else "reads"
    if goal.property == "alignment":
        return (
            f"{verb} {count} bytes of {goal.region} at byte {offset}, "
            f"which is no multiple of {touch.align}"
        )
    return f"{verb} {count} bytes of {goal.region} at byte {offset} of {size}"
