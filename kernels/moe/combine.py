"""What a token's experts made, summed in the order of its slots (spec §5.2)."""

from tileproof.dsl import In, Op, Out, Values
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._gate import CHOSEN
from ._lists import ROWS, TILE, TILES
from ._rows import HIDDEN, TOKENS, geometry


def model_sizes(config):
    """Routed experts of a HF config."""
    yield {"D": config["hidden_size"], "K": config["num_experts_per_tok"], "R": TILE}


op = Op(
    "moe/combine",
    args=(
        In("y", "Q R D", "act"),
        In("place", "M K", "i32", values=Values("0", "Q*R-1", none=-1)),
        In("weight", "M K", "f32"),
        In("shared", "M D", "act"),
        Out("out", "M D", "act"),
    ),
    dims={"Q": TILES, "R": ROWS, "M": TOKENS, "K": CHOSEN, "D": HIDDEN},
    doc="sum_k weight_k y[place_k] in float32, slot after slot, + shared, one cast (spec §5.2)",
    reference=reference.combine,
    shapes={
        "tiny": {"Q": 2, "R": 16, "M": 12, "K": 2, "D": 64},
        "flash": {"Q": 640, "R": 64, "M": 4096, "K": 6, "D": 4096},
        "pro": {"Q": 768, "R": 64, "M": 4096, "K": 6, "D": 7168},
        "edge": {"Q": [0, 1, 3], "R": 32, "M": [0, 1, 13], "K": 3, "D": 160},
    },
    types={"act": ("bf16", "f32")},
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**OPTIONS)
def combine(T, Q, R, M, K, D, act):
    """A thread has 16 bytes of a token."""
    wide, threads, blocks = geometry(D, act)

    @T.prim_func
    def kernel(
        y: T.Tensor((Q, R, D), act),
        place: T.Tensor((M, K), "int32"),
        weight: T.Tensor((M, K), "float32"),
        shared: T.Tensor((M, D), act),
        out: T.Tensor((M, D), act),
    ):
        with T.Kernel(M, blocks, threads=threads) as (m, block):
            row = T.alloc_local((wide,), act)
            term = T.alloc_local((wide,), "float32")
            total = T.alloc_local((wide,), "float32")
            factor = T.alloc_local((1,), "float32")
            d = (block * threads + T.get_thread_binding()) * wide
            if d < D:
                T.clear(total)
                for k in T.unroll(K):
                    if place[m, k] >= 0:
                        factor[0] = weight[m, k]
                        for v in T.vectorized(wide):
                            row[v] = y[place[m, k] // R, place[m, k] % R, d + v]
                        for v in T.vectorized(wide):
                            term[v] = factor[0] * T.cast(row[v], "float32")
                        for v in T.vectorized(wide):
                            total[v] += term[v]
                for v in T.vectorized(wide):
                    row[v] = shared[m, d + v]
                for v in T.vectorized(wide):
                    total[v] += T.cast(row[v], "float32")
                for v in T.vectorized(wide):
                    out[m, d + v] = T.cast(total[v], act)

    return kernel
