"""Scores of the lightning indexer in official precision: FP4 queries, FP4 keys in pages (§3.1)."""

from tileproof.dsl import In, Op, Out, derived, static
from tileproof.kernels import kv_cache
from tileproof.kernels.quant._blocks import FP4_GROUP, load_code
from tileproof.kernels.quant._fp4 import device as fp4_device
from tileproof.kernels.row_stream import MATRIX_OPTIONS

from . import reference
from ._pages import PAGED_DIMS, PAGED_SHAPES, REQUEST, TABLE, kernel_of, model_sizes
from ._score import DIMS

op = Op(
    "indexer/score_fp4",
    args=(
        In("q", "M H B", "u8"),
        In("q_scale", "M H G", "ue8m0"),
        *kv_cache.key_views(In, "pool"),
        TABLE,
        REQUEST,
        In("count", "M", "i32"),
        In("weight", "M H", "f32"),
        Out("score", "M S", "f32"),
    ),
    dims={
        **DIMS,
        **PAGED_DIMS,
        "D": static(32, 128, multiple=FP4_GROUP),
        "B": derived(lambda D: D // 2),
        "G": derived(lambda D: D // FP4_GROUP),
    },
    doc="as indexer/score, of FP4 queries and each request's FP4 keys in pages (spec §3.1, §12.1)",
    reference=reference.score_paged,
    shapes=PAGED_SHAPES,
    model_sizes=model_sizes,
    reduces=("D", "H"),
)


@op.kernel(**MATRIX_OPTIONS, span=4)
def score_fp4(T, M, S, H, D, B, G, Z, E, P, R, L, span):
    """As indexer/score in bfloat16, which takes every e2m1 times its scale exactly."""
    fp4 = fp4_device(T, "bfloat16")

    @T.macro
    def dequantise(codes, scale, page, i, g, row):
        packed = T.alloc_local((FP4_GROUP // 2,), "uint8")
        digits = T.alloc_local((FP4_GROUP,), "int32")
        exponent = T.alloc_local((1,), "int32")
        T.clear(packed)
        exponent[0] = 0
        if page >= 0:
            for v in T.vectorized(FP4_GROUP // 2):
                packed[v] = codes(page, i, g * (FP4_GROUP // 2) + v)
            exponent[0] = load_code(T, scale(page, i, g))
        fp4.unpack(packed, digits)
        fp4.decode(digits, exponent, row)

    return kernel_of(
        *(T, M, S, H, D, Z, E, P, R, L),
        stored="uint8",
        columns=B,
        groups=G,
        each=FP4_GROUP,
        dequantise=dequantise,
        span=span,
    )
