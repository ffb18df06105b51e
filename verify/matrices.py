"""Matrix instructions of one tile, executed on labels and words: ldmatrix, mma, wgmma; those that
work in tensor memory are in ``cells.py``.

An element of a product is a function of its row of A and its column of B, whatever the order of
sums that the hardware chooses. Layouts are those of PTX ISA, "Matrix fragments for mma" and of
wgmma's fragments and descriptors. Lanes are in step, so a wgmma happens where it is issued.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .facts import scalar_bits
from .flow import MIXED, NONE, Flow, UnfollowedError, join, mix
from .intrinsics import _MMA, Operand
from .operands import layout_of, moved, operands, places

if TYPE_CHECKING:
    from .tile import Tile

_WARP, _GROUP = 32, 128
_UNIT = 16  # bytes of a chunk
_BYTES = {
    "e4m3": 1,
    "e5m2": 1,
    "fp16": 2,
    "bf16": 2,
    "float16": 2,
    "bfloat16": 2,
    "tf32": 4,
    "fp32": 4,
}
NAMES = {1: "uint8", 2: "bfloat16", 4: "float32"}  # one of each width: data have no value


def load(tile: Tile, args: list[Any], node: Any) -> None:
    transposed, count = bool(args[0].value), int(args[1].value)
    source, kind, row = tile.pointer(args[2])
    target, _, start = tile.pointer(args[3])
    each = 4 // _width(kind)
    if transposed and each != 2:
        raise UnfollowedError(f"ldmatrix.trans of {kind}")
    lane = (tile.lanes % _WARP)[:, None]
    matrix, part = np.divmod(np.arange(each * count), each)
    across, down = lane % 4 * each + part, lane // 4
    r, c = (across, down) if transposed else (down, across)
    index = row[(tile.lanes // _WARP * _WARP)[:, None] + 8 * matrix + r] + c
    to = start[:, None] + np.arange(each * count)
    tile.put(target, kind, to, tile.get(source, kind, index))


def _width(kind: Any) -> int:
    return scalar_bits(kind) // 8


def multiply(tile: Tile, args: list[Any], node: Any) -> None:
    """C ← C and A B, a warp at a time."""
    m, n, k = _MMA[str(args[0].value)]
    width = _BYTES.get(str(args[3].value), 0)
    if str(args[1].value) != "row" or str(args[2].value) != "col" or not width:
        raise UnfollowedError(f"mma {args[3].value}")
    a = _fragment(tile, args[6], args[7], (m, k), width)
    b = _fragment(tile, args[8], args[9], (n, k), width)
    warps = tile.lanes // _WARP
    _add(tile, (args[10], args[11]), products(a, b), warps, tile.lanes % _WARP // 4, True)


def _fragment(tile: Tile, data: Any, base: Any, shape: tuple[int, int], width: int) -> Flow:
    """[warps, rows of A or columns of B, k] of an operand in registers."""
    per = 4 // width
    warp, lane = (v[:, None] for v in np.divmod(tile.lanes, _WARP))
    register, part = np.divmod(np.arange(shape[0] * shape[1] // _WARP), per)
    halves = shape[0] // 8  # registers alternate between rows g and g + 8
    i = lane // 4 + 8 * (register % halves)
    at = lane % 4 * per + part + 4 * per * (register // halves)
    whole = (int(warp.max()) + 1, *shape)
    label, word = np.full(whole, NONE, np.int64), np.zeros(whole, np.uint64)
    flow = tile.get(data, NAMES[width], _registers(tile, base, len(register)))
    label[warp, i, at], word[warp, i, at] = flow
    return Flow(label, word)


def _registers(tile: Tile, base: Any, count: int) -> Any:
    """Indices of `count` elements from `base` on, a row per thread."""
    return tile.per_lane(tile.number(base))[:, None] + np.arange(count)


def products(a: Flow, b: Flow) -> Flow:
    """[groups, rows of A, columns of B] of operands with k along their last axis."""
    words = [mix(*np.moveaxis(side.word, -1, 0)) for side in (a, b)]
    labels = [_all_of(side.label) for side in (a, b)]
    return Flow(
        join(labels[0][:, :, None], labels[1][:, None, :]),
        mix(words[0][:, :, None], words[1][:, None, :]),
    )


def _all_of(label: Any) -> Any:
    """The label of what all along the last axis flows into."""
    one = np.max(label, axis=-1, initial=NONE)
    several = ((label != NONE) & (label != one[..., None])).any(axis=-1)
    return np.where(several, np.minimum(np.min(label, axis=-1), MIXED), one)


def _add(
    tile: Tile, sums: tuple[Any, Any], products: Flow, group: Any, row: Any, keeps: Any
) -> None:
    """Products to the registers of each thread, whose first row of its `group`'s is `row`: rows
    row and row + 8, pairs of columns. Where it does not keep what is there, that is zero."""
    e = np.arange(products.word.shape[2] * 16 // _WARP)
    i = row[:, None] + 8 * (e // 2 % 2)
    j = (tile.lanes % 4)[:, None] * 2 + e % 2 + 8 * (e // 4)
    index = _registers(tile, sums[1], len(e))
    before = tile.get(sums[0], "float32", index)
    keep = tile.per_lane(keeps)[:, None]
    label, word = np.where(keep, before.label, NONE), np.where(keep, before.word, mix(np.uint64(0)))
    at = (group[:, None], i, j)
    flow = Flow(join(label, products.label[at]), mix(word, products.word[at]))
    tile.put(sums[0], "float32", index, flow)


def initialize(tile: Tile, args: list[Any], node: Any) -> None:
    tile.descriptors[args[0].buffer.data] = *_place(tile, args[1]), layout_of(node)


def _place(tile: Tile, pointer: Any) -> tuple[Any, Any]:
    """What a pointer points into, and how many bytes after its begin."""
    if moved(pointer):
        data, start = _place(tile, pointer.args[0])
        return data, start + tile.number(pointer.args[1])
    data, kind, index = tile.pointer(pointer)
    return data, index * _width(kind)


def increase(tile: Tile, args: list[Any], node: Any) -> None:
    data, start, layout = tile.descriptors[args[0].buffer.data]
    start = start + tile.number(args[1]) // _UNIT * _UNIT
    tile.descriptors[args[0].buffer.data] = data, start, layout


def multiply_together(tile: Tile, args: list[Any], node: Any) -> None:
    """C ← C, unless it is cleared, and A B, a warpgroup at a time."""
    read, (sums, _, *registers) = operands(str(node.op.name), args)
    kinds = [str(a.value) for a in args[(1 if registers else 2) + 1 :][:3]]
    width = _BYTES.get(kinds[0], 0)
    if not width or kinds[2] != "fp32" or len(tile.lanes) % _GROUP or not _together(tile):
        raise UnfollowedError(f"wgmma of {', '.join(kinds)}")
    group, thread = np.divmod(tile.lanes, _GROUP)
    leaders = np.arange(0, len(tile.lanes), _GROUP)
    b = from_memory(tile, read[0], width, leaders)
    if registers:
        shape = (16, registers[0].count * _WARP // 16)
        warps = _fragment(tile, registers[0].pointer, registers[0].offset, shape, width)
        a = Flow(*(v.reshape(-1, 64, shape[1]) for v in warps))
    else:
        a = from_memory(tile, read[1], width, leaders)
    row = thread // _WARP * 16 + thread % _WARP // 4
    keeps = tile.number(args[(5 if registers else 6) + 6]) != 0
    _add(tile, (sums.pointer, sums.offset), products(a, b), group, row, keeps)


def _together(tile: Tile) -> bool:
    """Whether the threads of each warpgroup are all here or none is."""
    here = tile.mask.reshape(-1, _GROUP)
    return bool((here == here[:, :1]).all())


def from_memory(tile: Tile, operand: Operand, width: int, lanes: Any) -> Flow:
    """[lanes, rows of A or columns of B, k] of an operand in shared memory, by the descriptor that
    each of `lanes` has; of lanes that are not here, any."""
    found = tile.descriptors.get(operand.descriptor)
    if found is None:
        raise UnfollowedError("a descriptor before its initialization")
    data, start, layout = found
    chunks = np.reshape(places(*layout, operand.mn_major, operand.lines, operand.row),
                        (operand.lines, -1, 1))  # fmt: skip
    at = (chunks + np.arange(0, _UNIT, width)).reshape(operand.lines, -1)
    if operand.mn_major:
        at = at.T
    first = tile.per_lane(start + tile.number(operand.units) * operand.unit // _UNIT * _UNIT)
    memory, owner, offset = tile.owner(data, first)
    byte = np.where(tile.mask[lanes], first[lanes] + offset, 0)[:, None, None] + at
    byte = byte ^ (byte >> 3 & (layout[0] - _UNIT))  # a line's number permutes its chunks
    return memory.read(owner[lanes, None, None], byte, width)


CALLS = {
    "tl.ptx_ldmatrix": load,
    "tirx.ptx_mma": multiply,
    "tl.initialize_wgmma_descriptor": initialize,
    "tl.initialize_tcgen05_descriptor": initialize,
    "tl.increase_descriptor_offset": increase,
    "tl.ptx_wgmma_ss": multiply_together,
    "tl.ptx_wgmma_rs": multiply_together,
}
