"""Tiles of ``x W^T`` with scaled codes, e4m3 times e2m1 (spec §6.3), in the order of ``_fp8.py``.

A tile is made transposed, rows of the weight times tokens: a thread then has few rows of it, whose
scales change every 32 columns, and more tokens, whose scales change less often; and wgmma, which
takes 64 rows at once, any number of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from types import SimpleNamespace
from typing import Any

from tileproof.dsl import check, derived, static
from tileproof.kernels.quant._blocks import FP4_GROUP
from tileproof.kernels.row_stream import VECTOR_BYTES, ceildiv

from ._fp8 import COLUMNS, DEPTH, PIECE, fetcher, groups, half, rate, stream, widener
from ._tiles import ROWS

_BLOCKS = DEPTH // FP4_GROUP  # of a step
_PAGE = 64  # steps whose scales lie in shared memory at once
_MOST = 64  # rows of a tile, whose sums fill the registers


def _activation_groups(K: int, B: int) -> int:
    check(B in (FP4_GROUP, DEPTH), "activations of a scale", got=B, expected="32 or 128")
    return ceildiv(K, B)


FP4_DIMS = {
    "N": ROWS,
    "K": COLUMNS,
    "B": static(FP4_GROUP, DEPTH, multiple=32),
    "G": derived(_activation_groups),
    "H": derived(lambda K: K // 2),
    "F": derived(lambda K: K // FP4_GROUP),
}


def rows_of_tile(R: int) -> int:
    """Rows that a block takes at once of a list's tile of R rows: all, or as many as divide R."""
    return R if R <= _MOST else gcd(R, _MOST)


def e2m1_half(T, code):
    """float16 of the e2m1 in the low four bits: its three low bits as exponent and mantissa are too
    small by 2^14."""
    return half(T, T.shift_left(code & 7, 9) | T.shift_left(code & 8, 12), 2.0**14)


def opened(T, held):
    """Macro ``(packed, values)``: the e2m1 in `held` bytes as e4m3."""

    @T.macro
    def device(packed, values):
        for v in T.unroll(held // 2):
            pair = T.reinterpret(packed[T.Ramp(2 * v, 1, 2)], "float4_e2m1fnx4")
            values[T.Ramp(4 * v, 1, 4)] = T.Cast("float8_e4m3fnx4", pair)

    return device


def _opener(T, width, threads, native):
    """Macro ``(codes, slot, tile)``: a slot of packed e2m1 as e4m3 [width, 128], or as float16. A
    thread takes a block of a row at a time."""
    held = PIECE  # bytes
    wide = VECTOR_BYTES if native else VECTOR_BYTES // 2

    @T.macro
    def halves(packed, values):
        for v in T.unroll(held):
            values[2 * v] = e2m1_half(T, T.cast(packed[v], "int32"))
            values[2 * v + 1] = e2m1_half(T, T.shift_right(T.cast(packed[v], "int32"), 4))

    convert = opened(T, held) if native else halves

    @T.macro
    def device(codes, slot, tile):
        thread = T.get_thread_binding()
        packed = T.alloc_local((held,), "uint8")
        values = T.alloc_local((FP4_GROUP,), "float8_e4m3fn" if native else "float16")
        for step in T.unroll(width * _BLOCKS // threads):
            n = (step * threads + thread) % width
            b = (step * threads + thread) // width
            for v in T.vectorized(held):
                packed[v] = codes[slot, b, n, v]
            convert(packed, values)
            for c in T.unroll(FP4_GROUP // wide):
                for v in T.vectorized(wide):
                    tile[n, b * FP4_GROUP + c * wide + v] = values[c * wide + v]

    return device


def _scales(T, rows, total, held, threads):
    """Macro ``(source, at, exists, first, codes)``: `held` scales of rows ``source[at(m)]`` of
    `total`, from the first on; 1 beyond the last one, and where no row ``exists(m)``."""
    at_once = gcd(total, held, VECTOR_BYTES)
    pieces = rows * (held // at_once)

    @T.macro
    def device(source, at, exists, first, codes):
        thread = T.get_thread_binding()
        for step in T.unroll(ceildiv(pieces, threads)):
            m = (step * threads + thread) % rows
            k = (step * threads + thread) // rows * at_once
            if step * threads + thread < pieces:
                if exists(m) & (first + k < total):
                    for v in T.vectorized(at_once):
                        codes[m, k + v] = source[(*at(m), first + k + v)]
                else:
                    for v in T.vectorized(at_once):
                        codes[m, k + v] = T.float8_e8m0fnu(1)

    return device


@dataclass(frozen=True)
class _Room:
    """Tensors in shared memory of a product: slots and scales of both operands, the scales of a
    step's tokens, and what a step multiplies, x_tile where it is float16."""

    x_codes: Any
    w_codes: Any
    x_scales: Any
    w_scales: Any
    token: Any
    w_tile: Any
    x_tile: Any


@dataclass(frozen=True)
class Rows:
    """Rows of an operand: of its codes and of its scales (tensors), ``at(m)`` are the indices
    before the column of row m of the tile, ``exists(m)`` says whether there is such a row."""

    codes: Any
    scales: Any
    at: Callable[[Any], tuple[Any, ...]]
    exists: Callable[[Any], Any]


def fp4_device(T, K, B, tokens, width, threads, ring, native, widest=0):
    """Device code of one tile of e4m3, scaled per 1×B, × e2m1, scaled per 1×32.

    ``product(x, w, result, room())`` is the whole tile, [tokens, width], of :class:`Rows`. The
    room in shared memory serves products of up to `widest` columns, made with the same `widest`;
    all threads have to meet between one product and the next.
    """
    own = DEPTH // B  # scales of a token in a step
    page = min(groups(max(K, widest)), _PAGE)
    steps = stream(T, K, ring)
    part_of_x = FP4_GROUP if native else PIECE
    fetch_x = fetcher(T, K, DEPTH, part_of_x, tokens, threads, ring)
    fetch_w = fetcher(T, K // 2, DEPTH // 2, PIECE, width, threads, ring)
    load_x = _scales(T, tokens, ceildiv(K, B), page * own, threads)
    load_w = _scales(T, width, K // FP4_GROUP, page * _BLOCKS, threads)
    widen_x = widener(T, PIECE, tokens, threads)
    open_w = _opener(T, width, threads, native)
    kind = "float8_e4m3fn" if native else "float16"

    @T.macro
    def room():
        x_codes = T.alloc_shared((ring, DEPTH // part_of_x, tokens, part_of_x), "float8_e4m3fn")
        w_codes = T.alloc_shared((ring, _BLOCKS, width, PIECE), "uint8")
        # wider than they need be, so that what eight rows hold of a step lies in as many banks
        x_scales = T.alloc_shared((tokens, page * own + VECTOR_BYTES), "float8_e8m0fnu")
        w_scales = T.alloc_shared((width, page * _BLOCKS + VECTOR_BYTES), "float8_e8m0fnu")
        token = T.alloc_shared((own, tokens), "float32")
        w_tile = T.alloc_shared((width, DEPTH), kind)
        x_tile = None if native else T.alloc_shared((tokens, DEPTH), kind)
        return _Room(x_codes, w_codes, x_scales, w_scales, token, w_tile, x_tile)

    @T.macro
    def bring(x, w, g, room):
        fetch_x(x.codes, x.at, x.exists, g, room.x_codes)
        fetch_w(w.codes, w.at, w.exists, g, room.w_codes)

    @T.macro
    def turn(x, w, g, room):
        """The scales of the page of steps that begins with step g."""
        load_x(x.scales, x.at, x.exists, g * own, room.x_scales)
        load_w(w.scales, w.at, w.exists, g * _BLOCKS, room.w_scales)

    @T.macro
    def multiply(w_block, x_block, part):
        T.gemm(w_block, x_block, part, transpose_B=True, clear_accum=True)

    @T.macro
    def scale(g, b, room, column, row, part):
        """Of block b: the weight's scale, and that of the tokens where it changes."""
        if b * own % _BLOCKS == 0:
            for m in T.Parallel(tokens):
                column[m] = room.token[b * own // _BLOCKS, m]
        for n in T.Parallel(width):
            row[n] = rate(T, room.w_scales[n, g % page * _BLOCKS + b])
        for n, m in T.Parallel(width, tokens):
            part[n, m] = part[n, m] * column[m] * row[n]

    @T.macro
    def step(x, w, g, room, column, row, part, acc):
        if page < groups(K):
            if (g > 0) & (g % page == 0):
                turn(x, w, g, room)
            T.sync_threads()
        for i, m in T.Parallel(own, tokens):
            room.token[i, m] = rate(T, room.x_scales[m, g % page * own + i])
        open_w(room.w_codes, g % ring, room.w_tile)
        if not native:
            widen_x(room.x_codes, g % ring, room.x_tile)
        for b in tuple(range(_BLOCKS)):
            k, end = b * FP4_GROUP, (b + 1) * FP4_GROUP
            if native:
                multiply(room.w_tile[:, k:end], room.x_codes[g % ring, b, :, :], part)
            else:
                multiply(room.w_tile[:, k:end], room.x_tile[:, k:end], part)
            scale(g, b, room, column, row, part)
            for n, m in T.Parallel(width, tokens):
                acc[n, m] += part[n, m]

    @T.macro
    def product(x, w, result, room):
        column = T.alloc_fragment((tokens,), "float32")
        row = T.alloc_fragment((width,), "float32")
        part = T.alloc_fragment((width, tokens), "float32")
        acc = T.alloc_fragment((width, tokens), "float32")
        T.clear(acc)
        turn(x, w, 0, room)
        steps(
            lambda g: bring(x, w, g, room),
            lambda g: step(x, w, g, room, column, row, part, acc),
        )
        for n, m in T.Parallel(width, tokens):
            result[m, n] = acc[n, m]

    return SimpleNamespace(product=product, room=room)
