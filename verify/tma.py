"""Tensor maps: what the host encodes, and which elements a copy of a box moves.

The hardware clips: a copy touches exactly the elements that lie in its box and in the map's
tensor; what it loads from outside is filled, what it would store there is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tileproof.codegen.hostir import TensorMap

from . import terms
from .convert import Converter
from .domain import Domain
from .facts import Buffer, Facts, scalar_bits
from .intrinsics import Mode, Tile, UnmodelledError
from .terms import Poly, Symbol, Term, add, apply, const, le, mul, poly, sub, var

if TYPE_CHECKING:
    from .device import DeviceWalker

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
    innermost; `swizzle` is the line of the swizzle in bytes. The box of an `im2col` map is channels
    and pixels."""

    tensor: str
    bits: int
    extents: tuple[Term, ...]
    strides: tuple[Term, ...]
    box: tuple[int, ...]
    swizzle: int
    limits: tuple[Limit, ...]
    im2col: bool = False

    def tile_bytes(self, boxes: int) -> int:
        """Bytes of shared memory that so many boxes may touch: all of each line of the swizzle."""
        size = boxes * math.prod(self.box) * self.bits // 8
        return -(-size // self.swizzle) * self.swizzle

    def element(self, coordinates: list[Term]) -> tuple[Term, Term, tuple[Symbol, ...]]:
        """``(index, condition, loops)``: over all values of the loops, the elements of a box at
        `coordinates` that exist, in elements from the tensor's first.

        An im2col copy is taken to read its channels of every pixel: which of them it does read
        follows from corners, steps and offsets, and none lies outside the map.
        """
        rank = len(self.extents)
        if len(coordinates) != rank:
            raise UnmodelledError(f"a copy with {len(coordinates)} coordinates of {rank}")
        index, exists, loops = const(0), const(1), []
        strides = (const(self.bits // 8), *self.strides)
        for i, start in enumerate(coordinates):
            if self.im2col and i:
                start, last = const(0), sub(self.extents[i], const(1))
            else:
                last = const(self.box[i] - 1)
            loop = Symbol(f"box{i}", "loop", const(0), last)
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
    kind, swizzle = (int(f[name].value) for name in ("type", "swizzle"))
    if kind >= len(_BITS):
        raise UnmodelledError(f"a tensor map of packed type {kind}")
    if int(f["interleave"].value):
        raise UnmodelledError("an interleaved tensor map")
    if swizzle >= len(_SWIZZLE):
        raise UnmodelledError(f"a tensor map of swizzle {swizzle}")
    im2col = "box" not in f
    if not im2col and any(int(s.value) != 1 for s in f["steps"][1:]):  # the innermost is ignored
        raise UnmodelledError("a tensor map with element strides")
    shape = (f["channels"], f["pixels"]) if im2col else f["box"]
    tensor = domain.tensors.get(source.tensor)
    if tensor is None:
        raise UnmodelledError(f"a tensor map of {source.tensor}, which is no argument")
    if scalar_bits(tensor.dtype) != _BITS[kind]:
        raise UnmodelledError(f"a tensor map of {_BITS[kind]} bits over {tensor.dtype}")
    if not all(type(n).__name__ == "IntImm" for n in shape):
        raise UnmodelledError("a tensor map whose box depends on a size")
    # The host's own arithmetic is checked where the host is read.
    scratch = Converter(Facts("tensor map"), domain.dims)
    extents, strides = (tuple(scratch.expr(e) for e in f[n]) for n in ("extents", "strides"))
    box = tuple(int(n.value) for n in shape)
    limits = [Limit("address", tensor.align, const(tensor.align), 16, 1 << 40, 16)]
    for i, (e, t) in enumerate(zip(f["extents"], extents, strict=True)):
        limits.append(Limit(f"extent of dimension {i}", e, t, 1, 1 << 32))
    for i, (e, t) in enumerate(zip(f["strides"], strides, strict=True)):
        limits.append(Limit(f"stride of dimension {i + 1} in bytes", e, t, 0, (1 << 40) - 1, 16))
    if im2col:
        limits += _im2col_limits(f, len(extents))
    else:
        limits += [Limit(f"box of dimension {i}", n, const(n), 1, 256) for i, n in enumerate(box)]
    row = box[0] * _BITS[kind] // 8
    most = _SWIZZLE[swizzle] if swizzle else 256 * 8
    limits.append(Limit("row of the box in bytes", row, const(row), 16, most, 16))
    line, rules = _SWIZZLE[swizzle], tuple(limits)
    return Map(source.tensor, _BITS[kind], extents, strides, box, line, rules, im2col)


def _im2col_limits(fields: Any, rank: int) -> list[Limit]:
    """The rules of cuTensorMapEncodeIm2col that tiles do not have."""
    rules = [("channels per pixel", fields["channels"], 1, 256)]
    rules.append(("pixels per column", fields["pixels"], 1, 1024))
    corner = {3: 1 << 15, 4: 1 << 7, 5: 1 << 4}.get(rank)
    if corner is None:
        raise UnmodelledError(f"an im2col tensor map of {rank} dimensions")
    for end in ("lower", "upper"):
        rules += [(f"{end} corner", n, -corner, corner - 1) for n in fields[end]]
    rules += [(f"step of dimension {i}", n, 1, 8) for i, n in enumerate(fields["steps"]) if i]
    return [Limit(what, int(n.value), const(int(n.value)), lo, hi) for what, n, lo, hi in rules]


def touch_tile(walker: DeviceWalker, tile: Tile, node: Any) -> None:
    """Record a copy: all of the tile in shared memory, and the elements of its boxes that exist as
    one access each."""
    if tile.tensor_map not in walker.maps:
        raise UnmodelledError(f"a copy by tensor map {tile.tensor_map.name}")
    known = walker.maps[tile.tensor_map]
    if known.im2col != bool(tile.offsets):
        raise UnmodelledError(f"a copy of another kind than tensor map {tile.tensor_map.name}")
    if len(tile.boxes) > 1 and known.box[1] != 1:
        raise UnmodelledError(f"rows by number through boxes of {known.box[1]} rows")
    data, dtype, offset = walker.pointer(tile.pointer)
    other: Mode = "read" if tile.mode == "write" else "write"
    start = mul(offset, const(scalar_bits(dtype) // 8))
    near, size = walker.buffer(data, "uint8"), known.tile_bytes(len(tile.boxes))
    walker.record(near, other, start, size, SHARED_ALIGN, node, asynchronous=True)
    tensor = walker.tensors[known.tensor]
    far = Buffer(
        tensor.name,
        "global",
        known.bits,
        tensor.shape,
        tensor=tensor.name,
        strides=tensor.strides,
    )
    outer = walker.context
    for box in tile.boxes:
        index, exists, loops = known.element([walker.expr(c) for c in box])
        for loop in loops:
            walker.context = walker.context.inside(loop)
        walker.context = walker.context.given(exists)
        width = known.bits // 8
        walker.record(far, tile.mode, index, 1, width, node, True, tile.atomic)
        walker.context = outer


def clip(
    source: TensorMap, corner: list[int], offsets: list[int], number: Callable[[Any], int]
) -> list[tuple[int, int]]:
    """Runs ``(first element, count)`` of a box at `corner`; `number` evaluates the host's
    expressions. The same copy without terms, for replay."""
    extents = [number(n) for n in source.fields["extents"]]
    if "box" not in source.fields:
        return _pixels(source, corner, offsets, extents, number)
    box = [number(n) for n in source.fields["box"]]
    size = _BITS[int(source.fields["type"].value)] // 8
    strides = [number(n) // size for n in source.fields["strides"]]
    low, high = max(corner[0], 0), min(corner[0] + box[0], extents[0])
    runs = [low] if low < high else []
    for at, n, extent, stride in zip(corner[1:], box[1:], extents[1:], strides, strict=True):
        places = range(max(at, 0), min(at + n, extent))
        runs = [place * stride + run for place in places for run in runs]
    return [(run, high - low) for run in runs]


def _pixels(
    source: TensorMap,
    corner: list[int],
    offsets: list[int],
    extents: list[int],
    number: Callable[[Any], int],
) -> list[tuple[int, int]]:
    """An im2col copy: pixels through the bounding box along W, then H, D and the images, each read
    at the filter's offset."""
    f = source.fields
    size = _BITS[int(f["type"].value)] // 8
    strides = [number(n) // size for n in f["strides"]]
    channels, pixels = number(f["channels"]), number(f["pixels"])
    low, high = max(corner[0], 0), min(corner[0] + channels, extents[0])
    base, runs = corner[1:], []
    for _ in range(pixels):
        place = [b + o for b, o in zip(base, [*offsets, 0], strict=True)]
        if low < high and all(0 <= p < n for p, n in zip(place, extents[1:], strict=True)):
            runs.append(sum(p * s for p, s in zip(place, strides, strict=True)) + low)
        for i, (lower, upper) in enumerate(zip(f["lower"], f["upper"], strict=True)):
            base[i] += number(f["steps"][i + 1])
            if base[i] <= extents[i + 1] - 1 + number(upper):
                break
            base[i] = number(lower)
        else:
            base[-1] += 1
    return [(run, high - low) for run in runs]


def tile_bytes(source: TensorMap, boxes: int) -> int:
    """Bytes of shared memory that so many boxes of a map may touch, without terms."""
    f = source.fields
    box = f.get("box") or (f["channels"], f["pixels"])
    size = boxes * math.prod(int(n.value) for n in box) * _BITS[int(f["type"].value)] // 8
    line = _SWIZZLE[int(f["swizzle"].value)]
    return -(-size // line) * line
