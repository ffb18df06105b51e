"""FP4 cast: e2m1 codes with a power-of-two scale per 1×32 (spec §6.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv

from . import reference
from ._blocks import (
    ACT,
    FP4_DIMS,
    FP4_GROUP,
    FP4_SHAPES,
    PITCH,
    fp4_sizes,
    geometry,
    stored_scale,
)
from ._fp4 import device

op = Op(
    "quant/fp4_cast",
    args=(In("x", "M K", "act", strides="P 1"), Out("q", "M H", "u8"), Out("s", "M G", "ue8m0")),
    dims={**FP4_DIMS, "P": PITCH},
    doc="e2m1 codes, two a byte, and a ue8m0 scale per 1×32 (spec §6.1)",
    reference=reference.fp4_cast,
    shapes=FP4_SHAPES,
    types=ACT,
    model_sizes=fp4_sizes,
)


@op.kernel(**OPTIONS)
def fp4_cast(T, M, K, H, G, P, act):
    """A thread casts one group."""
    rows, across = geometry(K, FP4_GROUP, FP4_GROUP)
    code = device(T, act)

    @T.prim_func
    def kernel(
        x: T.StridedTensor((M, K), (P, 1), act),
        q: T.Tensor((M, H), "uint8"),
        s: T.Tensor((M, G), "float8_e8m0fnu"),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            T.assume(P % 8 == 0)
            thread = T.get_thread_binding()
            row = T.alloc_local((FP4_GROUP,), act)
            exponent = T.alloc_local((1,), "int32")
            codes = T.alloc_local((FP4_GROUP,), "int32")
            packed = T.alloc_local((FP4_GROUP // 2,), "uint8")
            m = block * rows + thread // across
            for step in T.serial(ceildiv(G, across)):
                g = step * across + thread % across
                if (m < M) & (g < G):
                    code.load(x, m, g, row)
                    code.encode(row, exponent, codes)
                    code.pack(codes, packed)
                    for v in T.vectorized(FP4_GROUP // 2):
                        q[m, g * (FP4_GROUP // 2) + v] = packed[v]
                    s[m, g] = stored_scale(T, exponent[0])

    return kernel
