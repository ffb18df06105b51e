"""RMSNorm without weight: the query heads (spec §1.1, §15)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._tiles import DIMS, SHAPES, VECTOR, geometry, statistics


def model_sizes(config):
    """``q_b_norm``: one row per token and query head."""
    yield {"D": config["head_dim"], "eps": config["rms_norm_eps"]}


op = Op(
    "norm/rmsnorm_unweighted",
    args=(In("x", "M D", "act", strides="P 1"), Out("y", "M D", "act")),
    dims=DIMS,
    doc="RMSNorm without weight: fp32 statistics and product, one cast (spec §1.1)",
    reference=reference.rmsnorm_unweighted,
    shapes=SHAPES,
    types={"act": ("bf16", "f32")},
    params={"eps": 1e-6},
    model_sizes=model_sizes,
    reduces=("D",),
)


@op.kernel(**OPTIONS)
def rmsnorm_unweighted(T, M, D, P, act, eps):
    """A row stays in the registers of its threads, so it is read from memory once."""
    rows, width, threads = geometry(D)
    start = statistics(T, D, eps)

    @T.prim_func
    def kernel(x: T.StridedTensor((M, D), (P, 1), act), y: T.Tensor((M, D), act)):
        with T.Kernel(T.ceildiv(M, rows), threads=threads) as block:
            T.assume(P % VECTOR == 0)
            row = T.alloc_fragment((rows, width), act)
            factor = T.alloc_fragment((rows,), "float32")
            start(x, M, block * rows, row, factor)
            # y = x * factor
            for i, d in T.Parallel(rows, width):
                if (block * rows + i < M) & (d < D):
                    y[block * rows + i, d] = T.cast(row[i, d], "float32") * factor[i]

    return kernel
