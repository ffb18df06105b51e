"""Multiplies of the fifth generation of matrix units, into tensor memory.

Operands in shared memory come through descriptors as those of wgmma do, a row of 32 bytes of each
to a multiply; A may lie in tensor memory as well. Sources: PTX ISA, tcgen05 (instruction
descriptor, shared memory descriptor, data path layouts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import scales
from .arithmetic import arithmetic
from .fragments import WARP, multiply
from .memory import Element, UnmodelledError, element
from .scales import LANES, WORD
from .tensor import PITCH, TensorMemory, address, issue, turns
from .wgmma import Descriptor, descriptor

if TYPE_CHECKING:
    from .device import Warp

_LINES = {0: 16, 2: 128, 4: 64, 6: 32}  # bytes, by a descriptor's swizzle
_CORE = 16  # bytes: the unit of a descriptor's fields
_STEP = 32  # bytes of a row of an operand along K
# Types of operands, by the kind of a multiply and the descriptor's code; tf32 is as it lies there.
_FLOATS, _SMALL = {0: "float16", 1: "bfloat16"}, {0: "float8_e4m3fn", 1: "float8_e5m2"}
_INTEGERS = {0: "uint8", 1: "int8"}
_KINDS = {
    **dict.fromkeys(("fp16", "bf16"), _FLOATS),
    **dict.fromkeys(("int8", "uint8"), _INTEGERS),
    **dict.fromkeys(("e4m3", "e5m2"), _SMALL),
    "tf32": {2: "float32"},
}


def initialize(warp: Warp, args: list[Any]) -> None:
    """(descriptor, pointer, leading, stride, base offset, absolute, swizzle)"""
    place, start, kind = warp.pointer(args[1])
    leading, stride, base, absolute, mode = (int(a.value) for a in args[2:7])
    if base or absolute or mode not in _LINES:
        raise UnmodelledError(f"a tcgen05 descriptor of swizzle {mode} and base offset {base}")
    found = Descriptor(place, kind, start, _LINES[mode], leading * _CORE, stride * _CORE)
    warp.descriptors[args[0].buffer.data] = found


@dataclass(frozen=True)
class Instruction:
    """What the bits of an instruction descriptor say."""

    m: int
    n: int
    a: Element
    b: Element
    result: Element
    mn_major: tuple[bool, bool]  # of A and B
    scale: tuple[int, int]  # which byte of a word has A's and B's

    @staticmethod
    def read(kind: str, bits: int, scaled: bool) -> Instruction:
        if kind not in _KINDS:
            raise UnmodelledError(f"tcgen05.mma of {kind}")
        if bits & (1 << 2 | 1 << 3 | 1 << 13 | 1 << 14) or (scaled and not bits >> 23 & 1):
            raise UnmodelledError("a tcgen05.mma that is sparse, saturates or negates")
        names = [_KINDS[kind].get(bits >> at & 7) for at in (7, 10)]
        if None in names:
            raise UnmodelledError(f"tcgen05.mma of {kind} with operands {bits >> 7 & 63}")
        result = "float32"
        if not scaled:
            result = {0: "float16", 1: "float32", 2: "int32"}.get(bits >> 4 & 3, "")
        m, n = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8
        if m not in (32, 64, 128) or not n or not result:
            raise UnmodelledError(f"tcgen05.mma of {m} rows and {n} columns")
        a, b = (element(str(name)) for name in names)
        major = bool(bits >> 15 & 1), bool(bits >> 16 & 1)
        return Instruction(m, n, a, b, element(result), major, (bits >> 29 & 3, bits >> 4 & 3))


@dataclass(frozen=True)
class Multiply:
    """One tcgen05.mma of `blocks`: how to read A, (blocks, m, k), and B, (blocks, n, k), and where
    the rest lies."""

    blocks: Any
    says: Instruction
    operands: list[Callable[[], Any]]
    result: tuple[Any, Any]  # lane and column where D begins
    keeps: Any  # whether the product is added to D
    scales: list[Any]  # columns of those of A and B, if they have any
    whole: bool  # rows have lanes of their own, no two parts of the columns share any

    def happens(self, tensor: TensorMemory) -> None:
        says, blocks = self.says, self.blocks
        sides = [read() for read in self.operands]
        for side, column in enumerate(self.scales):
            count, number = (says.m, says.n)[side], says.scale[side]
            tensor.require(blocks, column, -(-count // WARP))
            by = scales.factors(tensor.memory, PITCH, blocks, column, count, number)
            sides[side] = arithmetic("Mul", "float32", sides[side], by[..., None])
        width = says.n if self.whole else says.n * says.m // LANES
        tensor.require(blocks, self.result[1], width)
        i, j = np.arange(says.m)[:, None], np.arange(says.n)
        lane = lane_of(i, says.m, self.whole) + j // width * says.m
        at = lane * PITCH + j % width * WORD.bytes
        at = at + (self.result[0] * PITCH + self.result[1] * WORD.bytes)[:, None, None]
        owner, here = np.broadcast_to(blocks[:, None, None], at.shape), np.ones(at.shape, bool)
        total = tensor.memory.load(owner, at, says.result, here) * self.keeps[:, None, None]
        a, b = sides
        total = multiply(a, b.swapaxes(1, 2), total, says.a, says.result.name)
        tensor.memory.store(owner, at, says.result, total, here)


def lane_of(row: Any, rows: int, whole: bool) -> Any:
    """The lane of a row; of 64 rows that have lanes of their own, every other 16 lanes are used."""
    return row // 16 * 32 + row % 16 if rows == 64 and whole else row


def _mma(form: str) -> Callable[[Warp, list[Any]], None]:
    """(kind, A, offset, B, offset, D, offset, instruction, whether it adds to D, …)"""

    def multiplies(warp: Warp, args: list[Any]) -> None:
        masks, flags = ([], args[15:]) if form == "scaled" else (args[9:13], args[13:])
        if any(int(getattr(a, "value", 1)) for a in (*masks, flags[-1])):
            raise UnmodelledError("tcgen05.mma of two blocks, or of some lanes")
        stationary = form == "ss" and bool(flags[0].value)
        for rows in turns(warp):
            bits = np.unique(warp.each(args[7])[rows])
            if len(bits) > 1:
                raise UnmodelledError("instruction descriptors that differ between blocks")
            says = Instruction.read(str(args[0].value), int(bits[0]), form == "scaled")
            a = _in_tensor_memory if form == "ts" else _in_shared
            mma = Multiply(
                warp.lanes.block[rows],
                says,
                [
                    a(warp, args[1:3], rows, says.m, says.a, says.mn_major[0]),
                    _in_shared(warp, args[3:5], rows, says.n, says.b, says.mn_major[1]),
                ],
                address(warp, rows, *args[5:7]),
                warp.each(args[8])[rows] != 0,
                [address(warp, rows, *args[i : i + 2])[1] for i in (9, 11) if form == "scaled"],
                says.m == LANES or (says.m == 64 and not stationary),
            )
            issue(warp, lambda mma=mma: mma.happens(warp.launch.tensor))  # type: ignore[misc]

    return multiplies


def _in_shared(
    warp: Warp, args: list[Any], rows: Any, count: int, kind: Element, mn_major: bool
) -> Callable[[], Any]:
    """Elements (blocks, rows of A or columns of B, k) of an operand: (descriptor, bytes)"""
    found = descriptor(warp, args[0])
    first = warp.spread(found.start)[rows] + warp.each(args[1])[rows] // _CORE * _CORE
    blocks = warp.lanes.block[rows]
    depth = _STEP // kind.bytes

    def read() -> Any:
        at = found.places(first, np.arange(count)[None], depth, not mn_major, kind.bytes)
        owner = np.broadcast_to(blocks[:, None, None], at.shape)
        return found.place.memory.async_view.load(owner, at, kind, np.ones(at.shape, bool))

    return read


def _in_tensor_memory(
    warp: Warp, args: list[Any], rows: Any, count: int, kind: Element, mn_major: bool
) -> Callable[[], Any]:
    """The same of A, which must be K-major: (holder, offset)"""
    if mn_major:
        raise UnmodelledError("A in tensor memory that is not K-major")
    lane, column = address(warp, rows, *args)
    blocks, tensor = warp.lanes.block[rows], warp.launch.tensor

    def read() -> Any:
        tensor.require(blocks, column, _STEP // WORD.bytes)
        at = lane_of(np.arange(count)[:, None], count, True) * PITCH
        at = at + np.arange(0, _STEP, kind.bytes)
        at = at + (lane * PITCH + column * WORD.bytes)[:, None, None]
        owner = np.broadcast_to(blocks[:, None, None], at.shape)
        return tensor.memory.load(owner, at, kind, np.ones(at.shape, bool))

    return read


CALLS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "tl.initialize_tcgen05_descriptor": initialize,
    "tl.ptx_tcgen05_mma_ss": _mma("ss"),
    "tl.ptx_tcgen05_mma_ts": _mma("ts"),
    "tl.ptx_tcgen05_mma_blockscaled_ss": _mma("scaled"),
}
