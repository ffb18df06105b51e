"""Tiles of e4m3 times e2m1 with both as float16, of the experts' ops: ``gemm/fp4_experts`` and
``moe/mega``, which has to give its bits on every card. ``_fp4.py`` multiplies the codes.
"""

from types import SimpleNamespace

from tileproof.dsl import ALL
from tileproof.kernels.quant._blocks import FP4_GROUP, load_code

from ._fp4 import e2m1_half
from ._fp8 import DEPTH, e4m3_half, groups, rate

TILE = {"width": 64, "threads": 128, "stages": 2}
# sm_80 has no instruction that reads e4m3, and CUDA's header takes dozens in its place
VARIANTS = (
    {**TILE, "archs": ("sm_80",), "instruction": False},
    {**TILE, "archs": tuple(a for a in ALL if a != "sm_80"), "instruction": True},
)


def _widen(T, rows, columns, threads, instruction):
    """Macro ``(codes, tile)``: e4m3 ``codes(m, k)`` of [rows, 128] as float16, blocks of `columns`
    one above the other, by the architecture's `instruction` or by integers."""
    vector = 16
    across = DEPTH // vector

    @T.macro
    def device(codes, tile):
        if instruction:
            for m, k in T.Parallel(rows, DEPTH):
                tile[k // columns * rows + m, k % columns] = T.cast(codes(m, k), "float16")
        else:
            thread = T.get_thread_binding()
            held = T.alloc_local((vector,), "float8_e4m3fn")
            values = T.alloc_local((vector,), "float16")
            for step in T.unroll(rows * across // threads):
                m = (step * threads + thread) // across
                k = thread % across * vector
                for v in T.vectorized(vector):
                    held[v] = codes(m, k + v)
                for v in T.unroll(vector):
                    values[v] = e4m3_half(T, load_code(T, held[v]))
                for c in T.unroll(vector // 8):
                    for v in T.vectorized(8):
                        tile[k // columns * rows + m, k % columns + c * 8 + v] = values[c * 8 + v]

    return device


def fp4_device(T, K, B, tokens, width, threads, stages, instruction=True):
    """Device code of one tile of e4m3, scaled per 1×B, × e2m1, scaled per 1×32.

    ``product(bring, result)`` is the whole tile; ``bring(k, x_codes, x_scales, w_codes, w_scales)``
    loads what belongs to the columns from k on: codes [tokens, 128] and, two a byte, [width, 64],
    scales [tokens, 128 / B] and [width, 4]; zeros beyond the ends.
    """
    blocks = DEPTH // FP4_GROUP
    own = DEPTH // B  # scales of a row of activations in a step
    held = FP4_GROUP // 2
    widen_x = _widen(T, tokens, FP4_GROUP, threads, instruction)

    @T.macro
    def widen_w(w_codes, w_tile):
        """A thread takes a block of a row at a time."""
        thread = T.get_thread_binding()
        packed = T.alloc_local((held,), "uint8")
        values = T.alloc_local((FP4_GROUP,), "float16")
        for step in T.unroll(width * blocks // threads):
            n = (step * threads + thread) // blocks
            b = thread % blocks
            for v in T.vectorized(held):
                packed[v] = w_codes[n, b * held + v]
            for v in T.unroll(held):
                values[2 * v] = e2m1_half(T, T.cast(packed[v], "int32"))
                values[2 * v + 1] = e2m1_half(T, T.shift_right(T.cast(packed[v], "int32"), 4))
            for c in T.unroll(FP4_GROUP // 8):
                for v in T.vectorized(8):
                    w_tile[b * width + n, c * 8 + v] = values[c * 8 + v]

    @T.macro
    def product(bring, result):
        x_codes = T.alloc_shared((tokens, DEPTH), "float8_e4m3fn")
        w_codes = T.alloc_shared((width, DEPTH // 2), "uint8")
        x_scales = T.alloc_shared((tokens, own), "float8_e8m0fnu")
        w_scales = T.alloc_shared((width, blocks), "float8_e8m0fnu")
        # blocks of columns one above the other
        x_tile = T.alloc_shared((blocks * tokens, FP4_GROUP), "float16")
        w_tile = T.alloc_shared((blocks * width, FP4_GROUP), "float16")
        row = T.alloc_shared((own, tokens), "float32")
        column = T.alloc_shared((blocks, width), "float32")
        part = T.alloc_fragment((tokens, width), "float32")
        acc = T.alloc_fragment((tokens, width), "float32")
        T.clear(acc)
        for g in T.Pipelined(groups(K), num_stages=stages):
            bring(g * DEPTH, x_codes, x_scales, w_codes, w_scales)
            widen_x(lambda m, k: x_codes[m, k], x_tile)
            widen_w(w_codes, w_tile)
            for i, m in T.Parallel(own, tokens):
                row[i, m] = rate(T, x_scales[m, i])
            for b, n in T.Parallel(blocks, width):
                column[b, n] = rate(T, w_scales[n, b])
            for b in range(blocks):
                T.clear(part)
                T.gemm(
                    x_tile[b * tokens : (b + 1) * tokens, :],
                    w_tile[b * width : (b + 1) * width, :],
                    part,
                    transpose_B=True,
                )
                for m, n in T.Parallel(tokens, width):
                    part[m, n] = part[m, n] * row[b * own // blocks, m] * column[b, n]
                for m, n in T.Parallel(tokens, width):
                    acc[m, n] += part[m, n]
        for m, n in T.Parallel(tokens, width):
            result[m, n] = acc[m, n]

    return SimpleNamespace(product=product)
