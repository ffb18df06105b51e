"""RMSNorm with a weight (spec §1.1): ``y = w * (x * rsqrt(mean(x^2) + eps))``, one cast at the end."""

from tileproof.dsl import In, Op, Out, dim, static

from . import reference
from ._rows import PASS_CONFIGS, row_geometry


def model_sizes(config):
    """Widths of every weighted RMSNorm of HF's DeepSeek-V4 (residual, q_a, KV, compressor, indexer)."""
    widths = (
        config["hidden_size"],
        config["q_lora_rank"],
        config["head_dim"],
        config["index_head_dim"],
    )
    for D in sorted(set(widths)):
        for weight in ("f32", "bf16"):
            yield {"D": D, "weight": weight, "eps": config["rms_norm_eps"]}


op = Op(
    "norm/rmsnorm",
    args=(In("x", "M D", "act"), In("weight", "D", "weight"), Out("y", "M D", "act")),
    dims={"M": dim(0, 1 << 20, batch=True), "D": static(16, 32768, multiple=16)},
    doc="RMSNorm with weight: fp32 statistics, fp32 multiply by the weight, one cast (spec §1.1)",
    reference=reference.rmsnorm,
    types={"act": ("bf16", "f32"), "weight": ("f32", "bf16")},
    params={"eps": 1e-6},
    shapes={
        "tiny": {"M": 7, "D": 64},
        "flash": {"M": 4096, "D": 4096},
        "pro": {"M": 4096, "D": 7168},
        "edge": {"M": [0, 1, 31, 32, 33, 127, 129, 4099], "D": 96},
    },
    model_sizes=model_sizes,
    reduces=("D",),
)


@op.kernel(pass_configs=PASS_CONFIGS)
def rmsnorm(T, M, D, act, weight, eps):
    """Each thread keeps its share of a row in registers; a row is read from memory once."""
    rows, width, threads = row_geometry(D)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, D), act), weight: T.Tensor((D,), weight), y: T.Tensor((M, D), act)
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=threads) as block:
            row = T.alloc_fragment((rows, width), act)
            scale = T.alloc_fragment((rows, width), weight)
            squares = T.alloc_fragment((rows, width), "float32")
            inverse = T.alloc_fragment((rows,), "float32")
            for i, d in T.Parallel(rows, width):
                row[i, d] = x[block * rows + i, d]
            T.copy(row, y[block*rows, 0])
    return kernel
