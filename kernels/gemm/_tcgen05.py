"""Tiles of ``x W^T`` with scaled codes on the matrix units of sm_100a (spec §6.3).

One thread issues products of what lies in shared memory; their sums lie in tensor memory. The order
of sums is that of ``_fp8.py``.
"""

from dataclasses import dataclass
from math import gcd
from types import SimpleNamespace
from typing import Any

from tileproof.kernels.quant._blocks import FP4_GROUP
from tileproof.kernels.row_stream import MATRIX_OPTIONS, VECTOR_BYTES, ceildiv

from . import _fp8
from ._fp4 import fp4_device, opened
from ._fp8 import DEPTH, PIECE, fetcher, fp8_device, groups, places, rate

UNIT = "tcgen05"
_WIDTH = 128  # rows of the weight with e2m1: a product with scales has so many
_WARP = 32
# Every barrier is written here, and proved to be enough: TileLang's go by whole buffers, and would
# be several in a step.
TCGEN05 = {
    **MATRIX_OPTIONS,
    "pass_configs": {**MATRIX_OPTIONS["pass_configs"], "tl.disable_thread_storage_sync": True},
    "archs": ("sm_100a",),
    "threads": 128,
    "ring": 4,
    "native": UNIT,
}
VARIANTS = (
    _fp8.VARIANTS[0],
    {**_fp8.VARIANTS[1], "archs": ("sm_89", "sm_120a")},
    _fp8.VARIANTS[2],
)
_WORD = DEPTH // FP4_GROUP  # scales of a row in a step
_PAGE = 16  # steps whose scales lie in shared memory at once


def _words(T, total, own, threads):
    """Macro ``(source, at, exists, first, codes)``: the scales of a page of steps, `own` of each
    row and step, from the first on; 1 beyond the last of `total`, and where no row ``exists(m)``.

    The four scales of a row and step lie as tcgen05.cp reads them: row m's are word
    ``m % 32 * 4 + m // 32``. Threads in a row write words that follow one another.
    """
    page = _PAGE * own
    at_once = gcd(total, page, VECTOR_BYTES)
    pieces = page // at_once
    copies = _WORD // own
    unit = gcd(at_once * copies, _WORD)  # bytes written at once

    @T.macro
    def device(source, at, exists, first, codes):
        thread = T.get_thread_binding()
        held = T.alloc_local((at_once,), "float8_e8m0fnu")
        for step in T.unroll(pieces * _WIDTH // threads):
            word = (step * threads + thread) % _WIDTH
            m = word % _WORD * 32 + word // _WORD
            k = (step * threads + thread) // _WIDTH * at_once
            if exists(m) & (first + k < total):
                for v in T.vectorized(at_once):
                    held[v] = source[(*at(m), first + k + v)]
            else:
                for v in T.vectorized(at_once):
                    held[v] = T.float8_e8m0fnu(1)
            for u in T.unroll(at_once * copies // unit):
                for v in T.vectorized(unit):
                    place = k * copies + u * unit + v
                    codes[place // _WORD, word, place % _WORD] = held[(u * unit + v) // copies]

    return device


def _opener(T, threads):
    """Macro ``(codes, slot, tile, half)``: a slot of packed e2m1 as e4m3 [128, 128]. A thread opens
    what it copied itself."""
    place, steps = places(_WIDTH, DEPTH // 2, PIECE, threads)
    convert = opened(T, PIECE)

    @T.macro
    def device(codes, slot, tile, half):
        thread = T.get_thread_binding()
        packed = T.alloc_local((PIECE,), "uint8")
        values = T.alloc_local((FP4_GROUP,), "float8_e4m3fn")
        for step in T.unroll(steps):
            p, n, _ = place(step, thread)
            for v in T.vectorized(PIECE):
                packed[v] = codes[slot, p, n, v]
            convert(packed, values)
            for c in T.unroll(FP4_GROUP // VECTOR_BYTES):
                for v in T.vectorized(VECTOR_BYTES):
                    tile[half, n, p * FP4_GROUP + c * VECTOR_BYTES + v] = values[
                        c * VECTOR_BYTES + v
                    ]

    return device


@dataclass(frozen=True)
class _Room:
    """What a product has in shared memory."""

    x_codes: Any
    w_codes: Any
    w_tile: Any
    x_scales: Any
    w_scales: Any


def fp4_tcgen05(T, K, B, tokens, threads, ring):
    """Device code of one tile of e4m3, scaled per 1×B, × e2m1, scaled per 1×32.

    ``product(x, w, result, room())`` is the whole tile, [tokens, 128], of ``_fp4.Rows``. An
    instruction adds 32 columns, scaled, to the sums.
    """
    own = DEPTH // B
    ahead = ring - 1
    fetch_x = fetcher(T, K, DEPTH, DEPTH, tokens, threads, ring)
    fetch_w = fetcher(T, K // 2, DEPTH // 2, PIECE, _WIDTH, threads, ring)
    load_x = _words(T, ceildiv(K, B), own, threads)
    load_w = _words(T, K // FP4_GROUP, _WORD, threads)
    open_w = _opener(T, threads)

    @T.macro
    def bring(x, w, g, x_codes, w_codes):
        if g < groups(K):
            fetch_x(x.codes, x.at, x.exists, g, x_codes)
            fetch_w(w.codes, w.at, w.exists, g, w_codes)
        T.ptx_commit_group()

    @T.macro
    def turn(x, w, g, x_scales, w_scales):
        """The scales of the page of steps that begins with step g."""
        load_x(x.scales, x.at, lambda m: (m < tokens) & x.exists(m), g * own, x_scales)
        load_w(w.scales, w.at, w.exists, g * _WORD, w_scales)

    @T.macro
    def multiply(g, room, w_columns, x_columns, acc, done):
        if T.get_thread_binding() < _WARP:
            # an element of each word: a chunk is counted by words
            T.tcgen05_cp_warpx4(room.w_scales[g % _PAGE, :, 0], w_columns)
            T.tcgen05_cp_warpx4(room.x_scales[g % _PAGE, :, 0], x_columns)
        T.tcgen05_gemm_blockscaled(
            room.w_tile[g % 2, :, :],
            room.x_codes[g % ring, 0, :, :],
            acc,
            w_columns,
            x_columns,
            transpose_B=True,
            mbar=done,
            clear_accum=g == 0,
            k_start=0,
            sf_a_granularity_k=FP4_GROUP,
            sf_b_granularity_k=FP4_GROUP,
        )

    @T.macro
    def room():
        x_codes = T.alloc_shared((ring, 1, tokens, DEPTH), "float8_e4m3fn")
        w_codes = T.alloc_shared((ring, _WORD, _WIDTH, PIECE), "uint8")
        w_tile = T.alloc_shared((2, _WIDTH, DEPTH), "float8_e4m3fn")
        x_scales = T.alloc_shared((_PAGE, _WIDTH, _WORD), "float8_e8m0fnu")
        w_scales = T.alloc_shared((_PAGE, _WIDTH, _WORD), "float8_e8m0fnu")
        return _Room(x_codes, w_codes, w_tile, x_scales, w_scales)

    @T.macro
    def product(x, w, result, room):
        x_columns = T.alloc_tmem([_WIDTH, _WORD], "uint32")
        w_columns = T.alloc_tmem([_WIDTH, _WORD], "uint32")
        acc = T.alloc_tmem([_WIDTH, tokens], "float32")
        sums = T.alloc_fragment((_WIDTH, tokens), "float32")
        done = T.alloc_barrier(1)
        for g in T.unroll(ahead):
            bring(x, w, g, room.x_codes, room.w_codes)
        for g in T.serial(groups(K)):
            T.ptx_wait_group(ahead - 1)
            open_w(room.w_codes, g % ring, room.w_tile, g % 2)
            if g > 0:
                T.mbarrier_wait_parity(done, (g + 1) % 2)
            if g % _PAGE == 0:
                turn(x, w, g, room.x_scales, room.w_scales)
            T.fence_proxy_async()
            T.sync_threads()
            multiply(g, room, w_columns, x_columns, acc, done)
            bring(x, w, g + ahead, room.x_codes, room.w_codes)
        T.mbarrier_wait_parity(done, (groups(K) + 1) % 2)
        T.tcgen05_after_thread_sync()
        T.copy(acc, sums)
        for n, m in T.Parallel(_WIDTH, tokens):
            result[m, n] = sums[n, m]

    return SimpleNamespace(product=product, room=room)


def fp8_tcgen05(T, K, tokens, width, threads, ring):
    """Device code of one tile of e4m3 × e4m3, as a namespace of macros like that of ``fp8_device``.

    Two blocks have sums in tensor memory: while one is multiplied, the one before is scaled and
    added.
    """
    ahead = ring - 1

    @T.macro
    def multiply(g, x_codes, w_codes, parts, done):
        T.tcgen05_gemm(
            x_codes[g % ring, 0, :, :],
            w_codes[g % ring, 0, :, :],
            parts[:, g % 2 * width : (g % 2 + 1) * width],
            transpose_B=True,
            mbar=done[g % 2],
            clear_accum=True,
        )

    @T.macro
    def await_part(g, done):
        T.mbarrier_wait_parity(done[g % 2], g // 2 % 2)

    @T.macro
    def add(g, parts, x_scales, w_scales, row, part, acc):
        for m in T.Parallel(tokens):
            row[m] = rate(T, x_scales[m, g]) * rate(T, w_scales[g])
        T.tcgen05_after_thread_sync()
        T.copy(parts[:, g % 2 * width : (g % 2 + 1) * width], part)
        # a product of its own, so that no compiler makes one rounding of both
        for m, n in T.Parallel(tokens, width):
            part[m, n] *= row[m]
        for m, n in T.Parallel(tokens, width):
            acc[m, n] += part[m, n]

    @T.macro
    def product(bring, scales, result):
        x_codes = T.alloc_shared((ring, 1, tokens, DEPTH), "float8_e4m3fn")
        w_codes = T.alloc_shared((ring, 1, width, DEPTH), "float8_e4m3fn")
        # wider than it need be, so that what eight rows hold at g lies in as many banks
        x_scales = T.alloc_shared((tokens, groups(K) + VECTOR_BYTES), "float8_e8m0fnu")
        w_scales = T.alloc_shared((groups(K),), "float8_e8m0fnu")
        parts = T.alloc_tmem([tokens, 2 * width], "float32")
        row = T.alloc_fragment((tokens,), "float32")
        part = T.alloc_fragment((tokens, width), "float32")
        acc = T.alloc_fragment((tokens, width), "float32")
        done = T.alloc_barrier([1, 1])
        T.clear(acc)
        scales(x_scales, w_scales)
        for g in T.unroll(ahead):
            if g < groups(K):
                bring(g, x_codes, w_codes)
            T.ptx_commit_group()
        for g in T.serial(groups(K)):
            T.ptx_wait_group(ahead - 1)
            T.fence_proxy_async()
            T.sync_threads()
            multiply(g, x_codes, w_codes, parts, done)
            if g > 0:
                await_part(g - 1, done)
            if g + ahead < groups(K):
                bring(g + ahead, x_codes, w_codes)
            T.ptx_commit_group()
            if g > 0:
                add(g - 1, parts, x_scales, w_scales, row, part, acc)
        await_part(groups(K) - 1, done)
        add(groups(K) - 1, parts, x_scales, w_scales, row, part, acc)
        T.sync_threads()  # the result may lie where the scales did
        for m, n in T.Parallel(tokens, width):
            result[m, n] = acc[m, n]

    return SimpleNamespace(
        fetch_x=fetcher(T, K, DEPTH, DEPTH, tokens, threads, ring),
        fetch_w=fetcher(T, K, DEPTH, DEPTH, width, threads, ring),
        product=product,
    )


def fp4_tile(T, K, B, tokens, width, threads, ring, native):
    """Device code of one tile [tokens, width] of e4m3 × e2m1, by the units that `native` names."""
    if native == UNIT:
        return fp4_tcgen05(T, K, B, tokens, threads, ring)
    return fp4_device(T, K, B, tokens, width, threads, ring, native)


def fp8_tile(T, K, tokens, width, threads, ring, native):
    """Device code of one tile [tokens, width] of e4m3 × e4m3, by the units that `native` names."""
    if native == UNIT:
        return fp8_tcgen05(T, K, tokens, width, threads, ring)
    return fp8_device(T, K, tokens, width, threads, ring, native)
