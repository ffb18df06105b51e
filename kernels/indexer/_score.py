"""What the scores of the indexer share: domains, geometry, and the product (spec §3.1)."""

from types import SimpleNamespace

from tileproof.dsl import dim, static
from tileproof.kernels.row_stream import ceildiv

DIMS = {
    "M": dim(0, 1 << 20, batch=True),
    "S": dim(0, 1 << 18, multiple=4),
    "H": static(1, 64),
    "D": static(16, 128, multiple=16),
}
SHAPES = {
    "tiny": {"M": 7, "S": 20, "H": 2, "D": 16},
    "flash": {"M": 64, "S": 4096, "H": 64, "D": 128},
    "pro": {"M": 64, "S": 4096, "H": 64, "D": 128},
    "edge": {"M": [0, 1, 3], "S": [0, 4, 132, 1028], "H": 5, "D": 48},
}
THREADS = 128


def model_sizes(config):
    """The indexers of a HF config."""
    yield {"H": config["index_n_heads"], "D": config["index_head_dim"]}


def device(T, H, D, parts, keys, span):
    """Device code of a block that takes one token and `span` tiles of its keys, as a namespace.

    Rows of the product are keys, columns are heads (whole steps of mma's eight, for two at a time),
    so a key's heads end in four threads and their sum never leaves registers. Operands are sums of
    `parts` bfloat16, tiles above one another; all products of parts are added, the smallest first.
    """
    heads = ceildiv(H, 16) * 16
    pairs = [
        (i, n - i)
        for n in range(2 * parts - 2, -1, -1)
        for i in range(parts)
        if n - i in range(parts)
    ]
    scale = (D * H) ** -0.5

    @T.macro
    def head_sum(product, weights, total):
        # a thread adds what it holds of a row, by ascending head, then the row's four threads
        # theirs; NaN passes, heads that only fill the tile count as zero
        for s, h in T.Parallel(keys, heads):
            product[s, h] = T.if_then_else(
                h < H, T.if_then_else(product[s, h] < 0, 0, product[s, h]) * weights[h], 0
            )
        T.reduce_sum(product, total, dim=1)

    @T.macro
    def scores(weight, score, m, block, S, end, queries, bring, exists):
        """score[m, of this block]: ``sum_h weight_h relu(q_h . k_s)`` up to `end`, then -inf.

        ``queries(tile)`` brings the heads, ``bring(base, tile)`` the keys from `base` on, zeros
        beyond their ends; ``exists(s)`` says whether there is a key s.
        """
        q_tile = T.alloc_shared((parts * heads, D), "bfloat16")
        k_tile = T.alloc_shared((parts * keys, D), "bfloat16")
        weights = T.alloc_shared((heads,), "float32")
        product = T.alloc_fragment((keys, heads), "float32")
        total = T.alloc_fragment((keys,), "float32")
        for h in T.Parallel(heads):
            weights[h] = T.if_then_else(h < H, weight[m, h], 0) * T.float32(scale)
        queries(q_tile)
        for t in T.serial(span):
            base = (block * span + t) * keys
            T.clear(total)
            # a loop of at most one round, which TileLang does not cut up as it does an `if`
            for _ in T.serial(T.if_then_else(base < end, 1, 0)):
                bring(base, k_tile)
                T.clear(product)
                for i, j in pairs:
                    T.gemm(
                        k_tile[i * keys : (i + 1) * keys, :],
                        q_tile[j * heads : (j + 1) * heads, :],
                        product,
                        transpose_B=True,
                        policy=T.GemmWarpPolicy.FullRow,
                    )
                head_sum(product, weights, total)
                for s in T.Parallel(keys):
                    total[s] = T.if_then_else(exists(base + s), total[s], -T.infinity("float32"))
            for s in T.Parallel(keys):
                if base + s < S:
                    score[m, base + s] = T.if_then_else(
                        base + s < end, total[s], -T.infinity("float32")
                    )

    return SimpleNamespace(heads=heads, keys=keys, width=span * keys, scores=scores)
