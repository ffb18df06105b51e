"""Scales of products in blocks along K, as tcgen05 reads them: four exponents in a word.

A tensor memory has 128 lanes in four quarters, all of which hold the scales: that of row i of A, or
of column i of B, is in lane i % 32 and column i // 32 (PTX ISA, "Block scaling for tcgen05.mma").
The source program and the lowered one lay lanes out differently, `pitch` bytes apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arithmetic import reinterpret
from .fragments import WARP
from .machine import Machine
from .memory import FaultError, Memory, UnmodelledError, element

LANES = 128
WORD = element("uint32")
_BYTE, _EXPONENT = element("uint8"), element("float8_e8m0fnu")


def transpose(group: Machine, args: list[Any]) -> None:
    """(pointer): of four rows of 32 words, lane l of a warp writes word l of each side by side."""
    place, at, _ = group.pointer(args[0])
    if group.lanes.thread is None:
        raise UnmodelledError("scales transposed in a parallel loop")
    rows = np.flatnonzero(group.active)
    owner, start = group.lanes.block[rows], group.spread(at)[rows]
    lane, row = group.lanes.thread[rows] % WARP, np.arange(LANES // WARP)[:, None]
    source = start + (row * WARP + lane) * WORD.bytes
    target = start + (lane * len(row) + row) * WORD.bytes
    place.memory.move(owner, target, place.memory, (owner, source), WORD)


def copy(memory: Memory, pitch: int, blocks: Any, column: Any, source: Memory, start: Any) -> None:
    """32 rows of four words from byte `start` of each block on, into every quarter of the lanes, to
    four columns from `column` on."""
    word = np.arange(LANES)
    quarter = np.arange(0, LANES, WARP)[:, None]
    place = (word // 4 + quarter) * pitch + word % 4 * WORD.bytes
    to = place + column[:, None, None] * WORD.bytes
    of = np.broadcast_to(start[:, None, None] + word * WORD.bytes, to.shape)
    owner = np.broadcast_to(blocks[:, None, None], to.shape)
    memory.move(owner, to, source, (owner, of), WORD)


def factors(memory: Memory, pitch: int, blocks: Any, column: Any, count: int, number: int) -> Any:
    """Scales (blocks, count) of rows 0 to `count`: byte `number` of their words, whose first is at
    `column`.

    An exponent is a random number, as its cast to ue8m0 is (``arithmetic.reinterpret``): modulo
    2^31 - 1 powers of two are 31 numbers only. Raises FaultError where quarters differ.
    """
    row, quarter = np.arange(count), np.arange(0, LANES, WARP)[:, None]
    place = (row % WARP + quarter) * pitch + row // WARP * WORD.bytes
    at = place + column[:, None, None] * WORD.bytes
    owner = np.broadcast_to(blocks[:, None, None], at.shape)
    code = memory.code[owner, at + number]
    apart, exponent = code == _BYTE.code, code == _EXPONENT.code  # or it is part of a word
    words = memory.load(owner, at, WORD, ~apart & ~exponent) >> 8 * number & 0xFF
    bits = np.where(apart, memory.load(owner, at + number, _BYTE, apart) & 0xFF, words)
    drawn = reinterpret(bits, _BYTE.name, _EXPONENT.name)
    found = np.where(exponent, memory.load(owner, at + number, _EXPONENT, exponent), drawn)
    if (found != found[:, :1]).any():
        raise FaultError("scales that differ between quarters of tensor memory")
    return found[:, 0]
