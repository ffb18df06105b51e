"""mHC across sublayers: the residual mix, and the next projection of what it makes (spec §4)."""

from tileproof.dsl import In, Op, Out, derived, static
from tileproof.kernels.row_stream import MATRIX_OPTIONS, VECTOR_BYTES, vector

from . import prenorm_gemm, reference
from ._prenorm import GROUPS, PARTS, SLICE, device, split_length, splits
from ._tiles import HIDDEN, STREAMS, TOKENS, remix


def model_sizes(config):
    """The projections of every HyperConnection but the first."""
    N = config["hc_mult"]
    yield {"N": N, "D": config["hidden_size"], "C": N * (N + 2)}


op = Op(
    "mhc/post_prenorm_gemm",
    args=(
        In("x", "M N D", "act"),
        In("y", "M D", "act"),
        In("post", "M N", "f32"),
        In("comb", "M N N", "f32"),
        In("fn", "C K", "f32"),
        Out("out", "M N D", "act"),
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
    doc="post, and prenorm_gemm of its result, bit for bit, which is read no more (spec §4)",
    reference=reference.post_prenorm_gemm,
    shapes=prenorm_gemm.op.shapes,
    types={"act": ("bf16", "f32")},
    model_sizes=model_sizes,
    reduces=("N", "K"),
)


_MIXED = 32 * 1024  # bytes of mixed streams in shared memory, which leave room for the rest


@op.kernel(**MATRIX_OPTIONS)
def post_prenorm_gemm(T, M, N, D, C, K, S, act):
    """One block takes one split of one tile of tokens: some channels of all streams. A thread mixes
    16 bytes of all N streams of a token at a time."""
    wide = vector(act)
    row = N * SLICE * VECTOR_BYTES // wide  # bytes of a token
    tokens = next(n for n in (64, 32, 16) if n * row <= _MIXED)
    stages = 2 if C <= 24 else 1
    threads = 2 * tokens  # a warp multiplies 16 tokens
    length = split_length(N, D)
    pieces = SLICE // wide
    code = device(T, C, act, tokens, threads, T.GemmWarpPolicy.FullRow)
    mixed = remix(T, N, act)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, N, D), act),
        y: T.Tensor((M, D), act),
        post: T.Tensor((M, N), "float32"),
        comb: T.Tensor((M, N, N), "float32"),
        fn: T.Tensor((C, K), "float32"),
        out: T.Tensor((M, N, D), act),
        partial: T.Tensor((S, M, C), "float32"),
        sqrsum: T.Tensor((S, M), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, tokens), S, threads=threads) as (block, s):
            thread = T.get_thread_binding()
            weights = T.reshape(fn, (C, N, D))
            gains = T.alloc_shared((tokens, N), "float32")
            # a row longer than it need be, so that tokens lie in different banks
            mixes = T.alloc_shared((tokens, N * N + 1), "float32")
            streams = T.alloc_local((N, wide), act)
            layer = T.alloc_local((wide,), act)
            total = T.alloc_local((wide,), "float32")
            tile = T.alloc_shared((N * tokens, SLICE), act)
            x_parts = T.alloc_shared((PARTS * tokens, SLICE), "bfloat16")
            fn_tile = T.alloc_shared((code.rows, SLICE), "float32")
            fn_parts = T.alloc_shared((PARTS * code.rows, SLICE), "bfloat16")
            product = T.alloc_fragment((tokens, PARTS * code.rows), "float32")
            staged = T.alloc_shared((tokens, PARTS * code.rows), "float32")
            running = T.alloc_local((code.owned,), "float32")
            groups = T.alloc_shared((tokens, GROUPS), "float32")
            for i, n in T.Parallel(tokens, N):
                gains[i, n] = T.if_then_else(block * tokens + i < M, post[block * tokens + i, n], 0)
            for i, n in T.Parallel(tokens, N * N):
                mixes[i, n] = T.if_then_else(
                    block * tokens + i < M, comb[block * tokens + i, n // N, n % N], 0
                )
            T.clear(product)
            T.clear(running)
            for t in T.Pipelined(length // SLICE * N, num_stages=stages):
                first = s * length + t // N * SLICE
                T.copy(weights[0 : code.rows, t % N, first : first + SLICE], fn_tile)
                if t % N == 0:
                    for step in T.serial(tokens * pieces // threads):
                        i = (step * threads + thread) // pieces
                        c = thread % pieces * wide
                        m = block * tokens + i
                        if (m < M) & (first + c < D):
                            for v in T.vectorized(wide):
                                layer[v] = y[m, first + c + v]
                            for n in T.unroll(N):
                                for v in T.vectorized(wide):
                                    streams[n, v] = x[m, n, first + c + v]
                            for n in T.unroll(N):
                                mixed(
                                    lambda k, i=i: gains[i, k],
                                    lambda j, k, i=i: mixes[i, j * N + k],
                                    layer,
                                    streams,
                                    n,
                                    total,
                                )
                                for v in T.vectorized(wide):
                                    out[m, n, first + c + v] = total[v]
                                for v in T.vectorized(wide):
                                    tile[n * tokens + i, c + v] = total[v]
                        else:
                            for n in T.unroll(N):
                                for v in T.vectorized(wide):
                                    tile[n * tokens + i, c + v] = 0
                code.multiply(tile, t % N * tokens, x_parts, fn_tile, fn_parts, product)
                code.square(tile, t % N * tokens, running)
            code.write(product, running, staged, groups, s, block, M, partial, sqrsum)

    return kernel
