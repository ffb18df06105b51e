"""Tensor maps: what the host encodes, and which elements a tiled copy of a box moves.

The hardware clips: a copy touches exactly the elements that lie in its box and in the map's
tensor; what it loads from outside is filled, what it would store there is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tileproof.codegen.hostir import TensorMap

from . import terms
from .convert import Converter
from .domain import Domain
from .facts import Facts, scalar_bits
from .intrinsics import UnmodelledError
from .terms import Poly, Symbol, Term, add, apply, const, le, mul, poly, var

# Bits of an element by the driver's CUtensorMapDataType, without the packed types.
_BITS = (8, 16, 32, 32, 64, 64, 16, 32, 64, 16, 32, 32, 32)
_SWIZZLE = (16, 32, 64, 128)  # bytes of a line in which 16-byte chunks are permuted
SHARED_ALIGN = 128  # of the tile in shared memory


@dataclass(frozen=True, eq=False)
class Limit:
    """``lo <= term <= hi``, and a multiple of `multiple`: a rule of cuTensorMapEncodeTiled.

    `source` is the host's own expression for `term`, to evaluate without terms.
    """

    what: str
    source: Any
    term: Term
    lo: int
    hi: int
    multiple: int = 1

    def broken(self) -> Term:
        inside = apply("and", le(const(self.lo), self.term), le(self.term, const(self.hi)))
        rest = apply("mod", self.term, const(self.multiple))
        return apply("not", apply("and", inside, apply("eq", rest, const(0))))

    def holds(self, value: int) -> bool:
        return self.lo <= value <= self.hi and value % self.multiple == 0


@dataclass(frozen=True, eq=False)
class Map:
    """One tensor map. Dimensions are innermost first; `strides` are in bytes and leave out the
    innermost; `swizzle` is the line of the swizzle in bytes."""

    tensor: str
    bits: int
    extents: tuple[Term, ...]
    strides: tuple[Term, ...]
    box: tuple[int, ...]
    swizzle: int
    limits: tuple[Limit, ...]

    @property
    def tile_bytes(self) -> int:
        """Bytes of shared memory that one copy may touch: all of each line of the swizzle."""
        size = math.prod(self.box) * self.bits // 8
        return -(-size // self.swizzle) * self.swizzle

    def element(self, coordinates: list[Term]) -> tuple[Term, Term, tuple[Symbol, ...]]:
        """``(index, condition, loops)``: over all values of the loops, the elements of a box at
        `coordinates` that exist, in elements from the tensor's first."""
        if len(coordinates) != len(self.box):
            raise UnmodelledError(f"a copy with {len(coordinates)} coordinates of {len(self.box)}")
        index, exists, loops = const(0), const(1), []
        strides = (const(self.bits // 8), *self.strides)
        for i, (start, n) in enumerate(zip(coordinates, self.box, strict=True)):
            loop = Symbol(f"box{i}", "loop", const(0), const(n - 1))
            at = add(start, var(loop))
            inside = apply("and", le(const(0), at), apply("lt", at, self.extents[i]))
            exists = apply("and", exists, inside)
            index = add(index, mul(at, _divided(strides[i], self.bits // 8)))
            loops.append(loop)
        return index, exists, tuple(reversed(loops))


def _divided(stride: Term, size: int) -> Term:
    form = poly(stride)
    if any(c % size for c in form.terms.values()):
        raise UnmodelledError(f"a tensor map's stride of {terms.show(stride)} bytes")
    return Poly({m: c // size for m, c in form.terms.items()}, form.atoms).term()


def read(source: TensorMap, domain: Domain) -> Map:
    """What a tensor map means. Raises UnmodelledError for a kind that is not modelled."""
    f = source.fields
    if "box" not in f:
        raise UnmodelledError("an im2col tensor map")
    kind, swizzle = (int(f[name].value) for name in ("type", "swizzle"))
    if kind >= len(_BITS):
        raise UnmodelledError(f"a tensor map of packed type {kind}")
    if int(f["interleave"].value):
        raise UnmodelledError("an interleaved tensor map")
    if swizzle >= len(_SWIZZLE):
        raise UnmodelledError(f"a tensor map of swizzle {swizzle}")
    if any(int(step.value) != 1 for step in f["steps"][1:]):  # the innermost one is ignored
        raise UnmodelledError("a tensor map with element strides")
    tensor = domain.tensors.get(source.tensor)
    if tensor is None:
        raise UnmodelledError(f"a tensor map of {source.tensor}, which is no argument")
    if scalar_bits(tensor.dtype) != _BITS[kind]:
        raise UnmodelledError(f"a tensor map of {_BITS[kind]} bits over {tensor.dtype}")
    if not all(type(n).__name__ == "IntImm" for n in f["box"]):
        raise UnmodelledError("a tensor map whose box depends on a size")
    # The host's own arithmetic is checked where the host is read.
    scratch = Converter(Facts("tensor map"), domain.dims)
    extents, strides = (tuple(scratch.expr(e) for e in f[n]) for n in ("extents", "strides"))
    box = tuple(int(n.value) for n in f["box"])
    limits = [Limit("address", tensor.align, const(tensor.align), 16, 1 << 40, 16)]
    for i, (e, t) in enumerate(zip(f["extents"], extents, strict=True)):
        limits.append(Limit(f"extent of dimension {i}", e, t, 1, 1 << 32))
    for i, (e, t) in enumerate(zip(f["strides"], strides, strict=True)):
        limits.append(Limit(f"stride of dimension {i + 1} in bytes", e, t, 0, (1 << 40) - 1, 16))
    for i, n in enumerate(box):
        limits.append(Limit(f"box of dimension {i}", n, const(n), 1, 256))
    row = box[0] * _BITS[kind] // 8
    most = _SWIZZLE[swizzle] if swizzle else 256 * 8
    limits.append(Limit("row of the box in bytes", row, const(row), 16, most, 16))
    return Map(source.tensor, _BITS[kind], extents, strides, box, _SWIZZLE[swizzle], tuple(limits))


def clip(
    source: TensorMap, corner: list[int], number: Callable[[Any], int]
) -> tuple[list[tuple[int, int]], int]:
    """Runs ``(first element, count)`` of a box at `corner`, and the bytes of its tile; `number`
    evaluates the host's expressions. The same copy without terms, for replay."""
    extents, box = ([number(n) for n in source.fields[name]] for name in ("extents", "box"))
    size = _BITS[int(source.fields["type"].value)] // 8
    strides = [number(n) // size for n in source.fields["strides"]]
    low, high = max(corner[0], 0), min(corner[0] + box[0], extents[0])
    runs = [low] if low < high else []
    for at, n, extent, stride in zip(corner[1:], box[1:], extents[1:], strides, strict=True):
        places = range(max(at, 0), min(at + n, extent))
        runs = [place * stride + run for place in places for run in runs]
    line = _SWIZZLE[int(source.fields["swizzle"].value)]
    return [(run, high - low) for run in runs], -(-math.prod(box) * size // line) * line
