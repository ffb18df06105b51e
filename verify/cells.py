"""Tensor memory of one tile, executed on labels and words: tcgen05's multiplies, copies, loads.

An element of a product is a function of its row of A and its column of B, and of their scales.
Layouts are those of the PTX ISA, "Data path layout organization" and the shapes of tcgen05.ld.
Lanes are in step, so all happens where it is issued; a wait by mbarrier must find it issued.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import tensor
from .facts import scalar_bits
from .flow import NONE, Flow, Memory, UnfollowedError, join, mix
from .matrices import NAMES, from_memory, products

if TYPE_CHECKING:
    from .tile import Tile

_WARP, _LANES, _CELL = 32, 128, 4  # threads; lanes; bytes of a lane's column
_ROW = 32  # bytes of a row of an operand along K


class Cells:
    """128 lanes of columns of every block, in the order in which they are taken."""

    def __init__(self) -> None:
        self.columns = 0  # all that the program takes
        self.first: dict[Any, int] = {}  # of what has its address in a buffer
        self.phases: dict[Any, Any] = {}  # of each mbarrier, how many are over in every block
        self.held: Memory | None = None  # once used
        self._taken = 0

    def memory(self, tile: Tile) -> Memory:
        if self.held is None:
            size = _LANES * self.columns * _CELL
            unit = min(*tile.unit.values(), _CELL)
            self.held = Memory(int(tile.block.max()) + 1, size, unit)
        return self.held

    def take(self, holder: Any, columns: int) -> None:
        if self._taken + columns > self.columns:
            raise UnfollowedError("tensor memory taken in a loop")
        self.first[holder] = self._taken
        self._taken += columns

    def column(self, tile: Tile, lanes: Any, holder: Any, offset: Any) -> tuple[Any, Any]:
        """Lane and column of an address: the one in `holder`, and `offset` more."""
        if holder not in self.first:
            raise UnfollowedError("tensor memory before it is taken")
        lane, column = np.divmod(tile.per_lane(tile.number(offset))[lanes], 1 << 16)
        return lane, column + self.first[holder]

    def byte(self, lane: Any, column: Any) -> Any:
        if np.size(column) and (np.min(column) < 0 or np.max(column) >= self.columns):
            raise UnfollowedError("an access outside tensor memory")
        return (lane * self.columns + column) * _CELL


def elected(tile: Tile, extent: int) -> Any:
    """Of every `extent` threads the first that is here in their first warp; of all if it is 0."""
    warp, thread = tile.lanes // _WARP, _thread(tile)
    here = np.flatnonzero(tile.mask)
    first = np.isin(tile.lanes, here[np.unique(warp[here], return_index=True)[1]])
    return first & ((thread if extent == 0 else thread % extent) < _WARP)


def _thread(tile: Tile) -> Any:
    """The number of each lane in its block."""
    return tile.lanes - np.searchsorted(tile.block, tile.block)


def _issuers(tile: Tile) -> Any:
    """A lane of the warp that is here in each block."""
    here = np.flatnonzero(tile.mask)
    blocks, first = np.unique(tile.block[here], return_index=True)
    if len(np.unique(here // _WARP)) != len(blocks):
        raise UnfollowedError("tensor memory used by several warps at once")
    return here[first]


# --- loads and stores ----------------------------------------------------------------------------


def pattern(bits: int, words: int) -> tuple[Any, Any]:
    """[threads, words]: lane and column of each word that a thread of a warp has."""
    t, w = np.arange(_WARP)[:, None], np.arange(words)
    if bits == _WARP:
        return t + 0 * w, w + 0 * t
    if bits == 64:
        return t % 2 * 8 + t // 4 + 0 * w, 2 * w + t // 2 % 2
    if bits == 128:
        return t // 4 + w % 2 * 8, w // 2 * 4 + t % 4
    return t // 4 + w // 2 % 2 * 8, w // 4 * 8 + t % 4 * 2 + w % 2


def _access(tile: Tile, name: str, args: list[Any]) -> tuple[Any, int, Any, Any]:
    """(bits of a lane, repetitions, halves packed, address, first column, lanes, registers): the
    registers' buffer, bytes moved at once, and bytes [lanes, pieces] of registers and of memory."""
    args = tensor.plain(args)
    bits, count, lanes = (int(args[i].value) for i in (0, 1, 5))
    packed, words = bool(args[2].value), count * max(bits // 64, 1)
    lane, column = pattern(bits, words)
    if lanes == _WARP and bits > _WARP:  # lanes from 16 on are in registers behind those
        lane, column = np.hstack([lane, lane + 16]), np.hstack([column, column])
    data, kind, start = tile.pointer(args[6])
    registers, _, _ = tile.owner(data, start)
    memory = tile.cells.memory(tile)
    unit = 2 if packed else max(registers.unit, memory.unit)
    if unit < max(registers.unit, memory.unit):
        raise UnfollowedError(f"halves of registers of {kind}")
    part = np.arange(0, _CELL, unit)
    column = column[:, :, None] * (2 if packed else 1) + (part // 2 if packed else 0 * part)
    quarter = _thread(tile) // _WARP % (_LANES // _WARP) * _WARP
    (columns,) = tensor.TABLE[name](args).columns
    above, first = tile.cells.column(tile, tile.lanes, columns.holder, columns.first)
    own = tile.lanes % _WARP
    place = tile.cells.byte(
        (quarter + above % _WARP)[:, None, None] + lane[own][:, :, None],
        first[:, None, None] + column[own],
    )
    place = (place + (0 if packed else part)).reshape(len(own), -1)
    local = start[:, None] * (scalar_bits(kind) // 8) + np.arange(0, lane.shape[1] * _CELL, unit)
    return data, unit, local, place


def load(tile: Tile, args: list[Any], node: Any) -> None:
    data, unit, local, place = _access(tile, str(node.op.name), args)
    byte = np.where(tile.mask[:, None], place, 0)
    flow = tile.cells.memory(tile).read(tile.block[:, None], byte, unit)
    tile.put(data, NAMES[unit], local // unit, flow)


def store(tile: Tile, args: list[Any], node: Any) -> None:
    data, unit, local, place = _access(tile, str(node.op.name), args)
    flow = tile.get(data, NAMES[unit], local // unit)
    tile.cells.memory(tile).write(tile.block[:, None], place, unit, flow, tile.mask[:, None])


def take(tile: Tile, args: list[Any], node: Any) -> None:
    _issuers(tile)
    tile.cells.take(args[0].args[1], int(args[1].value))


# --- scales --------------------------------------------------------------------------------------


def transpose(tile: Tile, args: list[Any], node: Any) -> None:
    """Of four rows of 32 words a lane reads one each, and writes them side by side."""
    data, kind, start = tile.pointer(args[0])
    own, four = (tile.lanes % _WARP)[:, None], np.arange(4)
    flow = tile.get(data, kind, start[:, None] + four * _WARP + own)
    tile.put(data, kind, start[:, None] + own * 4 + four, flow)


def copy_scales(tile: Tile, args: list[Any], node: Any) -> None:
    """32 rows of four words, into each quarter of the lanes: (shared, holder, first column)."""
    lanes, memory = _issuers(tile), tile.cells.memory(tile)
    data, kind, start = tile.pointer(args[0])
    source, owner, offset = tile.owner(data, start)
    unit = max(source.unit, memory.unit)
    byte = np.arange(0, _LANES * _CELL, unit)
    begin = start[lanes, None] * (scalar_bits(kind) // 8) + offset
    flow = source.read(owner[lanes, None], begin + byte, unit)
    _, column = tile.cells.column(tile, lanes, args[1], args[2])
    word, rest = np.divmod(byte, _CELL)
    for quarter in range(0, _LANES, _WARP):
        at = tile.cells.byte(quarter + word // 4, column[:, None] + word % 4) + rest
        memory.write(tile.block[lanes, None], at, unit, flow, np.array(True))


def _scaled(tile: Tile, side: Flow, address: list[Any], number: Any, lanes: Any) -> Flow:
    """Rows of A or columns of B, each with its scale."""
    _, column = tile.cells.column(tile, lanes, *address)
    i = np.arange(side.word.shape[1])
    at = tile.cells.byte(i % _WARP, column[:, None] + i // _WARP)
    by = tile.cells.memory(tile).read(tile.block[lanes, None], at, _CELL)
    word = mix(by.word, number[:, None])
    return Flow(join(side.label, by.label[..., None]), mix(side.word, word[..., None]))


# --- multiplies ----------------------------------------------------------------------------------


def multiply(tile: Tile, args: list[Any], node: Any) -> None:
    """D ← D, unless it is cleared, and A B: (kind, A, offset, B, offset, D, offset, …)"""
    name = str(node.op.name)
    read, _ = tensor.multiply(name, args)
    flags = args[15:] if "blockscaled" in name else args[13:]
    if bool(flags[-1].value):
        raise UnfollowedError("tcgen05.mma of two blocks")
    lanes = _issuers(tile)
    width = tensor._TYPES[str(args[0].value)]
    fields = tile.per_lane(tile.number(args[7]))[lanes]
    rows, n = int(fields[0] >> 24 & 31) * 16, int(fields[0] >> 17 & 63) * 8
    whole = rows == _LANES or (rows == 64 and not (name.endswith("mma_ss") and flags[0].value))
    b = from_memory(tile, read[0], width, lanes)
    if len(read) > 1:
        a = from_memory(tile, read[1], width, lanes)
    else:
        a = _in_cells(tile, args[1:3], rows, width, lanes)
    if "blockscaled" in name:
        a = _scaled(tile, a, args[9:11], fields >> 29 & 3, lanes)
        b = _scaled(tile, b, args[11:13], fields >> 4 & 3, lanes)
    part = n if whole else n * rows // _LANES
    i, j = np.arange(rows)[:, None], np.arange(n)
    above, first = (v[:, None, None] for v in tile.cells.column(tile, lanes, *args[5:7]))
    at = tile.cells.byte(above + _lane(i, rows, whole) + j // part * rows, first + j % part)
    memory, owner = tile.cells.memory(tile), tile.block[lanes, None, None]
    before, more = memory.read(owner, at, _CELL), products(a, b)
    keep = (tile.per_lane(tile.number(args[8]))[lanes] != 0)[:, None, None]
    label = np.where(keep, before.label, NONE)
    word = np.where(keep, before.word, mix(np.uint64(0)))
    flow = Flow(join(label, more.label), mix(word, more.word))
    memory.write(owner, at, _CELL, flow, np.array(True))


def _lane(row: Any, rows: int, whole: bool) -> Any:
    """Of 64 rows that have lanes of their own, every other 16 lanes are used."""
    return row // 16 * 32 + row % 16 if rows == 64 and whole else row


def _in_cells(tile: Tile, address: list[Any], rows: int, width: int, lanes: Any) -> Flow:
    """[lanes, rows, k] of A in tensor memory."""
    above, first = tile.cells.column(tile, lanes, *address)
    byte = np.arange(0, _ROW, width)
    i = _lane(np.arange(rows)[:, None], rows, True)
    at = tile.cells.byte(above[:, None, None] + i, first[:, None, None] + byte // _CELL)
    memory = tile.cells.memory(tile)
    return memory.read(tile.block[lanes, None, None], at + byte % _CELL, width)


# --- mbarriers -----------------------------------------------------------------------------------


def initialize(tile: Tile, args: list[Any], node: Any) -> None:
    """(mbarrier, arrivals)"""
    if int(getattr(args[1], "value", 0)) != 1:
        raise UnfollowedError("an mbarrier for several arrivals")
    _phases(tile, args[0].buffer.data, args[0].indices[0], np.flatnonzero(tile.mask), 0)


def commit(tile: Tile, args: list[Any], node: Any) -> None:
    """(pointer to an mbarrier): another phase of it is over."""
    _phases(tile, args[0].args[1], args[0].args[2], _issuers(tile), 1)


def wait(tile: Tile, args: list[Any], node: Any) -> None:
    """(mbarrier, parity): a phase of this parity is over, or one would wait for what others do
    later in this order."""
    lanes = np.flatnonzero(tile.mask)
    over = _phases(tile, args[0].buffer.data, args[0].indices[0], lanes, 0)
    if ((over & 1) == (tile.per_lane(tile.number(args[1]))[lanes] & 1)).any():
        raise UnfollowedError("threads that wait for what others do later")


def _phases(tile: Tile, data: Any, index: Any, lanes: Any, more: int) -> Any:
    """How many phases of each lane's mbarrier are over, `more` of them only now."""
    slots = tile.per_lane(tile.number(index))[lanes]
    found = np.zeros(len(lanes), np.int64)
    for slot in np.unique(slots):
        mine = slots == slot
        phases = tile.cells.phases.setdefault(
            (data, int(slot)), np.zeros(len(tile.lanes), np.int64)
        )
        phases[tile.block[lanes[mine]]] += more
        found[mine] = phases[tile.block[lanes[mine]]]
    return found


CALLS = {
    "tl.ptx_init_tensor_memory": take,
    "tl.ptx_deallocate_tensor_memory": lambda tile, args, node: None,
    "tl.tcgen05_ld": load,
    "tl.tcgen05_st": store,
    "tl.ptx_tcgen05_cp_warpx4": copy_scales,
    "tl.ptx_tcgen05_sf_warp_transpose": transpose,
    **dict.fromkeys(tensor.MULTIPLIES, multiply),
    "tirx.ptx_init_barrier_thread_count": initialize,
    "tl.tcgen05_mma_arrive": commit,
    "tl.mbarrier_wait_parity": wait,
}
