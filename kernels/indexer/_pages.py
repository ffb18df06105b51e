"""Keys in pages: how a token finds those of its request, and the kernel that scores them (§12)."""

from tileproof.dsl import In, Values, dim
from tileproof.kernels import kv_cache
from tileproof.kernels.row_stream import ceildiv

from ._score import THREADS, device

PAGED_DIMS = {
    **kv_cache.PAGED_DIMS,
    "R": dim(0, 1 << 20),  # requests
    "L": dim(0, 1 << 18),  # pages of a request
}
PAGED_SHAPES = {
    "tiny": {"M": 7, "S": 20, "H": 2, "D": 128, "Z": 5, "E": 16, "R": 3, "L": 2},
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

# The pages of each request in order, -1 where there is none, and whose row a token reads.
TABLE = In("table", "R L", "i32", values=Values("0", "Z-1", none=-1))
REQUEST = In("request", "M", "i32", values=Values("0", "R-1", none=-1))

_VECTOR = 8  # bf16 of 16 bytes


def model_sizes(config):
    """The indexers of a HF config; keys that are no multiple of 128 wide have no official form."""
    if config["index_head_dim"] % 128 == 0:
        heads, D = config["index_n_heads"], config["index_head_dim"]
        yield {"H": heads, "D": D, "E": kv_cache.MODEL_ENTRIES}


def page_of(T, table, request, s, end, L, E):
    """The page of entry s of a request that sees those up to `end`; -1 if there is none."""
    there = (s < end) & (s < L * E) & (request >= 0)
    return T.if_then_else(there, table[request, s // E], -1)


def kernel_of(T, M, S, H, D, Z, E, P, R, L, stored, columns, groups, each, dequantise, span):
    """The kernel over pages of keys: `columns` of type `stored` and `groups` scales an entry.

    A thread takes `each` elements at a time: ``dequantise(codes, scale, page, i, u, row)`` makes
    `row` of the u-th piece of row i, whose parts ``codes(page, i, column)`` and
    ``scale(page, i, group)`` are, and zeros of page -1.
    """
    code = device(T, H, D, parts=1, keys=128, span=span)
    units = D // each
    # two neighbours take the 32 bytes of a sector, the next two the next row's: few of the 16-byte
    # stores of eight threads then meet in a bank
    pair = 2 - units % 2

    @T.macro
    def load(codes, scale, page, rows, tile):
        thread = T.get_thread_binding()
        row = T.alloc_local((each,), "bfloat16")
        for n in T.serial(ceildiv(rows * units, THREADS)):
            unit = n * THREADS + thread
            i = unit // pair % rows
            u = unit // (pair * rows) * pair + unit % pair
            if unit < rows * units:
                dequantise(codes, scale, page(i), i, u, row)
                for c in T.unroll(each // _VECTOR):
                    for v in T.vectorized(_VECTOR):
                        tile[i, u * each + c * _VECTOR + v] = row[c * _VECTOR + v]

    @T.prim_func
    def kernel(
        q: T.Tensor((M, H, columns), stored),
        q_scale: T.Tensor((M, H, groups), "float8_e8m0fnu"),
        pool_codes: T.StridedTensor((Z, E, columns), (P, columns, 1), stored),
        pool_scale: T.StridedTensor((Z, E, groups), (P, groups, 1), "float8_e8m0fnu"),
        table: T.Tensor((R, L), "int32"),
        request: T.Tensor((M,), "int32"),
        count: T.Tensor((M,), "int32"),
        weight: T.Tensor((M, H), "float32"),
        score: T.Tensor((M, S), "float32"),
    ):
        with T.Kernel(M, T.ceildiv(S, code.width), threads=THREADS) as (m, block):
            T.assume(S % 4 == 0)
            T.assume(P % kv_cache.PITCH.multiple == 0)
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
