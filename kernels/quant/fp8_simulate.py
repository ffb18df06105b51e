"""FP8 in place of a cast: what `fp8_cast` and `fp8_dequant` make of a tensor (spec §6.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv, vector

from . import reference
from ._blocks import (
    ACT,
    FP8_DIMS,
    FP8_SHAPES,
    PITCH,
    geometry,
    kv_sizes,
)
from ._fp8 import device, owned

op = Op(
    "quant/fp8_simulate",
    args=(In("x", "M K", "act", strides="P 1"), Out("y", "M K", "act")),
    dims={**FP8_DIMS, "P": PITCH},
    doc="x rounded to e4m3 with a scale per 1×B (spec §6.1)",
    reference=reference.fp8_simulate,
    shapes=FP8_SHAPES,
    types=ACT,
    model_sizes=kv_sizes,
)


@op.kernel(**OPTIONS)
def fp8_simulate(T, M, K, B, G, P, act):
    """The rounded value is exact in bfloat16: at most four significant bits."""
    rows, across = geometry(K, B, vector(act))
    groups = rows * across
    code = device(T, (groups, B), act)

    @T.prim_func
    def kernel(
        x: T.StridedTensor((M, K), (P, 1), act),
        y: T.Tensor((M, K), act),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            T.assume(P % 8 == 0)
            group = T.alloc_fragment((groups, B), act)
            codes = T.alloc_fragment((groups, B), "float8_e4m3fn")
            exponent = T.alloc_fragment((groups,), "int32")
            T.annotate_layout({group: owned(T, (groups, B), vector=vector(act))})
            for step in T.serial(ceildiv(G, across)):
                for i, k in T.Parallel(groups, B):
                    m = block * rows + i // across
                    g = step * across + i % across
                    group[i, k] = T.if_then_else((m < M) & (g * B + k < K), x[m, g * B + k], 0)
                code.encode(group, exponent, codes)
                code.decode(codes, exponent, group)
                for i, k in T.Parallel(groups, B):
                    m = block * rows + i // across
                    g = step * across + i % across
                    if (m < M) & (g * B + k < K):
                        y[m, g * B + k] = group[i, k]

    return kernel
