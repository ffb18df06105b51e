"""Multiplies of a warpgroup: every warp has 16 of the 64 rows, and reads all of B.

Operands in shared memory come through descriptors: a start, two strides and the line in which
chunks are permuted (PTX ISA, "Asynchronous warpgroup-level matrix shared memory layout").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .fragments import WARP, gather, multiply, of_a, of_c, scatter
from .machine import Place
from .memory import Element, UnmodelledError
from .tma import swizzled

if TYPE_CHECKING:
    from .device import Warp

_LINES = (16, 128, 64, 32)  # bytes, by the layout field
_CORE = 16  # bytes of a chunk: the unit of a descriptor's fields
_EIGHT = 8  # rows of a core matrix


@dataclass(frozen=True)
class Descriptor:
    """`start` is the byte of `place` for each lane; `leading` and `stride` are in bytes."""

    place: Place
    kind: Element
    start: Any
    line: int
    leading: int
    stride: int

    def places(self, first: Any, rows: Any, depth: int, k_major: bool, size: int) -> Any:
        """Bytes of elements [row, k] of `size` bytes, (operands, rows, depth), of operands that
        start at `first`."""
        row, k = rows[..., None], np.arange(depth)
        outer, along = (row, k * size) if k_major else (k, row * size)
        strides = (self.stride, self.leading)
        if self.line == _CORE and not k_major:
            strides = strides[::-1]
        at = outer % _EIGHT * self.line + outer // _EIGHT * strides[0]
        at = at + along % self.line + along // self.line * strides[1]
        return swizzled(at + first[:, None, None], self.line)

    def read(self, warp: Warp, shift: Any, rows: Any, depth: int, k_major: bool) -> Any:
        """Elements [row, k] of every warp's rows, (warps, rows, depth), `shift` bytes on."""
        first = warp.by_warp(warp.spread(self.start + shift))[:, 0]
        at = self.places(first, rows, depth, k_major, self.kind.bytes)
        memory, active = self.place.memory.async_view, warp.by_warp(warp.active)[:, 0]
        owner = warp.by_warp(warp.lanes.block)[:, 0]
        return memory.load(
            np.broadcast_to(owner[:, None, None], at.shape),
            at,
            self.kind,
            np.broadcast_to(active[:, None, None], at.shape),
        )


def initialize(warp: Warp, args: list[Any]) -> None:
    place, start, kind = warp.pointer(args[1])
    layout, leading, stride = (int(a.value) for a in args[2:5])
    warp.descriptors[args[0].buffer.data] = Descriptor(
        place, kind, start, _LINES[layout], leading * _CORE, stride * _CORE
    )


def increase(warp: Warp, args: list[Any]) -> None:
    found = descriptor(warp, args[0].buffer.data)
    start = found.start + warp.value(args[1]) // _CORE * _CORE
    warp.descriptors[args[0].buffer.data] = replace(found, start=start)


def descriptor(warp: Warp, data: Any) -> Descriptor:
    found = warp.descriptors.get(data)
    if found is None:
        raise UnmodelledError(f"descriptor {data.name} before its initialization")
    return found


def from_shared(warp: Warp, args: list[Any]) -> None:
    a = descriptor(warp, args[6])
    shift = warp.value(args[7]) * _CORE

    def left(rows: Any, depth: int) -> Any:
        return a.read(warp, shift, rows, depth, bool(args[1].value))

    _wgmma(warp, args[0], left, a.kind, args[2], args[8:])


def from_registers(warp: Warp, args: list[Any]) -> None:
    pointer, offset = warp.pointer(args[5]), warp.value(args[6])

    def left(rows: Any, depth: int) -> Any:
        return gather(warp, pointer, offset, (16, depth), of_a(4 // pointer[2].bytes))

    _wgmma(warp, args[0], left, pointer[2], args[1], args[7:])


def _wgmma(
    warp: Warp, shape: Any, left: Any, kind: Element, b_k_major: Any, rest: list[Any]
) -> None:
    """`rest`: descriptor and offset of B, pointer and offset of the sums, what scales them, A, B"""
    sizes = re.fullmatch(r"m64n(\d+)k(\d+)", str(shape.value))
    scales = [int(getattr(e, "value", 2)) for e in rest[5:7]]
    if sizes is None or scales != [1, 1]:
        raise UnmodelledError(f"wgmma {shape.value} of scales {scales}")
    n, k = int(sizes[1]), int(sizes[2])
    b = descriptor(warp, rest[0])
    shift, c, offset = warp.value(rest[1]) * _CORE, warp.pointer(rest[2]), warp.value(rest[3])
    keeps = warp.by_warp(warp.each(rest[4]))[:, 0] != 0
    number = warp.by_warp(warp.lanes.thread)[:, 0] // WARP % 4

    def happens() -> None:
        rows = number[:, None] * 16 + np.arange(16)
        a = left(rows, k)
        columns = np.broadcast_to(np.arange(n), (len(number), n))
        right = b.read(warp, shift, columns, k, bool(b_k_major.value)).swapaxes(1, 2)
        total = gather(warp, c, offset, (16, n), of_c) * keeps[:, None, None]
        scatter(warp, c, offset, multiply(a, right, total, kind, c[2].name), of_c)

    warp.multiplies.add(warp.later(happens))


CALLS = {
    "tl.initialize_wgmma_descriptor": initialize,
    "tl.increase_descriptor_offset": increase,
    "tl.ptx_wgmma_ss": from_shared,
    "tl.ptx_wgmma_rs": from_registers,
    "tl.warpgroup_commit_batch": lambda warp, args: warp.multiplies.commit(),
    "tl.warpgroup_wait": lambda warp, args: warp.multiplies.wait(int(args[0].value)),
    # These order registers, which come in program order here.
    "tl.warpgroup_arrive": lambda warp, args: None,
    "tl.warpgroup_fence_operand": lambda warp, args: None,
}
