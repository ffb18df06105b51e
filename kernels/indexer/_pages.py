"""Keys in pages: how a token finds those of its request, and what the ops on them share (§12)."""

from tileproof.dsl import In, Values, dim
from tileproof.kernels import kv_cache

PAGED_DIMS = {
    **kv_cache.PAGED_DIMS,
    "R": dim(0, 1 << 20),  # requests
    "L": dim(0, 1 << 18),  # pages of a request
}

PAGED_SHAPES = {
    "tiny": {"M": 7, "S": 20, "H": 2, "D": 128, "Z": 5, "E": 4, "R": 3, "L": 6},
    "flash": {"M": 64, "S": 4096, "H": 64, "D": 128, "Z": 256, "E": 64, "R": 4, "L": 64},
    "pro": {"M": 64, "S": 4096, "H": 64, "D": 128, "Z": 256, "E": 64, "R": 4, "L": 64},
    "edge": {
        "M": [0, 1, 3],
        "S": [0, 4, 132, 1028],
        "H": 5,
        "D": 96,
        "Z": 3,
        "E": 16,
        "R": 2,
        "L": [1, 9],
    },
}


def model_sizes(config):
    """The indexers of a HF config; keys that are no multiple of 128 wide have no official form."""
    if config["index_head_dim"] % 128 == 0:
        heads, D = config["index_n_heads"], config["index_head_dim"]
        yield {"H": heads, "D": D, "E": kv_cache.MODEL_ENTRIES}


# The pages of each request in order, -1 where there is none, and whose row a token reads.
LISTS = (
    In("table", "R L", "i32", values=Values("0", "Z-1", none=-1)),
    In("request", "M", "i32", values=Values("0", "R-1", none=-1)),
    In("count", "M", "i32"),
)


def page_of(T, table, request, s, end, L, E):
    """The page of key s of a request that sees keys up to `end`; -1 if there is none."""
    there = (s < end) & (s < L * E) & (request >= 0)
    return T.if_then_else(there, table[request, s // E], -1)
