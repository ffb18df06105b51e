"""Copies of boxes between tensors and shared memory, by tensor maps.

CUDA driver API, cuTensorMapEncodeTiled; PTX ISA, "Tensor copies" and "Swizzling modes".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tileproof.codegen.hostir import TensorMap, evaluate

from .machine import Pointer
from .memory import FaultError, Memory, UnmodelledError

if TYPE_CHECKING:
    from .device import Warp

_BYTES = (1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4)  # of the types of CUtensorMapDataType


def swizzled(at: Any, line: int) -> Any:
    """A byte address in shared memory where 16-byte chunks are permuted in lines of 128 bytes and
    less: bits 7 to 9, as many as tell chunks of `line` apart, change bits 4 to 6."""
    return at ^ ((at >> 7 & (line // 16 - 1)) << 4)


@dataclass(frozen=True, eq=False)
class Box:
    """Boxes of a tensor. Dimensions are innermost first, strides in bytes."""

    memory: Memory
    bytes: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    line: int

    @property
    def size(self) -> int:
        return math.prod(self.box) * self.bytes

    def places(self, corner: list[Any], start: Any) -> tuple[Any, Any, Any]:
        """Bytes of the tensor, which of them exist, and bytes of shared memory, for every element
        of the box (a row each) at each corner, whose tile begins at `start`."""
        number = np.arange(math.prod(self.box))[:, None]
        inner = start + number * self.bytes
        at: Any = 0
        inside: Any = True
        for first, n, extent, stride in zip(
            corner, self.box, self.extents, self.strides, strict=True
        ):
            index = first + number % n
            inside = inside & (index >= 0) & (index < extent)
            at, number = at + index * stride, number // n
        return at, inside, swizzled(inner, self.line)


def read(source: TensorMap, tensors: Mapping[str, Memory], sizes: Mapping[str, int]) -> Box:
    """What a tensor map says at these sizes."""
    f = source.fields
    if "box" not in f:
        raise UnmodelledError("im2col tensor maps")

    def numbers(name: str) -> tuple[int, ...]:
        return tuple(evaluate(e, sizes) for e in f[name])

    kind, interleave, swizzle, fill = (
        evaluate(f[name], sizes) for name in ("type", "interleave", "swizzle", "fill")
    )
    if kind >= len(_BYTES) or interleave or swizzle > 3 or fill:
        raise UnmodelledError("packed, interleaved or NaN-filling tensor maps")
    if any(step != 1 for step in numbers("steps")[1:]):
        raise UnmodelledError("tensor maps with element strides")
    strides = (_BYTES[kind], *numbers("strides"))
    memory = tensors[source.tensor]
    return Box(memory, _BYTES[kind], numbers("extents"), strides, numbers("box"), 16 << swizzle)


def _tile(warp: Warp, arg: Any, pointer: Any, corner: list[Any]) -> tuple[Box, Any, Any, Pointer]:
    """The map, the lanes that copy, their corner and their tile."""
    box = warp.launch.boxes.get(arg)
    if box is None:
        raise UnmodelledError("bulk copies without a tensor map")
    if len(corner) != len(box.box):
        raise FaultError(f"a copy with {len(corner)} coordinates of {len(box.box)}")
    rows = np.flatnonzero(warp.active)
    place, at, kind = warp.pointer(pointer)
    if kind.bytes != box.bytes:
        raise UnmodelledError(f"a tile of {kind.name} from elements of {box.bytes} bytes")
    return box, rows, [warp.each(e)[rows] for e in corner], (place, warp.spread(at)[rows], kind)


def load(warp: Warp, args: list[Any]) -> None:
    """(map, mbarrier, shared, coordinates…, cache hint)"""
    box, rows, corner, (place, start, kind) = _tile(warp, args[0], args[2], list(args[3:-1]))
    blocks, slot = warp.lanes.block[rows], warp.each(args[1].indices[0])[rows]
    mbarriers = warp.mbarriers(args[1])

    def arrives() -> None:
        at, inside, to = box.places(corner, start)
        owner = np.broadcast_to(blocks, to.shape)
        zero = np.zeros(to.shape, np.int64)
        for memory in (place.memory, place.memory.async_view):
            memory.store(owner, to, kind, zero, ~inside)
            memory.move(owner[inside], to[inside], box.memory, (0, at[inside]), kind)
        mbarriers.complete(blocks, slot, box.size)

    warp.launch.start(arrives)


def store(warp: Warp, args: list[Any]) -> None:
    """(map, shared, coordinates…, reduction, cache hint)"""
    if int(args[-2].value):
        raise UnmodelledError("TMA stores that reduce")
    box, rows, corner, (place, start, kind) = _tile(warp, args[0], args[1], list(args[2:-2]))
    blocks = warp.lanes.block[rows]

    def happens() -> None:
        at, inside, of = box.places(corner, start)
        owner = np.broadcast_to(blocks, of.shape)[inside]
        box.memory.move(0, at[inside], place.memory.async_view, (owner, of[inside]), kind)

    warp.stores.add(happens)


CALLS = {
    "tl.tma_load": load,
    "tl.tma_store": store,
    "tl.tma_store_arrive": lambda warp, args: warp.stores.commit(),
    "tl.tma_store_wait": lambda warp, args: warp.stores.wait(int(args[0].value)),
    "tl.prefetch_tma_descriptor": lambda warp, args: None,
}
