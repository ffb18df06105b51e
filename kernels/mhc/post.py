"""mHC post: the sublayer's output goes back into N mixed residual streams (spec §4, step 5)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS

from . import reference
from ._tiles import (
    HIDDEN,
    SHAPES,
    STREAMS,
    TOKENS,
    float_vector,
    remix,
    stream_geometry,
    stream_sizes,
)

op = Op(
    "mhc/post",
    args=(
        In("x", "M N D", "act"),
        In("y", "M D", "act"),
        In("post", "M N", "f32"),
        In("comb", "M N N", "f32"),
        Out("out", "M N D", "act"),
    ),
    dims={"M": TOKENS, "N": STREAMS, "D": HIDDEN},
    doc="out_k = post_k y + sum_j comb_{jk} X_j in fp32, one cast (spec §4, step 5)",
    reference=reference.post,
    shapes=SHAPES,
    types={"act": ("bf16", "f32")},
    model_sizes=stream_sizes,
    reduces=("N",),
)


@op.kernel(**OPTIONS)
def post(T, M, N, D, act):
    """A thread takes one 16-byte column of all N streams; streams are added in order."""
    rows, lanes, width, steps = stream_geometry(D, act)
    pack = float_vector(N)
    mixed = remix(T, N, act)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, N, D), act),
        y: T.Tensor((M, D), act),
        post: T.Tensor((M, N), "float32"),
        comb: T.Tensor((M, N, N), "float32"),
        out: T.Tensor((M, N, D), act),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            thread = T.get_thread_binding()
            gain = T.alloc_local((N,), "float32")
            mix = T.alloc_local((N, N), "float32")
            streams = T.alloc_local((N, width), act)
            layer = T.alloc_local((width,), act)
            total = T.alloc_local((width,), "float32")
            m = block * rows + thread // lanes
            if m < M:
                for p in T.unroll(N // pack):
                    for v in T.vectorized(pack):
                        gain[p * pack + v] = post[m, p * pack + v]
                for j in T.unroll(N):
                    for p in T.unroll(N // pack):
                        for v in T.vectorized(pack):
                            mix[j, p * pack + v] = comb[m, j, p * pack + v]
                for step in T.serial(steps):
                    d = (step * lanes + thread % lanes) * width
                    if d < D:
                        for v in T.vectorized(width):
                            layer[v] = y[m, d + v]
                        for j in T.unroll(N):
                            for v in T.vectorized(width):
                                streams[j, v] = x[m, j, d + v]
                        for k in T.unroll(N):
                            mixed(
                                lambda k: gain[k], lambda j, k: mix[j, k], layer, streams, k, total
                            )
                            for v in T.vectorized(width):
                                out[m, k, d + v] = total[v]

    return kernel
