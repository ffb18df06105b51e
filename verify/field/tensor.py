"""Tensor memory of the fifth generation of matrix units (sm_100a): who holds it, loads and stores,
and the order of what is issued there.

A thread's multiplies and copies happen one after another; an mbarrier says that they are over, at
which a commit after them arrives. Sources: PTX ISA, tcgen05 (shapes of ld and st, commit, cp);
TileLang's ``tl_templates/cuda/tcgen_05.h`` and ``copy_sm100.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import scales
from .fragments import WARP
from .memory import FaultError, Memory, UnmodelledError, element
from .scales import LANES, WORD

if TYPE_CHECKING:
    from .device import Warp

COLUMNS = 512  # of 32 bits
PITCH = COLUMNS * WORD.bytes  # bytes of a lane
_LEAST = 32  # columns: what an allocation is a multiple of


class TensorMemory:
    """Of every block 128 lanes of 512 columns, and which columns of them are held."""

    def __init__(self, blocks: int) -> None:
        self.memory = Memory("tensor memory", blocks, LANES * PITCH, "device")
        # first column and number of columns of what holds a column; 0 columns: it is free
        self.first, self.size = (np.zeros((blocks, COLUMNS), np.int64) for _ in range(2))

    def take(self, block: int, columns: int) -> int:
        """The first of `columns` free columns, which are held from now on."""
        for first in range(0, COLUMNS - columns + 1, _LEAST):
            held = self.size[block, first : first + columns]
            if not held.any():
                held[:] = columns
                self.first[block, first : first + columns] = first
                lanes = self.memory.code[block].reshape(LANES, PITCH)
                lanes[:, first * WORD.bytes : (first + columns) * WORD.bytes] = 0
                return first
        raise FaultError(f"{columns} columns of tensor memory are asked for, and are not left")

    def give_back(self, block: int, first: int, columns: int) -> None:
        self.require(np.array([block]), np.array([first]), columns)
        held = slice(first, first + columns)
        if (self.first[block, held] != first).any() or (self.size[block, held] != columns).any():
            raise FaultError(
                f"{columns} columns of tensor memory are given back, not what was taken"
            )
        self.size[block, held] = 0

    def require(self, blocks: Any, column: Any, count: int) -> None:
        """Of each block `count` columns from `column` on are held, by one allocation."""
        at = column[:, None] + np.arange(count)
        outside = (at < 0) | (at >= COLUMNS)
        inside = np.where(outside, 0, at)
        wrong = outside | (self.size[blocks[:, None], inside] == 0)
        wrong |= self.first[blocks[:, None], inside] != self.first[blocks[:, None], inside[:, :1]]
        if wrong.any():
            raise FaultError(f"column {int(at[wrong][0])} of tensor memory, which is not allocated")


def turns(warp: Warp) -> Iterator[Any]:
    """The elected lane of every warp that is here, of each block one after another."""
    here = warp.by_warp(warp.active)
    first = np.arange(0, here.size, WARP) + here.argmax(axis=1)
    first = first[here.any(axis=1)]
    blocks = warp.lanes.block[first]
    turn = np.arange(len(first)) - np.searchsorted(blocks, blocks)
    for number in range(int(turn.max(initial=-1)) + 1):
        yield first[turn == number]


def _allocate(warp: Warp, args: list[Any]) -> None:
    """(where the address goes, columns)"""
    place, at, _ = warp.pointer(args[0])
    for rows in turns(warp):
        blocks = warp.lanes.block[rows]
        first = [warp.launch.tensor.take(int(b), int(args[1].value)) for b in blocks]
        here = np.ones(len(rows), bool)
        place.memory.store(blocks, warp.spread(at)[rows], WORD, np.array(first), here)


def _free(warp: Warp, args: list[Any]) -> None:
    """(where the address is, columns)"""
    for rows in turns(warp):
        pointer = warp.pointer(args[0])
        first = warp.read(pointer, 1)[0][rows]
        for block, column in zip(warp.lanes.block[rows], first, strict=True):
            warp.launch.tensor.give_back(int(block), int(column), int(args[1].value))


def address(warp: Warp, rows: Any, holder: Any, offset: Any) -> tuple[Any, Any]:
    """First lane and column, of each of `rows`, of `offset` after the address in `holder`."""
    place = warp.places[holder]
    blocks = warp.lanes.block[rows]
    start = np.broadcast_to(place.offset, blocks.shape)
    found = place.memory.load(blocks, start, WORD, np.ones(len(rows), bool))
    return np.divmod(found + warp.each(offset)[rows], 1 << 16)


# --- loads and stores ----------------------------------------------------------------------------


def cells(bits: int, count: int) -> tuple[Any, Any]:
    """Lane and column (registers, threads) of each register of a warp's threads."""
    t = np.arange(WARP)
    if bits == WORD.bits:
        return np.broadcast_to(t, (count, WARP)), np.repeat(np.arange(count)[:, None], WARP, 1)
    if (bits, count) not in {(b, n) for b in (64, 128, 256) for n in range(1, 8192 // b + 1)}:
        raise UnmodelledError(f"{count} accesses to tensor memory of {bits} bits")
    repeat, part = (v[:, None] for v in np.divmod(np.arange(count * bits // 64), bits // 64))
    lane, column = {
        64: (8 * (t % 2) + t // 4 + 0 * part, t // 2 % 2 + 0 * part),
        128: (t // 4 + 8 * part, t % 4 + 0 * part),
        256: (t // 4 + 8 * (part // 2), 2 * (t % 4) + part % 2),
    }[bits]
    return lane, column + repeat * (bits // WORD.bits)


def _move(warp: Warp, args: list[Any], store: bool) -> None:
    """(bits of a lane, repetitions, halves packed, address, first column, lanes, registers)"""
    here = warp.by_warp(warp.active)
    if (here.any(axis=1) != here.all(axis=1)).any():
        raise FaultError("tensor memory accessed by some threads of a warp")
    bits, count, lanes = (int(args[i].value) for i in (0, 1, 5))
    packed = bool(args[2].value)
    lane, column = cells(bits, count)
    if lanes == WARP and bits > WORD.bits:  # its other lanes follow, in registers of their own
        lane, column = np.concatenate([lane, lane + 16]), np.concatenate([column, column])
    register = np.arange(len(lane))[:, None] * WORD.bytes
    unit = WORD
    if packed:  # a register holds the first half of each of two columns
        unit = element("uint16")
        lane = np.repeat(lane, 2, axis=0)
        column = np.stack([2 * column, 2 * column + 1], 1).reshape(lane.shape)
        register = register + np.arange(2) * unit.bytes
        register = register.reshape(-1, 1)
    rows = np.flatnonzero(warp.active)
    blocks = warp.lanes.block[rows]
    first = warp.each(args[3])[rows] + warp.each(args[4])[rows]
    above, start = np.divmod(first, 1 << 16)
    quarter = warp.lanes.thread[rows] // WARP % (LANES // WARP) * WARP
    if ((above != 0) & (above // WARP * WARP != quarter)).any():
        raise FaultError("tensor memory accessed in lanes of another warp")
    tensor = warp.launch.tensor
    tensor.require(blocks, start, int(column.max()) + 1)
    mine = warp.lanes.thread[rows] % WARP
    at = (quarter + above % WARP + lane[:, mine]) * PITCH + (start + column[:, mine]) * WORD.bytes
    place, begin, _ = warp.pointer(args[6])
    local = warp.owner(place)[rows], warp.spread(begin)[rows] + register
    local = np.broadcast_to(local[0], at.shape), local[1]
    if store:
        tensor.memory.move(np.broadcast_to(blocks, at.shape), at, place.memory, local, unit)
    else:
        there = np.broadcast_to(blocks, at.shape), at
        place.memory.move(*local, tensor.memory, there, unit)


# --- what is asynchronous ------------------------------------------------------------------------


def issue(warp: Warp, happens: Callable[[], None], commit: bool = False) -> None:
    """What happens after all that the warp issued before, a commit once hardware likes."""
    if not warp.launch.schedule.late:
        happens()
        return
    warp.issued.append((happens, commit))
    if commit:
        warp.launch.start(lambda: _until_commit(warp))


def _until_commit(warp: Warp) -> None:
    over = False
    while not over:
        happens, over = warp.issued.pop(0)
        happens()


def _commit(warp: Warp, args: list[Any]) -> None:
    """(mbarrier): is arrived at when all that was issued before is over."""
    pointer = args[0]
    named = hasattr(pointer, "buffer")
    data, index = (
        (pointer.buffer.data, pointer.indices[0]) if named else (pointer.args[1], pointer.args[2])
    )
    mbarriers = warp.launch.arrays.get(str(data))
    if mbarriers is None:
        raise UnmodelledError(f"mbarrier {pointer}")
    for rows in turns(warp):
        blocks, slot = warp.lanes.block[rows], warp.each(index)[rows]

        def arrive(blocks: Any = blocks, slot: Any = slot) -> None:
            mbarriers.arrive(blocks, slot)

        issue(warp, arrive, commit=True)


def _copy_scales(warp: Warp, args: list[Any]) -> None:
    """(shared, holder, first column)"""
    place, at, _ = warp.pointer(args[0])
    for rows in turns(warp):
        blocks, start = warp.lanes.block[rows], warp.spread(at)[rows]
        _, column = address(warp, rows, args[1], args[2])

        def happens(blocks: Any = blocks, start: Any = start, column: Any = column) -> None:
            tensor = warp.launch.tensor
            tensor.require(blocks, column, 4)
            source = place.memory.async_view
            scales.copy(tensor.memory, PITCH, blocks, column, source, start)

        issue(warp, happens)


CALLS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "tl.ptx_init_tensor_memory": _allocate,
    "tl.ptx_deallocate_tensor_memory": _free,
    "tl.tcgen05_ld": lambda warp, args: _move(warp, args, store=False),
    "tl.tcgen05_st": lambda warp, args: _move(warp, args, store=True),
    "tl.ptx_tcgen05_cp_warpx4": _copy_scales,
    "tl.ptx_tcgen05_sf_warp_transpose": scales.transpose,
    "tl.tcgen05_mma_arrive": _commit,
    # These order what is in program order here.
    "tl.tcgen05_before_thread_sync": lambda warp, args: None,
    "tl.tcgen05_after_thread_sync": lambda warp, args: None,
}
