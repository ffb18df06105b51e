"""Matrices held by the lanes of a warp: ldmatrix, stmatrix, mma.

PTX ISA, "Matrix fragments for mma": rows and columns of 32-bit registers of 32/bits elements; the
layouts of every shape with 16 rows and 8 columns follow one rule, those of wgmma extend it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .arithmetic import arithmetic
from .machine import Pointer
from .memory import UnmodelledError

if TYPE_CHECKING:
    from .device import Warp

WARP = 32
LANE = np.arange(WARP)
GROUP, QUAD = LANE // 4, LANE % 4

Where = Callable[[int], tuple[Any, Any]]  # the row and column, of each lane, of its element


def of_a(each: int) -> Where:
    def where(e: int) -> tuple[Any, Any]:
        register = e // each
        return GROUP + 8 * (register % 2), QUAD * each + e % each + 4 * each * (register // 2)

    return where


def of_b(each: int) -> Where:
    return lambda e: (QUAD * each + e % each + 4 * each * (e // each), GROUP)


def of_c(e: int) -> tuple[Any, Any]:
    return GROUP + 8 * (e // 2 % 2), QUAD * 2 + e % 2 + 8 * (e // 4)


def gather(warp: Warp, pointer: Pointer, offset: Any, shape: tuple[int, int], where: Where) -> Any:
    """The matrix of every warp whose lanes hold its elements from `pointer` + `offset` on."""
    count = shape[0] * shape[1] // WARP
    values = warp.by_warp(warp.read(pointer, count, offset))
    matrix = np.zeros((values.shape[1], *shape), np.int64)
    for e in range(count):
        row, column = where(e)
        matrix[:, row, column] = values[e]
    return matrix


def scatter(warp: Warp, pointer: Pointer, offset: Any, matrix: Any, where: Where) -> None:
    count = matrix[0].size // WARP
    places = (where(e) for e in range(count))
    values = [matrix[:, row, column].reshape(-1) for row, column in places]
    warp.write(pointer, np.stack(values), offset)


def multiply(left: Any, right: Any, total: Any, operand: Any, result: str) -> Any:
    """left right + total, of matrices of every warp. Integers are multiplied as they are added."""
    wide = operand.name if operand.kind == "float" else result
    for i in range(left.shape[-1]):
        product = arithmetic("Mul", wide, left[:, :, i, None], right[:, i, None, :])
        total = arithmetic("Add", result, total, product)
    return total


def mma(warp: Warp, args: list[Any]) -> None:
    shape = re.fullmatch(r"m16n8k(\d+)", str(args[0].value))
    layout = (str(args[1].value), str(args[2].value))
    if shape is None or layout != ("row", "col"):
        raise UnmodelledError(f"mma {args[0].value} {layout}")
    k = int(shape[1])
    a, b, c = (warp.pointer(args[i]) for i in (6, 8, 10))
    bits = a[2].bits
    if bits not in (8, 16, 32):
        raise UnmodelledError(f"mma of {a[2].name}")
    each = 32 // bits
    left = gather(warp, a, warp.value(args[7]), (16, k), of_a(each))
    right = gather(warp, b, warp.value(args[9]), (k, 8), of_b(each))
    offset = warp.value(args[11])
    total = gather(warp, c, offset, (16, 8), of_c)
    scatter(warp, c, offset, multiply(left, right, total, a[2], c[2].name), of_c)


def _rows(warp: Warp, at: Any, number: int, place: Any) -> Any:
    """Addresses of rows of matrix `number`, which lanes 8 number + row give."""
    return warp.by_warp(warp.spread(at))[:, 8 * number + place]


def ldmatrix(warp: Warp, args: list[Any]) -> None:
    # Lane l gets elements 2(l%4) and the next of row l/4 of each matrix, or of its transpose.
    transposed, count = bool(args[0].value), int(args[1].value)
    (place, at, kind), to = warp.pointer(args[2]), warp.pointer(args[3])
    each = 4 // kind.bytes  # elements of a register
    if transposed and each != 2:
        raise UnmodelledError(f"ldmatrix.trans of {kind.name}")
    values = []
    for m in range(count):
        for i in range(each):
            row, column = (QUAD * 2 + i, GROUP) if transposed else (GROUP, QUAD * each + i)
            address = (_rows(warp, at, m, row) + column * kind.bytes).reshape(-1)
            values.append(place.memory.load(warp.owner(place), address, kind, warp.active))
    warp.write(to, np.stack(values))


def stmatrix(warp: Warp, args: list[Any]) -> None:
    # The way back: (transposed, count, pointer, registers of two elements…, "m8n8").
    transposed, count = bool(args[0].value), int(args[1].value)
    place, at, kind = warp.pointer(args[2])
    registers = args[3:-1]
    packed = all(
        str(getattr(getattr(r, "op", None), "name", r)) == "tl.pack_b16" for r in registers
    )
    if str(args[-1].value) != "m8n8" or len(registers) != count or kind.bits != 16 or not packed:
        raise UnmodelledError(f"stmatrix {args[-1].value} of {kind.name}")
    for m, register in enumerate(registers):
        for i, half in enumerate(register.args):
            row, column = (QUAD * 2 + i, GROUP) if transposed else (GROUP, QUAD * 2 + i)
            address = (_rows(warp, at, m, row) + column * kind.bytes).reshape(-1)
            place.memory.store(warp.owner(place), address, kind, warp.value(half), warp.active)


CALLS = {"tl.ptx_ldmatrix": ldmatrix, "tl.ptx_stmatrix": stmatrix, "tirx.ptx_mma": mma}
