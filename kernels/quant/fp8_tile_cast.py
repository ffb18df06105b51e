"""FP8 cast of weights: e4m3 codes with a power-of-two scale per 128×128 (spec §6.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, vector

from . import reference
from ._blocks import ACT, TILE, WEIGHT_DIMS, WEIGHT_SHAPES, stored_scale, weight_sizes
from ._fp8 import device, owned

_THREADS = 256  # 64 elements each

op = Op(
    "quant/fp8_tile_cast",
    args=(In("w", "M N K", "act"), Out("q", "M N K", "e4m3"), Out("s", "M G", "ue8m0")),
    dims=WEIGHT_DIMS,
    doc="e4m3 codes and a ue8m0 scale per N×128 of a strip of N rows (spec §6.1)",
    reference=reference.fp8_tile_cast,
    shapes=WEIGHT_SHAPES,
    types=ACT,
    model_sizes=weight_sizes,
)


@op.kernel(**OPTIONS)
def fp8_tile_cast(T, M, N, K, G, act):
    """A block casts one tile, which its threads hold in registers."""
    shape = (1, TILE * TILE)
    code = device(T, shape, act)

    @T.prim_func
    def kernel(
        w: T.Tensor((M, N, K), act),
        q: T.Tensor((M, N, K), "float8_e4m3fn"),
        s: T.Tensor((M, G), "float8_e8m0fnu"),
    ):
        with T.Kernel(M, G, threads=_THREADS) as (m, g):
            tile = T.alloc_fragment(shape, act)
            codes = T.alloc_fragment(shape, "float8_e4m3fn")
            exponent = T.alloc_fragment((1,), "int32")
            T.annotate_layout({tile: owned(T, shape, _THREADS, vector(act))})
            for i, e in T.Parallel(*shape):
                inside = (e // TILE < N) & (g * TILE + e % TILE < K)
                tile[i, e] = T.if_then_else(inside, w[m, e // TILE, g * TILE + e % TILE], 0)
            code.encode(tile, exponent, codes)
            for i, e in T.Parallel(*shape):
                if (e // TILE < N) & (g * TILE + e % TILE < K):
                    q[m, e // TILE, g * TILE + e % TILE] = codes[i, e]
            for i in T.Parallel(1):
                s[m, g + i] = stored_scale(T, exponent[i])

    return kernel
