"""mHC head: the last collapse, weighted without balancing (spec §4, hc_head)."""

from tileproof.dsl import In, Op, Out, derived
from tileproof.kernels.row_stream import OPTIONS, THREADS

from . import _mix, reference
from ._prenorm import splits
from ._tiles import HIDDEN, SHAPES, STREAMS, TOKENS, head_sizes, stream_geometry, weighted_sum

op = Op(
    "mhc/head",
    args=(
        In("x", "M N D", "act"),
        In("partial", "S M N", "f32"),
        In("sqrsum", "S M", "f32"),
        In("scale", "1", "f32"),
        In("base", "N", "f32"),
        Out("y", "M D", "act"),
    ),
    dims={
        "M": TOKENS,
        "N": STREAMS,
        "D": HIDDEN,
        "S": derived(splits),
    },
    doc="y = sum_j (sigmoid(mix_j) + eps) X_j in fp32, one cast (spec §4, hc_head)",
    reference=reference.head,
    shapes=SHAPES,
    types={"act": ("bf16", "f32")},
    params={"eps": 1e-6, "norm_eps": 1e-6},
    model_sizes=head_sizes,
    reduces=("S", "N"),
)


@op.kernel(**OPTIONS)
def head(T, M, N, D, S, act, eps, norm_eps):
    """A thread per token and stream makes the weights, then columns are summed as in collapse."""
    rows, lanes, width, steps = stream_geometry(D, act)
    column = weighted_sum(T, N, act)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, N, D), act),
        partial: T.Tensor((S, M, N), "float32"),
        sqrsum: T.Tensor((S, M), "float32"),
        scale: T.Tensor((1,), "float32"),
        base: T.Tensor((N,), "float32"),
        y: T.Tensor((M, D), act),
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            thread = T.get_thread_binding()
            gates = T.alloc_shared((rows, N), "float32")
            weight = T.alloc_local((N,), "float32")
            for i, j in T.Parallel(rows, N):
                if block * rows + i < M:
                    z = T.alloc_local((1,), "float32")
                    squares = T.alloc_local((1,), "float32")
                    # z = (x fn^T) r * scale + base, splits first to last
                    z[0] = 0.0
                    squares[0] = 0.0
                    for s in T.serial(S):
                        z[0] += partial[s, block * rows + i, j]
                        squares[0] += sqrsum[s, block * rows + i]
                    z[0] = z[0] * _mix.inverse_rms(T, squares[0], N * D, norm_eps)
                    z[0] = z[0] * scale[0]
                    z[0] = z[0] + base[j]
                    # pre_j = sigmoid(z_j) + eps
                    gates[i, j] = _mix.sigmoid(T, z[0]) + eps
            m = block * rows + thread // lanes
            if m < M:
                for j in T.unroll(N):
                    weight[j] = gates[thread // lanes, j]
                for step in T.serial(steps):
                    d = (step * lanes + thread % lanes) * width
                    if d < D:
                        column(x, m, d, weight, y)

    return kernel
