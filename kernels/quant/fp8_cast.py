"""FP8 cast: e4m3 codes with a power-of-two scale per 1×32, 1×64 or 1×128 (spec §6.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS, ceildiv, vector

from . import reference
from ._blocks import (
    ACT,
    FP8_DIMS,
    FP8_SHAPES,
    PITCH,
    activation_sizes,
    geometry,
    stored_scale,
)
from ._fp8 import device, owned

op = Op(
    "quant/fp8_cast",
    args=(In("x", "M K", "act", strides="P 1"), Out("q", "M K", "e4m3"), Out("s", "M G", "ue8m0")),
    dims={**FP8_DIMS, "P": PITCH},
    doc="e4m3 codes and a ue8m0 scale per 1×B (spec §6.1)",
    reference=reference.fp8_cast,
    shapes=FP8_SHAPES,
    types=ACT,
    model_sizes=activation_sizes,
)


@op.kernel(**OPTIONS)
def fp8_cast(T, M, K, B, G, P, act):
    """Four to 32 neighbouring threads cast one group."""
    rows, across = geometry(K, B, vector(act))
    groups = rows * across
    code = device(T, (groups, B), act)

    @T.prim_func
    def kernel(
        x: T.StridedTensor((M, K), (P, 1), act),
        q: T.Tensor((M, K), "float8_e4m3fn"),
        s: T.Tensor((M, G), "float8_e8m0fnu"),
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
                for i, k in T.Parallel(groups, B):
                    m = block * rows + i // across
                    g = step * across + i % across
                    if (m < M) & (g * B + k < K):
                        q[m, g * B + k] = codes[i, k]
                for i in T.Parallel(groups):
                    m = block * rows + i // across
                    g = step * across + i % across
                    if (m < M) & (g < G):
                        s[m, g] = stored_scale(T, exponent[i])

    return kernel
