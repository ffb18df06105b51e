"""mHC projection: mixing coefficients before the norm, and sums of squares (spec §4, step 1)."""

from tileproof.dsl import In, Op, Out, derived, static
from tileproof.kernels.row_stream import MATRIX_OPTIONS

from . import reference
from ._prenorm import GROUPS, PARTS, SLICE, device, gemm_tile, split_length, splits
from ._tiles import TOKENS


def model_sizes(config):
    """The projections of every HyperConnection (N (N + 2) outputs) and of the HyperHead (N)."""
    N = config["hc_mult"]
    for C in (N * (N + 2), N):
        yield {"K": N * config["hidden_size"], "C": C}


op = Op(
    "mhc/prenorm_gemm",
    args=(
        In("x", "M K", "act"),
        In("fn", "C K", "f32"),
        Out("partial", "S M C", "f32"),
        Out("sqrsum", "S M", "f32"),
    ),
    dims={
        "M": TOKENS,
        "K": static(64, 131072, multiple=32),
        "C": static(2, 80),
        "S": derived(splits),
    },
    doc="x fn^T and sum x^2 in S partial results, S a function of K alone (spec §4, step 1)",
    reference=reference.prenorm_gemm,
    shapes={
        "tiny": {"M": 7, "K": 256, "C": 24},
        "flash": {"M": 4096, "K": 16384, "C": 24},
        "pro": {"M": 4096, "K": 28672, "C": 24},
        "edge": {"M": [0, 1, 31, 32, 33, 127, 129, 1031], "K": 288, "C": 15},
    },
    types={"act": ("bf16", "f32")},
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**MATRIX_OPTIONS, depth=SLICE, stages=2)
def prenorm_gemm(T, M, K, C, S, act, depth, stages):
    """One block takes one split of one tile of tokens."""
    tokens, threads, blocks = gemm_tile(C, K)
    policy = T.GemmWarpPolicy.FullRow if tokens == 64 else T.GemmWarpPolicy.Square
    length = split_length(K)
    code = device(T, C, act, tokens, depth, threads, policy)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, K), act),
        fn: T.Tensor((C, K), "float32"),
        partial: T.Tensor((S, M, C), "float32"),
        sqrsum: T.Tensor((S, M), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, tokens), S, threads=threads) as (block, s):
            T.annotate_min_blocks_per_sm(blocks if act == "bfloat16" else 1)
            x_tile = T.alloc_shared((tokens, depth), act)
            x_parts = T.alloc_shared((PARTS * tokens, depth), "bfloat16")
            fn_tile = T.alloc_shared((code.rows, depth), "float32")
            fn_parts = T.alloc_shared((PARTS * code.rows, depth), "bfloat16")
            product = T.alloc_fragment((tokens, PARTS * code.rows), "float32")
            staged = T.alloc_shared((tokens, PARTS * code.rows), "float32")
            running = T.alloc_local((code.owned,), "float32")
            groups = T.alloc_shared((tokens, GROUPS), "float32")
            T.clear(product)
            T.clear(running)
            for k in T.Pipelined(length // depth, num_stages=stages):
                T.copy(x[block * tokens, s * length + k * depth], x_tile)
                T.copy(fn[0, s * length + k * depth], fn_tile)
                code.multiply(x_tile, x_parts, fn_tile, fn_parts, product)
                code.square(x_tile, running)
            T.copy(product, staged)
            code.publish(running, groups)
            # partial_s = high + (middle + low)
            for i, c in T.Parallel(tokens, C):
                if block * tokens + i < M:
                    partial[s, block * tokens + i, c] = code.joined(staged, i, c)
            # sqrsum_s = sum of the eight running sums
            for i in T.Parallel(tokens):
                if block * tokens + i < M:
                    total = T.alloc_local((1,), "float32")
                    total[0] = groups[i, 0]
                    for g in T.unroll(1, GROUPS):
                        total[0] += groups[i, g]
                    sqrsum[s, block * tokens + i] = total[0]

    return kernel
