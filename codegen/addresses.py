"""Addresses of global memory as the CUDA text writes them, and how threads and loops move them.

TileLang prints every access with its whole index, so an address is an integer expression of thread,
block, loop variables and sizes. It is evaluated, not solved: 32 lanes at a time for how a warp's
accesses lie, many random sizes for what the address is a multiple of.
"""

from __future__ import annotations

import ast
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType

_CAST = re.compile(r"\(\s*(?:u?int(?:\d+_t)?|long|size_t)\s*\)")
_FOR = re.compile(r"\s*for \(int (\w+) = [^;]*; \1 < ([^;]+); \+\+\1\)")
_WORDS = {"&&": " and ", "||": " or ", "threadIdx.": "threadIdx_", "blockIdx.": "blockIdx_"}
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop),
    *(ast.Constant, ast.Name, ast.expr_context),
)
LANE = "threadIdx_x"
_LARGE = 4099  # a prime, for sizes


@dataclass(frozen=True)
class Address:
    """One place where a line of the text touches a tensor.

    `size`: bytes of an element. `index`: in elements, as written. `line`: of the text, from 1.
    `loops`: variables of the loops around it. `sizes`: the kernel's numbers, and what each is known
    to be a multiple of.
    """

    tensor: str
    size: int
    index: str
    written: bool
    line: int
    loops: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def unknown(self) -> str:
        """The part of the index that is only known at run time, as text; empty without one."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.expr) and not isinstance(node, _ARITHMETIC):
                return ast.unparse(node)
        known = {*self.loops, *self.sizes}
        return next((n for n in self.names if n not in known and "Idx_" not in n), "")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Variables of the index: thread, block, loops, sizes."""
        found = {n.id for n in ast.walk(self._tree) if isinstance(n, ast.Name)}
        return tuple(sorted(found))

    def at(self, **values: int) -> int:
        """Bytes from the tensor's start. Variables not given are 0, sizes some large number. Only
        without an `unknown`."""
        known = dict.fromkeys(self.names, 0)
        known |= {name: _LARGE * multiple for name, multiple in self.sizes.items()} | values
        return int(eval(self._code, {"__builtins__": {}}, known)) * self.size

    def lanes(self, base: int = 0) -> list[int]:
        """Offsets of the 32 threads of a warp."""
        return [self.at(**{LANE: base + lane}) for lane in range(32)]

    def step(self, name: str) -> int:
        """How far one step of a variable moves the address, from 0."""
        return self.at(**{name: 1}) - self.at()

    def multiple(self, fixed: Sequence[str] = ()) -> int:
        """A power of two in bytes that every address met was a multiple of, at most 16. Variables
        in `fixed` stay as :meth:`at` has them."""
        return math.gcd(16, *(self.at(**v) for v in self._draws(set(self.names) - {*fixed})))

    def moves_by(self, name: str) -> int:
        """A power of two in bytes by whose multiples `name` moves the address where all else is 1,
        at most 16."""
        others = dict.fromkeys(self.names, 1)
        start = self.at(**others)
        return math.gcd(16, *(self.at(**(others | v)) - start for v in self._draws({name})))

    def _draws(self, names: set[str]) -> Iterator[dict[str, int]]:
        draw = random.Random(0)
        for _ in range(64):
            yield {n: draw.randrange(1 << 12) * self.sizes.get(n, 1) for n in sorted(names)}

    @cached_property
    def _tree(self) -> ast.Expression:
        text = _CAST.sub("", self.index)
        for word, python in _WORDS.items():
            text = text.replace(word, python)
        return ast.parse(text.strip().replace("/", "//"), mode="eval")

    @cached_property
    def _code(self) -> CodeType:
        return compile(self._tree, "address", "eval")


def addresses(
    lines: Sequence[str],
    number: int,
    tensors: Mapping[str, int],
    sizes: Mapping[str, int],
) -> list[Address]:
    """Every address of a tensor in line `number` of a kernel's text, counted from 0.

    `tensors`: bytes of an element of each pointer parameter; `sizes` as in :class:`Address`.
    """
    line = lines[number]
    assignment = _assignment(line)
    around = tuple(_loops(lines, number))
    found = []
    for name, size in tensors.items():
        for match in re.finditer(rf"(?<![\w.]){name}(?: \+ |\[)", line):
            if index := _operand(line, match.end()):
                written = match.start() < assignment
                found.append(Address(name, size, index, written, number + 1, around, sizes))
    return found


def _assignment(line: str) -> int:
    """Where the ``=`` of a statement stands that stores through a pointer, -1 without one."""
    depth = 0
    for i, character in enumerate(line):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and line[i : i + 3] == " = ":
            return i
    return -1


def _operand(line: str, start: int) -> str:
    """What stands from `start` up to the bracket that closes around it."""
    depth = 0
    for i in range(start, len(line)):
        depth += line[i] in "(["
        if line[i] in ")]":
            if depth == 0:
                return line[start:i]
            depth -= 1
    return ""


def _loops(lines: Sequence[str], number: int) -> Iterator[str]:
    """Variables of the loops around a line, by their indentation, innermost first."""
    depth = len(lines[number]) - len(lines[number].lstrip())
    for line in reversed(lines[:number]):
        indent = len(line) - len(line.lstrip())
        if line.strip() and not line.lstrip().startswith("#") and indent < depth:
            depth = indent
            if match := _FOR.match(line):
                yield match[1]
            if depth == 0:
                return
