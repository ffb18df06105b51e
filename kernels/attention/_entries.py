"""How entries come into shared memory: rows of a pool as they are, in parts, or out of FP8 pages.

Each function makes a macro for one list of `length` slots, whose first chunk is chunk `skip` of
all. Where a slot has no entry, zeros come.
"""

from tileproof.kernels.kv_cache import GROUP, place
from tileproof.kernels.quant._blocks import FP8_VECTOR, load_code
from tileproof.kernels.quant._fp8 import dequantised
from tileproof.kernels.row_stream import ceildiv

_VECTOR = 8  # bf16 of 16 bytes
_UNIT = 127  # code of the scale 1


def bf16_rows(T, code, D, length):
    """Macro ``(pool, index, m, c, skip, kv, valid)``: chunk c, rows ``index[m]`` as they are."""
    chunk, threads = code.chunk, code.threads

    @T.macro
    def fetch(pool, index, m, c, skip, kv, valid):
        thread = T.get_thread_binding()
        for i in T.Parallel(chunk):
            valid[c % 2, i] = code.row(index, m, c - skip, i, length)
        # a thread's share: 16 bytes of each of some rows
        for n in T.unroll(chunk * D // _VECTOR // threads):
            i = (n * threads + thread) // (D // _VECTOR)
            d = (n * threads + thread) % (D // _VECTOR) * _VECTOR
            row = code.row(index, m, c - skip, i, length)
            T.ptx_cp_async(
                T.access_ptr(kv[0, c % code.ring, i, d], "w", _VECTOR),
                T.access_ptr(pool[T.max(row, 0), d], "r", _VECTOR),
                _VECTOR,
                row >= 0,
            )

    return fetch


def f32_rows(T, code, D, length):
    """Macro ``(pool, index, m, c, skip, kv, valid)``: chunk c, rows ``index[m]`` in parts."""
    chunk = code.chunk

    @T.macro
    def settle(pool, index, m, c, skip, kv, valid):
        for i in T.Parallel(chunk):
            valid[c % 2, i] = code.row(index, m, c - skip, i, length)
        # not by way of `valid`, where the prover loses what is known of an index
        for i, d in T.Parallel(chunk, D):
            row = code.row(index, m, c - skip, i, length)
            code.split(T.if_then_else(row >= 0, pool[row, d], 0), kv, 0, i, d)

    return settle


def _slices(T, V, R, width):
    """Which channels of an entry's two parts lie among `width` from `first` on.

    The most columns of FP8 and of bf16, and two functions ``(first, k)``: the channel of column k
    of either part, and whether it is among them. Those of a whole entry always are.
    """
    whole = width == V + R

    def code(first, k):
        return (k, True) if whole else (first + k, first + k < V)

    def turned(first, k):
        if whole:
            return V + k, True
        d = T.max(first, V) + k
        return d, d < first + width

    return min(width, V), min(width, R), code, turned


def fp8_pages(T, code, V, R, E, length, width):
    """Macro ``(*views, index, m, c, skip, first, valid, *raw)``: chunk c of the entries `index[m]`,
    `width` channels of them from `first` on.

    `views` are the three of a pool with E entries a page, `raw` the tiles that take their parts.
    """
    chunk, threads = code.chunk, code.threads
    codes_of, turned_of, coded, bare = _slices(T, V, R, width)
    wide, narrow = codes_of // FP8_VECTOR, turned_of // _VECTOR

    @T.macro
    def fetch(nope, rope, scale, index, m, c, skip, first, valid, codes, turned, scales):
        thread = T.get_thread_binding()
        for i in T.Parallel(chunk):
            valid[c % 2, i] = code.row(index, m, c - skip, i, length)
        for n in T.serial(ceildiv(chunk * wide, threads)):
            i = (n * threads + thread) // wide
            k = (n * threads + thread) % wide * FP8_VECTOR
            d, there = coded(first, k)
            if n * threads + thread < chunk * wide and there:
                row = code.row(index, m, c - skip, i, length)
                page, entry = place(T.max(row, 0), E)
                T.ptx_cp_async(
                    T.access_ptr(codes[i, k], "w", FP8_VECTOR),
                    T.access_ptr(nope[page, entry, d], "r", FP8_VECTOR),
                    FP8_VECTOR,
                    row >= 0,
                )
        for n in T.serial(ceildiv(chunk * narrow, threads)):
            i = (n * threads + thread) // narrow
            k = (n * threads + thread) % narrow * _VECTOR
            d, there = bare(first, k)
            if n * threads + thread < chunk * narrow and there:
                row = code.row(index, m, c - skip, i, length)
                page, entry = place(T.max(row, 0), E)
                T.ptx_cp_async(
                    T.access_ptr(turned[i, k], "w", _VECTOR),
                    T.access_ptr(rope[page, entry, d - V], "r", _VECTOR),
                    _VECTOR,
                    row >= 0,
                )
        for i, g in T.Parallel(chunk, V // GROUP):
            row = code.row(index, m, c - skip, i, length)
            page, entry = place(row, E)
            scales[i, g] = T.if_then_else(row >= 0, load_code(T, scale[page, entry, g]), _UNIT)

    return fetch


def fp8_settle(T, code, V, R, width):
    """Macro ``(codes, turned, scales, first, tile)``: a chunk as stored to the bf16 of `tile`."""
    chunk, threads = code.chunk, code.threads
    codes_of, turned_of, coded, bare = _slices(T, V, R, width)
    wide = codes_of // FP8_VECTOR
    convert = dequantised(T)

    @T.macro
    def settle(codes, turned, scales, first, tile, *at):
        thread = T.get_thread_binding()
        stored = T.alloc_local((FP8_VECTOR,), "float8_e4m3fn")
        values = T.alloc_local((FP8_VECTOR,), "bfloat16")
        for n in T.serial(ceildiv(chunk * wide, threads)):
            i = (n * threads + thread) // wide
            k = (n * threads + thread) % wide * FP8_VECTOR
            d, there = coded(first, k)
            if n * threads + thread < chunk * wide and there:
                for v in T.vectorized(FP8_VECTOR):
                    stored[v] = codes[i, k + v]
                convert(stored, scales[i, d // GROUP], values)
                for v in T.vectorized(_VECTOR):
                    tile[(*at, i, k + v)] = values[v]
                for v in T.vectorized(_VECTOR):
                    tile[(*at, i, k + _VECTOR + v)] = values[_VECTOR + v]
        for i, k in T.Parallel(chunk, turned_of):
            d, there = bare(first, k)
            if there:
                tile[(*at, i, d - first)] = turned[i, k]

    return settle
