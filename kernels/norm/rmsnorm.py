"""RMSNorm with weight (spec §1.1)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._tiles import DIMS, SHAPES, VECTOR, geometry, statistics


def model_sizes(config):
    """Every weighted RMSNorm of the HF model: residual, q_a, KV and compressor, indexer."""
    keys = ("hidden_size", "q_lora_rank", "head_dim", "index_head_dim")
    for D in sorted({config[k] for k in keys}):
        for weight in ("f32", "bf16"):
            yield {"D": D, "weight": weight, "eps": config["rms_norm_eps"]}


op = Op(
    "norm/rmsnorm",
    args=(
        In("x", "M D", "act", strides="P 1"),
        In("weight", "D", "weight"),
        Out("y", "M D", "act"),
    ),
    dims=DIMS,
    doc="RMSNorm with weight: fp32 statistics and product, one cast (spec §1.1)",
    reference=reference.rmsnorm,
    shapes=SHAPES,
    types={"act": ("bf16", "f32"), "weight": ("f32", "bf16")},
    params={"eps": 1e-6},
    model_sizes=model_sizes,
    reduces=("D",),
)


@op.kernel(**OPTIONS)
def rmsnorm(T, M, D, P, act, weight, eps):
    """A row stays in the registers of its threads, so it is read from memory once."""
    rows, width, threads = geometry(D)
    start = statistics(T, D, eps)

    @T.prim_func
    def kernel(
        x: T.StridedTensor((M, D), (P, 1), act), w: T.Tensor((D,), weight), y: T.Tensor((M, D), act)
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=threads) as block:
            T.assume(P % VECTOR == 0)
            row = T.alloc_fragment((rows, width), act)
            gain = T.alloc_fragment((rows, width), weight)
            factor = T.alloc_fragment((rows,), "float32")
            start(x, M, block * rows, row, factor)
            # y = w * (x * factor)
            for i, d in T.Parallel(rows, width):
                gain[i, d] = T.if_then_else(d < D, w[d], 0)
            for i, d in T.Parallel(rows, width):
                if (block * rows + i < M) & (d < D):
                    y[block * rows + i, d] = T.cast(gain[i, d], "float32") * (
                        T.cast(row[i, d], "float32") * factor[i]
                    )

    return kernel
