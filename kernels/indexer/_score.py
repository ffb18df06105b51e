"""What the scores of the indexer share: domains, geometry, and the sum over heads (spec §3.1)."""

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


def columns(H: int) -> int:
    """Heads as columns of the matrix product: whole steps of mma's eight, for two at a time."""
    return ceildiv(H, 16) * 16


def head_sum(T, H, keys):
    """Macro: ``total_s = sum_h weight_h relu(product_sh)`` of a tile of keys.

    A thread adds what it holds of a row, by ascending head, then the row's four threads theirs.
    NaN passes; heads that only fill the tile count as zero.
    """

    @T.macro
    def device(product, weight, total):
        for s, h in T.Parallel(keys, columns(H)):
            product[s, h] = T.if_then_else(
                h < H, T.if_then_else(product[s, h] < 0, 0, product[s, h]) * weight[h], 0
            )
        T.reduce_sum(product, total, dim=1)

    return device
