"""FP4 back to bfloat16: codes times their group's scale (spec §6.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import reference
from ._blocks import (
    FP4_DIMS,
    FP4_GROUP,
    FP4_SHAPES,
    fp4_sizes,
    geometry,
    load_code,
)
from ._fp4 import device

op = Op(
    "quant/fp4_dequant",
    args=(In("q", "M H", "u8"), In("s", "M G", "ue8m0"), Out("y", "M K", "bf16")),
    dims=FP4_DIMS,
    doc="y = q * s, codes two a byte, one scale per 1×32 (spec §6.1)",
    reference=reference.fp4_dequant,
    shapes=FP4_SHAPES,
    model_sizes=fp4_sizes,
)


@op.kernel(**OPTIONS)
def fp4_dequant(T, M, K, H, G):
    """A thread takes one group."""
    rows, across = geometry(K, FP4_GROUP, FP4_GROUP)
    code = device(T, "bfloat16")

    @T.prim_func
    def kernel(
        q: T.Tensor((M, H), "uint8"),
        s: T.Tensor((M, G), "float8_e8m0fnu"),
        y: T.Tensor((M, K), "bfloat16"),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            thread = T.get_thread_binding()
            row = T.alloc_local((FP4_GROUP,), "bfloat16")
            exponent = T.alloc_local((1,), "int32")
            codes = T.alloc_local((FP4_GROUP,), "int32")
            packed = T.alloc_local((FP4_GROUP // 2,), "uint8")
            m = block * rows + thread // across
            for step in T.serial(ceildiv(G, across)):
                g = step * across + thread % across
                if (m < M) & (g < G):
                    for v in T.vectorized(FP4_GROUP // 2):
                        packed[v] = q[m, g * (FP4_GROUP // 2) + v]
                    exponent[0] = load_code(T, s[m, g])
                    code.unpack(packed, codes)
                    code.decode(codes, exponent, row)
                    code.store(row, y, m, g)

    return kernel
