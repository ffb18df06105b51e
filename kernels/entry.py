"""How a cached entry ends, whatever made it: RMSNorm, RoPE, storage (spec §2.1).

A block has one entry of D channels and a thread four of them, in registers: ``value``, in the type
of activations, 0 beyond D. Row, FP8 page and FP4 page are the three ways to store it.
"""

from types import SimpleNamespace

from tileproof.dsl import check
from tileproof.kernels import kv_cache
from tileproof.kernels.quant._blocks import (
    E4M3,
    FP4_GROUP,
    NAN,
    NAN_SCALE,
    inverse,
    magnitude,
    scale_code,
    stored_scale,
)
from tileproof.kernels.quant._fp4 import device as fp4_device
from tileproof.kernels.quant._hadamard import rotation
from tileproof.kernels.rope._pairs import turner
from tileproof.kernels.row_stream import row_lanes

VECTOR = 4  # channels of a thread
_WARP = 32
_MOST = 256  # threads, for 1024 channels
_PER_GROUP = kv_cache.GROUP // VECTOR  # threads that share a scale
_HADAMARD = 128


def threads(D: int) -> int:
    """Threads of a block for D channels."""
    check(VECTOR <= D <= _MOST * VECTOR, "channels of an entry", got=D, expected="4..1024")
    return max(_WARP, row_lanes(D, VECTOR, _MOST))


def device(T, D, R, act, eps):
    """Macros on ``value``; the last R channels are RoPE's. All threads must take part in each."""
    lanes = threads(D)
    first = D - R
    check(0 < R <= D and R % VECTOR == first % VECTOR == 0, "RoPE channels", got=R,
          expected=f"a multiple of 4 up to D = {D}")  # fmt: skip
    turn = turner(T, VECTOR // 2)

    @T.macro
    def load(x, m, value):
        """Row m of x."""
        d = T.get_thread_binding() * VECTOR
        T.clear(value)
        if d < D:
            for v in T.vectorized(VECTOR):
                value[v] = x[m, d + v]

    @T.macro
    def normalize(value, w):
        """value = w (value / sqrt(mean(value^2) + eps)), rounded once."""
        square = T.alloc_fragment((lanes,), "float32")
        total = T.alloc_fragment((1,), "float32")
        part = T.alloc_local((1,), "float32")
        gain = T.alloc_local((VECTOR,), w.dtype)
        for i in T.Parallel(lanes):
            square[i] = 0
            for v in T.unroll(VECTOR):
                part[0] = T.cast(value[v], "float32")
                part[0] = part[0] * part[0]
                square[i] += part[0]
        T.reduce_sum(square, total, dim=0)
        for i in T.Parallel(lanes):
            part[0] = 1.0 / T.sqrt(total[0] / D + eps)
            if i * VECTOR < D:
                for v in T.vectorized(VECTOR):
                    gain[v] = w[i * VECTOR + v]
                for v in T.unroll(VECTOR):
                    value[v] = T.cast(gain[v], "float32") * (T.cast(value[v], "float32") * part[0])

    @T.macro
    def rotate(value, cos, sin, position):
        """(x, y) -> (x cos - y sin, x sin + y cos) for neighbours, rounded once."""
        d = T.get_thread_binding() * VECTOR
        cosine = T.alloc_local((VECTOR // 2,), "float32")
        sine = T.alloc_local((VECTOR // 2,), "float32")
        if (d >= first) & (d < D):
            for v in T.vectorized(VECTOR // 2):
                cosine[v] = cos[position, (d - first) // 2 + v]
            for v in T.vectorized(VECTOR // 2):
                sine[v] = sin[position, (d - first) // 2 + v]
            turn(value, cosine, sine, lambda k: True)

    @T.macro
    def store_row(value, rows, slot):
        d = T.get_thread_binding() * VECTOR
        if (slot >= 0) & (d < D):
            for v in T.vectorized(VECTOR):
                rows[slot, d + v] = value[v]

    @T.macro
    def store_page(value, nope, rope, scale, slot, E):
        """e4m3 with a scale per 64 up to RoPE's channels, which stay as they are."""
        thread = T.get_thread_binding()
        d = thread * VECTOR
        sizes = T.alloc_fragment((lanes // _PER_GROUP, _PER_GROUP), "int32")
        amax = T.alloc_fragment((lanes // _PER_GROUP,), "int32")
        code = T.alloc_local((1,), "int32")
        codes = T.alloc_local((VECTOR,), "float8_e4m3fn")
        T.annotate_layout({sizes: _neighbours(T, lanes)})
        for i, k in T.Parallel(lanes // _PER_GROUP, _PER_GROUP):
            sizes[i, k] = 0
            for v in T.unroll(VECTOR):
                sizes[i, k] = T.max(sizes[i, k], magnitude(T, value[v]))
        T.reduce_max(sizes, amax, dim=1)
        for i, k in T.Parallel(lanes // _PER_GROUP, _PER_GROUP):
            code[0] = scale_code(T, E4M3, T.max(amax[i], sizes[i, k]))
        for v in T.unroll(VECTOR):
            scaled = T.cast(value[v], "float32") * inverse(T, code[0])
            nan = T.reinterpret(NAN, "float32")
            codes[v] = T.cast(T.if_then_else(code[0] == NAN_SCALE, nan, scaled), "float8_e4m3fn")
        if slot >= 0:
            page, entry = kv_cache.place(slot, E)
            if d < first:
                for v in T.vectorized(VECTOR):
                    nope[page, entry, d + v] = codes[v]
                if thread % _PER_GROUP == 0:
                    scale[page, entry, thread // _PER_GROUP] = stored_scale(T, code[0])
            elif d < D:
                for v in T.vectorized(VECTOR):
                    rope[page, entry, d - first + v] = value[v]

    return SimpleNamespace(
        load=load,
        normalize=normalize,
        rotate=rotate,
        store_row=store_row,
        store_page=store_page,
    )


def _neighbours(T, lanes):
    """One element a thread; those of a group are neighbours."""
    return T.Fragment(
        (lanes // _PER_GROUP, _PER_GROUP),
        forward_thread_fn=lambda i, k: i * _PER_GROUP + k,
        forward_index_fn=lambda i, k: 0,
    )


def key_store(T, D):
    """Macro ``(value, codes, scale, slot, E)``: Hadamard-128, then e2m1 with a scale per 32.

    The row passes through shared memory, after which a thread has a group of 32.
    """
    check(D % _HADAMARD == 0, "channels of a key", got=D, expected="a multiple of 128")
    lanes = threads(D)
    fp4 = fp4_device(T, "bfloat16")
    turn = rotation(T)

    @T.macro
    def store(value, codes, scale, slot, E):
        thread = T.get_thread_binding()
        whole = T.alloc_shared((D,), "bfloat16")
        staged = T.alloc_shared((FP4_GROUP, lanes), "float32")
        row = T.alloc_local((FP4_GROUP,), "bfloat16")
        code = T.alloc_local((1,), "int32")
        digits = T.alloc_local((FP4_GROUP,), "int32")
        packed = T.alloc_local((FP4_GROUP // 2,), "uint8")
        if thread * VECTOR < D:
            for v in T.vectorized(VECTOR):
                whole[thread * VECTOR + v] = value[v]
        T.sync_threads()
        T.clear(row)
        if thread < D // FP4_GROUP:
            for k in T.unroll(FP4_GROUP):
                row[k] = whole[thread * FP4_GROUP + k]
        turn(row, staged, thread)
        if (slot >= 0) & (thread < D // FP4_GROUP):
            page, entry = kv_cache.place(slot, E)
            fp4.encode(row, code, digits)
            fp4.pack(digits, packed)
            for v in T.vectorized(FP4_GROUP // 2):
                codes[page, entry, thread * (FP4_GROUP // 2) + v] = packed[v]
            scale[page, entry, thread] = stored_scale(T, code[0])

    return store
