"""FP8 weights back to bfloat16: codes times their tile's scale (spec §6.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import reference
from ._blocks import (
    FP8_VECTOR,
    TILE,
    WEIGHT_DIMS,
    WEIGHT_SHAPES,
    geometry,
    load_code,
    weight_sizes,
)
from ._fp8 import dequantised

op = Op(
    "quant/fp8_tile_dequant",
    args=(In("q", "M N K", "e4m3"), In("s", "M G", "ue8m0"), Out("w", "M N K", "bf16")),
    dims=WEIGHT_DIMS,
    doc="w = q * s, one scale per N×128 of a strip of N rows (spec §6.1)",
    reference=reference.fp8_tile_dequant,
    shapes=WEIGHT_SHAPES,
    model_sizes=weight_sizes,
)


@op.kernel(**OPTIONS)
def fp8_tile_dequant(T, M, N, K, G):
    """A thread takes 16 codes at once, all of one tile."""
    rows, across = geometry(K, FP8_VECTOR, FP8_VECTOR)
    convert = dequantised(T)

    @T.prim_func
    def kernel(
        q: T.Tensor((M, N, K), "float8_e4m3fn"),
        s: T.Tensor((M, G), "float8_e8m0fnu"),
        w: T.Tensor((M, N, K), "bfloat16"),
    ):
        with T.Kernel(M, ceildiv(N, rows), threads=THREADS) as (m, part):
            thread = T.get_thread_binding()
            codes = T.alloc_local((FP8_VECTOR,), "float8_e4m3fn")
            row = T.alloc_local((FP8_VECTOR,), "bfloat16")
            n = part * rows + thread // across
            for step in T.serial(ceildiv(K, FP8_VECTOR * across)):
                k = (step * across + thread % across) * FP8_VECTOR
                if (n < N) & (k < K):
                    for v in T.vectorized(FP8_VECTOR):
                        codes[v] = q[m, n, k + v]
                    convert(codes, load_code(T, s[m, k // TILE]), row)
                    for v in T.vectorized(FP8_VECTOR):
                        w[m, n, k + v] = row[v]

    return kernel
