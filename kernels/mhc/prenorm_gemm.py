"""mHC projection: mixing coefficients before the norm, and sums of squares (spec §4, step 1)."""

from tileproof.dsl import In, Op, Out, derived, static
from tileproof.kernels.row_stream import MATRIX_OPTIONS

from . import reference
from ._prenorm import GROUPS, PARTS, SLICE, device, gemm_tile, split_length, splits
from ._tiles import HIDDEN, STREAMS, TOKENS


def model_sizes(config):
    """The projections of every HyperConnection (N (N + 2) outputs) and of the HyperHead (N)."""
    N = config["hc_mult"]
    for C in (N * (N + 2), N):
        yield {"N": N, "D": config["hidden_size"], "C": C}


op = Op(
    "mhc/prenorm_gemm",
    args=(
        In("x", "M N D", "act"),
        In("fn", "C K", "f32"),
        Out("partial", "S M C", "f32"),
        Out("sqrsum", "S M", "f32"),
    ),
    dims={
        "M": TOKENS,
        "N": STREAMS,
        "D": HIDDEN,
        "C": static(2, 80),
        "K": derived(lambda N, D: N * D),
        "S": derived(splits),
    },
    doc="x fn^T and sum x^2 in S partial results, S a function of N and D (spec §4, step 1)",
    reference=reference.prenorm_gemm,
    shapes={
        "tiny": {"M": 7, "N": 4, "D": 64, "C": 24},
        "flash": {"M": 4096, "N": 4, "D": 4096, "C": 24},
        "pro": {"M": 4096, "N": 4, "D": 7168, "C": 24},
        "edge": {"M": [0, 1, 31, 32, 33, 127, 129, 1031], "N": 3, "D": 96, "C": 15},
    },
    types={"act": ("bf16", "f32")},
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**MATRIX_OPTIONS, stages=2)
def prenorm_gemm(T, M, N, D, C, K, S, act, stages):
    """One block takes one split of one tile of tokens."""
    tokens, threads, blocks = gemm_tile(C, N, D)
    policy = T.GemmWarpPolicy.FullRow if tokens == 64 else T.GemmWarpPolicy.Square
    length = split_length(N, D)
    code = device(T, C, act, tokens, threads, policy)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, N, D), act),
        fn: T.Tensor((C, K), "float32"),
        partial: T.Tensor((S, M, C), "float32"),
        sqrsum: T.Tensor((S, M), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, tokens), S, threads=threads) as (block, s):
            T.annotate_min_blocks_per_sm(blocks if act == "bfloat16" else 1)
            weights = T.reshape(fn, (C, N, D))
            x_tile = T.alloc_shared((tokens, SLICE), act)
            x_parts = T.alloc_shared((PARTS * tokens, SLICE), "bfloat16")
            fn_tile = T.alloc_shared((code.rows, SLICE), "float32")
            fn_parts = T.alloc_shared((PARTS * code.rows, SLICE), "bfloat16")
            product = T.alloc_fragment((tokens, PARTS * code.rows), "float32")
            staged = T.alloc_shared((tokens, PARTS * code.rows), "float32")
            running = T.alloc_local((code.owned,), "float32")
            groups = T.alloc_shared((tokens, GROUPS), "float32")
            T.clear(product)
            T.clear(running)
            for t in T.Pipelined(length // SLICE * N, num_stages=stages):
                d = s * length + t // N * SLICE
                T.copy(x[block * tokens : (block + 1) * tokens, t % N, d : d + SLICE], x_tile)
                T.copy(weights[0 : code.rows, t % N, d : d + SLICE], fn_tile)
                code.multiply(x_tile, 0, x_parts, fn_tile, fn_parts, product)
                code.square(x_tile, 0, running)
            code.write(product, running, staged, groups, s, block, M, partial, sqrsum)

    return kernel
