"""Scores of the lightning indexer in official precision: FP4 queries, FP4 keys in pages (§3.1)."""

from tileproof.dsl import In, Op, Out, derived, static
from tileproof.kernels import kv_cache
from tileproof.kernels.quant._blocks import FP4_GROUP, load_code
from tileproof.kernels.quant._fp4 import device as fp4_device
from tileproof.kernels.row_stream import MATRIX_OPTIONS, ceildiv

from . import reference
from ._pages import LISTS, PAGED_DIMS, PAGED_SHAPES, model_sizes, page_of
from ._score import DIMS, THREADS, device

op = Op(
    "indexer/score_fp4",
    args=(
        In("q", "M H B", "u8"),
        In("q_scale", "M H G", "ue8m0"),
        *kv_cache.key_views(In, "pool"),
        *LISTS,
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
    reference=reference.score_fp4,
    shapes=PAGED_SHAPES,
    model_sizes=model_sizes,
    reduces=("D", "H"),
)

_VECTOR = 8  # bf16 of 16 bytes


@op.kernel(**MATRIX_OPTIONS, span=4)
def score_fp4(T, M, S, H, D, B, G, Z, E, P, R, L, span):
    """As indexer/score in bfloat16, which takes every e2m1 times its scale exactly."""
    code = device(T, H, D, parts=1, keys=128, span=span)
    fp4 = fp4_device(T, "bfloat16")
    # two neighbours take the 32 bytes of a sector, the next two the next row's: 16-byte stores of
    # eight threads then meet no bank twice
    pair = 2 - G % 2

    @T.macro
    def load(codes, scale, page_of_row, rows, tile):
        """Rows of FP4 as bfloat16, a thread a group at a time; zeros for a row without a page."""
        thread = T.get_thread_binding()
        packed = T.alloc_local((FP4_GROUP // 2,), "uint8")
        digits = T.alloc_local((FP4_GROUP,), "int32")
        exponent = T.alloc_local((1,), "int32")
        row = T.alloc_local((FP4_GROUP,), "bfloat16")
        for n in T.serial(ceildiv(rows * G, THREADS)):
            unit = n * THREADS + thread
            i = unit // pair % rows
            g = unit // (pair * rows) * pair + unit % pair
            if unit < rows * G:
                page = page_of_row(i)
                T.clear(packed)
                exponent[0] = 0
                if page >= 0:
                    for v in T.vectorized(FP4_GROUP // 2):
                        packed[v] = codes(page, i, g * (FP4_GROUP // 2) + v)
                    exponent[0] = load_code(T, scale(page, i, g))
                fp4.unpack(packed, digits)
                fp4.decode(digits, exponent, row)
                for c in T.unroll(FP4_GROUP // _VECTOR):
                    for v in T.vectorized(_VECTOR):
                        tile[i, g * FP4_GROUP + c * _VECTOR + v] = row[c * _VECTOR + v]

    @T.prim_func
    def kernel(
        q: T.Tensor((M, H, B), "uint8"),
        q_scale: T.Tensor((M, H, G), "float8_e8m0fnu"),
        pool_codes: T.StridedTensor((Z, E, B), (P, B, 1), "uint8"),
        pool_scale: T.StridedTensor((Z, E, G), (P, G, 1), "float8_e8m0fnu"),
        table: T.Tensor((R, L), "int32"),
        request: T.Tensor((M,), "int32"),
        count: T.Tensor((M,), "int32"),
        weight: T.Tensor((M, H), "float32"),
        score: T.Tensor((M, S), "float32"),
    ):
        with T.Kernel(M, T.ceildiv(S, code.width), threads=THREADS) as (m, block):
            T.assume(S % 4 == 0)
            T.assume(P % 16 == 0)
            end = T.max(T.min(count[m], S), 0)
            code.scores(
                *(weight, score, m, block, S, end),
                lambda tile: load(
                    lambda page, h, b: q[m, h, b],
                    lambda page, h, g: q_scale[m, h, g],
                    lambda h: T.if_then_else(h < H, 0, -1),
                    code.heads,
                    tile,
                ),
                lambda base, tile: load(
                    lambda page, i, b: pool_codes[page, (base + i) % E, b],
                    lambda page, i, g: pool_scale[page, (base + i) % E, g],
                    lambda i: page_of(T, table, request[m], base + i, end, L, E),
                    code.keys,
                    tile,
                ),
                lambda s: page_of(T, table, request[m], s, end, L, E) >= 0,
            )

    return kernel
