"""Source and lowered program on the same random residues, at sizes that cover tiles and tails."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tileproof.codegen.lower import Lowered
from tileproof.dsl import Facts
from tileproof.dsl.expression import evaluate as evaluate_text
from tileproof.dsl.facts import draw_distinct

from .device import run_launch
from .memory import Element, FaultError, Memory, element
from .residues import P
from .schedule import EVERY, TOGETHER, Schedule
from .tiles import run_source

MOST_SIZES = 12
_NONE = 0.25  # of the elements that may be no index are none


@dataclass(frozen=True)
class Difference:
    """Where two programs part. `index` is None for a fault of one of them."""

    sizes: Mapping[str, int]
    tensor: str
    index: tuple[int, ...] | None
    message: str


class Reference:
    """What a program computes at sizes that cover its tiles; found once, as far as it is asked for.

    `of_source` takes the source program of `lowered`, else what is lowered. Raises UnmodelledError
    for a construct neither is executed with, FaultError for what the program itself does wrong.
    """

    def __init__(self, lowered: Lowered, facts: Facts, *, of_source: bool, seed: int = 0) -> None:
        self.lowered, self.facts, self.of_source, self.seed = lowered, facts, of_source, seed
        self.sizes = sorted(covering_sizes(lowered, facts), key=lambda s: sum(s.values()))
        self._found: dict[int, tuple[dict[str, Memory], dict[str, Memory]]] = {}

    def difference(
        self,
        other: Lowered,
        schedules: Sequence[Schedule] = (TOGETHER,),
        largest: int | None = None,
    ) -> Difference | None:
        """The first element in which `other` leaves another value, or its fault, or None: at all
        sizes, or the `largest` few."""
        for number, sizes in list(enumerate(self.sizes))[-(largest or 0) :]:
            drawn, expected = self._case(number, sizes)
            for schedule in schedules:
                got = _copies(drawn)
                try:
                    run_lowered(other, got, sizes, schedule)
                except FaultError as fault:
                    return Difference(sizes, "", None, str(fault))
                found = _difference(self.lowered, expected, got, sizes)
                if found is not None:
                    return found
        return None

    def anywhere(self, other: Lowered) -> Difference | None:
        """The same at all sizes, and at the largest on every schedule."""
        found = self.difference(other)
        return found or self.difference(other, EVERY[1:], largest=2)

    def _case(
        self, number: int, sizes: dict[str, int]
    ) -> tuple[dict[str, Memory], dict[str, Memory]]:
        if number not in self._found:
            drawn = _tensors(self.lowered, self.facts, sizes, self.seed)
            expected = _copies(drawn)
            if self.of_source:
                run_source(self.lowered.source, expected, sizes)
            else:
                run_lowered(self.lowered, expected, sizes)
            self._found[number] = drawn, expected
        return self._found[number]


def parting(lowered: Lowered, facts: Facts) -> Difference | None:
    """Where schedules of `lowered` part, or one is faulty: what is wrong whatever its source."""
    reference = Reference(lowered, facts, of_source=False)
    try:
        return reference.anywhere(lowered)
    except FaultError as fault:  # of the run the others are compared with
        return Difference({}, "", None, str(fault))


def run_lowered(
    lowered: Lowered,
    tensors: Mapping[str, Memory],
    sizes: Mapping[str, int],
    schedule: Schedule = TOGETHER,
) -> None:
    """Every launch of one call, one after another."""
    functions = {str(g.name_hint): f for g, f in lowered.device_mod.functions_items()}
    for launch in lowered.launches:
        run_launch(launch, functions[launch.kernel], tensors, sizes, schedule)


def covering_sizes(lowered: Lowered, facts: Facts) -> Iterator[dict[str, int]]:
    """Sizes around every tile a size is divided into, else a few blocks or lanes of a warp."""
    tiles = _tiles(lowered)
    symbols: dict[str, set[int]] = {}
    shapes = ((p.name,) if p.shape is None else p.shape for p in lowered.parameters)
    for name in _names(n for shape in shapes for n in shape):
        low, high = facts.dims.get(name, (0, 1 << 20))
        step = facts.multiples.get(name, 1)
        sizes = symbols[name] = set()
        for tile in tiles.get(name, {32}):
            for size in (0, 1, tile - 1, tile, tile + 1, 2 * tile + 1):
                size = max(size, low) // step * step
                sizes.add(size + step if size < low else size)
        sizes.add(-(-(low + 1) // step) * step)  # of a dim of few values, more than one
        sizes &= {size for size in sizes if low <= size <= high}
    # Together they run through their sizes, each from another place; each has its least once.
    turns = max((len(sizes) for sizes in symbols.values()), default=0) + len(symbols) - 1
    for number in range(min(max(1, turns), MOST_SIZES)):
        yield {
            name: min(sizes) if number == turn else _later(sizes, number + turn)
            for turn, (name, sizes) in enumerate(symbols.items())
        }


def _later(sizes: set[int], number: int) -> int:
    """The sizes but the least, in turn; the least if it is the only one."""
    later = sorted(sizes)[1:] or sorted(sizes)
    return later[number % len(later)]


def _names(texts: Iterable[Any]) -> list[str]:
    """The sizes in `texts`, each once."""
    return list(dict.fromkeys(n for text in texts for n in re.findall(r"[A-Za-z_]\w*", str(text))))


def _tiles(lowered: Lowered) -> dict[str, set[int]]:
    """What the source divides each size by; one for a size that only counts blocks."""
    from tilelang import tvm

    visit = tvm.tirx.stmt_functor.post_order_visit
    tiles = {n: {1} for n in _names(of for launch in lowered.launches for of in launch.grid)}
    divided: dict[str, set[int]] = {}

    def of_a_division(node: Any) -> None:
        if type(node).__name__ == "FloorDiv" and type(node.b).__name__ == "IntImm":
            by = int(node.b)
            visit(tvm.tirx.Evaluate(node.a), lambda n: of_a_name(n, by))

    def of_a_name(node: Any, by: int) -> None:
        if type(node).__name__ == "Var":
            divided.setdefault(str(node.name), set()).add(by)

    visit(lowered.source.body, of_a_division)
    return tiles | divided


def _tensors(lowered: Lowered, facts: Facts, sizes: dict[str, int], seed: int) -> dict[str, Memory]:
    """Every tensor of a call with random contents; adds the strides it has to `sizes`."""
    out = {}
    for p in lowered.parameters:
        if p.shape is None:
            continue
        shape = [evaluate_text(str(n), sizes) for n in p.shape]
        strides = _strides(p, shape, facts, sizes)
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        count = 0 if 0 in shape else last + 1
        kind = element(p.dtype)
        rng = np.random.default_rng([seed, zlib.crc32(p.name.encode()), *sizes.values()])
        memory = Memory(p.name, 1, count * kind.bytes, "")
        if count:
            values = _values(p.name, kind, count, facts, sizes, rng)
            memory.store(0, np.arange(count) * kind.bytes, kind, values, np.ones(count, bool))
        out[p.name] = memory
    return out


def _strides(p: Any, shape: list[int], facts: Facts, sizes: dict[str, int]) -> list[int]:
    strides: list[int] = []
    least = 1
    declared = p.strides or (None,) * len(shape)
    for n, stride in zip(reversed(shape), reversed(declared), strict=True):
        if isinstance(stride, str):
            step = facts.multiples.get(stride, 1)
            stride = sizes.setdefault(stride, (-(-least // step) + 1) * step)
        strides.insert(0, least if stride is None else stride)
        least = max(1, n) * strides[0]
    return strides


def _values(
    name: str, kind: Element, count: int, facts: Facts, sizes: Mapping[str, int], rng: Any
) -> Any:
    if kind.kind == "float":
        return rng.integers(0, P, count)
    low, high = (evaluate_text(str(n), sizes) for n in facts.values.get(name, (0, 1)))
    drawn = rng.integers(low, max(low, high) + 1, count)
    if name in facts.distinct:
        draw_distinct(rng, drawn, low, high, facts.none.get(name))
    elif name in facts.none:
        drawn[(rng.random(count) < _NONE) | (high < low)] = facts.none[name]
    return np.sort(drawn) if name in facts.monotone else drawn


def _copies(tensors: Mapping[str, Memory]) -> dict[str, Memory]:
    out = {}
    for name, memory in tensors.items():
        copy = Memory(name, 1, memory.size, memory.salt)
        copy.value[:], copy.code[:] = memory.value, memory.code
        out[name] = copy
    return out


def _difference(
    lowered: Lowered,
    expected: Mapping[str, Memory],
    got: Mapping[str, Memory],
    sizes: Mapping[str, int],
) -> Difference | None:
    for p in lowered.parameters:
        if p.shape is None:
            continue
        a, b = expected[p.name], got[p.name]
        wrong = (a.code != b.code) | ((a.value != b.value) & (a.code != 0))
        if wrong.any():
            place = int(np.argmax(wrong[0])) // element(p.dtype).bytes
            return Difference(sizes, p.name, (place,), f"{p.name}[{place}] has another value")
    return None
