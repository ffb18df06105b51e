"""mHC collapse: N residual streams become the sublayer's one input (spec §4, step 4)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS, THREADS

from . import reference
from ._tiles import HIDDEN, SHAPES, STREAMS, TOKENS, stream_geometry, stream_sizes, weighted_sum

op = Op(
    "mhc/collapse",
    args=(In("x", "M N D", "act"), In("pre", "M N", "f32"), Out("y", "M D", "act")),
    dims={"M": TOKENS, "N": STREAMS, "D": HIDDEN},
    doc="y = sum_j pre_j X_j in fp32, one cast (spec §4, step 4)",
    reference=reference.collapse,
    shapes=SHAPES,
    types={"act": ("bf16", "f32")},
    model_sizes=stream_sizes,
    reduces=("N",),
)


@op.kernel(**OPTIONS)
def collapse(T, M, N, D, act):
    """A thread takes one 16-byte column of all N streams; streams are summed in order."""
    rows, lanes, width, steps = stream_geometry(D, act)
    column = weighted_sum(T, N, act)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, N, D), act), pre: T.Tensor((M, N), "float32"), y: T.Tensor((M, D), act)
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=THREADS) as block:
            thread = T.get_thread_binding()
            weight = T.alloc_local((N,), "float32")
            m = block * rows + thread // lanes
            if m < M:
                for j in T.unroll(N):
                    weight[j] = pre[m, j]
                for step in T.serial(steps):
                    d = (step * lanes + thread % lanes) * width
                    if d < D:
                        column(x, m, d, weight, y)

    return kernel
