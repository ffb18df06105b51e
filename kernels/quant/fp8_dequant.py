"""FP8 back to bfloat16: codes times their group's scale (spec §6.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import reference
from ._blocks import FP8_DIMS, FP8_SHAPES, FP8_VECTOR, activation_sizes, geometry, load_code
from ._fp8 import dequantised

op = Op(
    "quant/fp8_dequant",
    args=(In("q", "M K", "e4m3"), In("s", "M G", "ue8m0"), Out("y", "M K", "bf16")),
    dims=FP8_DIMS,
    doc="y = q * s, one scale per 1×B, exact but for bf16's range (spec §6.1)",
    reference=reference.fp8_dequant,
    shapes=FP8_SHAPES,
    model_sizes=activation_sizes,
)


@op.kernel(**OPTIONS)
def fp8_dequant(T, M, K, B, G):
    """A thread takes 16 codes at once, all of one group."""
    rows, across = geometry(K, FP8_VECTOR, FP8_VECTOR)
    convert = dequantised(T)

    @T.prim_func
    def kernel(
        q: T.Tensor((M, K), "float8_e4m3fn"),
        s: T.Tensor((M, G), "float8_e8m0fnu"),
        y: T.Tensor((M, K), "bfloat16"),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            thread = T.get_thread_binding()
            codes = T.alloc_local((FP8_VECTOR,), "float8_e4m3fn")
            row = T.alloc_local((FP8_VECTOR,), "bfloat16")
            m = block * rows + thread // across
            for step in T.serial(ceildiv(K, FP8_VECTOR * across)):
                k = (step * across + thread % across) * FP8_VECTOR
                if (m < M) & (k < K):
                    for v in T.vectorized(FP8_VECTOR):
                        codes[v] = q[m, k + v]
                    convert(codes, load_code(T, s[m, k // B]), row)
                    for v in T.vectorized(FP8_VECTOR):
                        y[m, k + v] = row[v]

    return kernel
