"""Scores of the lightning indexer of FP8 queries and FP8 keys in pages (spec §3.1)."""

from tileproof.dsl import In, Op, Out, derived
from tileproof.kernels import kv_cache
from tileproof.kernels.quant._blocks import FP8_VECTOR, load_code
from tileproof.kernels.quant._fp8 import dequantised
from tileproof.kernels.row_stream import MATRIX_OPTIONS, ceildiv

from . import reference
from ._pages import PAGED_DIMS, PAGED_SHAPES, REQUEST, TABLE, kernel_of, model_sizes
from ._score import DIMS

op = Op(
    "indexer/score_fp8",
    args=(
        In("q", "M H D", "e4m3"),
        In("q_scale", "M H G", "ue8m0"),
        *kv_cache.key_views(In, "pool", fp8=True),
        TABLE,
        REQUEST,
        In("count", "M", "i32"),
        In("weight", "M H", "f32"),
        Out("score", "M S", "f32"),
    ),
    dims={**DIMS, **PAGED_DIMS, "G": derived(lambda D: ceildiv(D, kv_cache.KEY_GROUP))},
    doc="as indexer/score, of FP8 queries and each request's FP8 keys in pages (spec §3.1, §12.1)",
    reference=reference.score_paged,
    shapes=PAGED_SHAPES,
    model_sizes=model_sizes,
    reduces=("D", "H"),
)


@op.kernel(**MATRIX_OPTIONS, span=4)
def score_fp8(T, M, S, H, D, G, Z, E, P, R, L, span):
    """As indexer/score in bfloat16, which takes every e4m3 times its scale exactly."""
    convert = dequantised(T)

    @T.macro
    def dequantise(codes, scale, page, i, u, row):
        stored = T.alloc_local((FP8_VECTOR,), "float8_e4m3fn")
        if page >= 0:
            for v in T.vectorized(FP8_VECTOR):
                stored[v] = codes(page, i, u * FP8_VECTOR + v)
            convert(stored, load_code(T, scale(page, i, u * FP8_VECTOR // kv_cache.KEY_GROUP)), row)
        else:
            T.clear(row)

    return kernel_of(
        *(T, M, S, H, D, Z, E, P, R, L),
        stored="float8_e4m3fn",
        columns=D,
        groups=G,
        each=FP8_VECTOR,
        dequantise=dequantise,
        span=span,
    )
