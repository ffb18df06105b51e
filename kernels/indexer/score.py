"""Scores of the lightning indexer, queries and keys unquantised (spec §3.1)."""

from tileproof.dsl import In, Op, Out, dim
from tileproof.kernels.row_stream import MATRIX_OPTIONS

from . import reference
from ._score import DIMS, SHAPES, THREADS, columns, head_sum, model_sizes

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
    """A block takes one token and `span` tiles of its keys: rows of the product are keys, columns
    are heads, so a key's heads end in four threads and their sum never leaves registers.

    A float32 is the exact sum of three bfloat16; all nine products of parts are added, the smallest
    first.
    """
    heads = columns(H)
    keys = 128 if act == "bfloat16" else 64
    parts = 1 if act == "bfloat16" else _PARTS
    pairs = [
        (i, n - i)
        for n in range(2 * parts - 2, -1, -1)
        for i in range(parts)
        if n - i in range(parts)
    ]
    total_of = head_sum(T, H, keys)
    scale = (D * H) ** -0.5

    @T.macro
    def load(source, begin, limit, rows, tile):
        """Rows of a source from `begin` on, zeros from `limit` rows on, as parts one above the
        other."""
        for i, d in T.Parallel(rows, D):
            if act == "bfloat16":
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
        with T.Kernel(M, T.ceildiv(S, span * keys), threads=THREADS) as (m, block):
            T.assume(S % 4 == 0)
            begin = T.max(T.min(first[m], L), 0)
            end = T.min(T.max(T.min(count[m], S), 0), L - begin)
            q_tile = T.alloc_shared((parts * heads, D), "bfloat16")
            k_tile = T.alloc_shared((parts * keys, D), "bfloat16")
            weights = T.alloc_shared((heads,), "float32")
            product = T.alloc_fragment((keys, heads), "float32")
            total = T.alloc_fragment((keys,), "float32")
            for h in T.Parallel(heads):
                weights[h] = T.if_then_else(h < H, weight[m, h], 0) * T.float32(scale)
            load(lambda h, d: q[m, h, d], 0, H, heads, q_tile)
            for t in T.serial(span):
                base = (block * span + t) * keys
                T.clear(total)
                # a loop of at most one round, which TileLang does not cut up as it does an `if`
                for _ in T.serial(T.if_then_else(base < end, 1, 0)):
                    load(lambda s, d: k[s, d], begin + base, end - base, keys, k_tile)
                    T.clear(product)
                    for i, j in pairs:
                        T.gemm(
                            k_tile[i * keys : (i + 1) * keys, :],
                            q_tile[j * heads : (j + 1) * heads, :],
                            product,
                            transpose_B=True,
                            policy=T.GemmWarpPolicy.FullRow,
                        )
                    total_of(product, weights, total)
                for s in T.Parallel(keys):
                    if base + s < S:
                        score[m, base + s] = T.if_then_else(
                            base + s < end, total[s], -T.infinity("float32")
                        )

    return kernel
