"""Scores of the lightning indexer, queries and keys unquantised (spec §3.1)."""

from tileproof.dsl import In, Op, Out, dim
from tileproof.kernels.row_stream import MATRIX_OPTIONS

from . import reference
from ._score import DIMS, SHAPES, THREADS, device, model_sizes

op = Op(
    "indexer/score",
    args=(
        In("q", "M H D", "act"),
        In("k", "L D", "act"),
        In("weight", "M H", "f32"),
        In("first", "M", "i32"),
        In("count", "M", "i32"),
        Out("score", "M S", "f32"),
    ),
    dims={**DIMS, "L": dim(0, 1 << 22)},
    doc="sum_h w_h relu(q_h . k_s) / sqrt(D H) of each token's own keys, -inf beyond (spec §3.1)",
    reference=reference.score,
    shapes={name: {**sizes, "L": 4096} for name, sizes in SHAPES.items()},
    types={"act": ("bf16", "f32")},
    model_sizes=model_sizes,
    reduces=("D", "H"),
)

_PARTS = 3  # bfloat16 parts of a float32


@op.kernel(**MATRIX_OPTIONS, span=4)
def score(T, M, S, H, D, L, act, span):
    """A block takes one token and `span` tiles of its keys. A float32 is the exact sum of three
    bfloat16."""
    as_is = act == "bfloat16"
    parts = 1 if as_is else _PARTS
    code = device(T, H, D, parts, keys=128 if as_is else 64, span=span)

    @T.macro
    def load(source, begin, limit, rows, tile):
        """Rows of a source from `begin` on, zeros from `limit` rows on, as parts one above the
        other."""
        for i, d in T.Parallel(rows, D):
            if as_is:
                tile[i, d] = T.if_then_else(i < limit, source(begin + i, d), T.bfloat16(0))
            else:
                value = T.if_then_else(i < limit, source(begin + i, d), T.float32(0))
                high = T.cast(value, "bfloat16")
                rest = value - T.cast(high, "float32")
                middle = T.cast(rest, "bfloat16")
                tile[i, d] = high
                tile[rows + i, d] = middle
                tile[2 * rows + i, d] = T.cast(rest - T.cast(middle, "float32"), "bfloat16")

    @T.prim_func
    def kernel(
        q: T.Tensor((M, H, D), act),
        k: T.Tensor((L, D), act),
        weight: T.Tensor((M, H), "float32"),
        first: T.Tensor((M,), "int32"),
        count: T.Tensor((M,), "int32"),
        score: T.Tensor((M, S), "float32"),
    ):
        with T.Kernel(M, T.ceildiv(S, code.width), threads=THREADS) as (m, block):
            T.assume(S % 4 == 0)
            begin = T.max(T.min(first[m], L), 0)
            end = T.min(T.max(T.min(count[m], S), 0), L - begin)
            code.scores(
                *(weight, score, m, block, S, end),
                lambda tile: load(lambda h, d: q[m, h, d], 0, H, code.heads, tile),
                lambda base, tile: load(
                    lambda s, d: k[s, d], begin + base, end - base, code.keys, tile
                ),
                lambda s: True,
            )

    return kernel
