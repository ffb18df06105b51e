"""Compressed entries from the tokens of their windows (spec §2.1)."""

from tileproof.dsl import In, Op, Out, Values, derived, dim, static
from tileproof.kernels import entry
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._pool import pooling


def model_sizes(config):
    """The compressors of CSA, HCA and the indexer of a HF config."""
    if "compress_rates" not in config:
        return
    rates, Q = config["compress_rates"], config["qk_rope_head_dim"] // 2
    head, index = config["head_dim"], config["index_head_dim"]
    csa, hca = rates["compressed_sparse_attention"], rates["heavily_compressed_attention"]
    for D, A, twice in ((head, csa, 2), (index, csa, 2), (head, hca, 1)):
        for weight in ("f32", "bf16"):
            yield {"D": D, "A": A, "C": twice * D, "Q": Q, "weight": weight,
                   "eps": config["rms_norm_eps"]}  # fmt: skip


op = Op(
    "compressor/pool",
    args=(
        In("kept", "R C2", "f32"),
        In("fresh", "M C2", "f32"),
        In("source", "N L", "i32", values=Values("-1-M", "R-1")),
        In("ape", "A C", "f32"),
        In("weight", "D", "weight"),
        In("cos", "N Q", "f32"),
        In("sin", "N Q", "f32"),
        Out("entry", "N D", "act"),
    ),
    dims={
        "N": dim(0, 1 << 20, batch=True),
        "R": dim(0, 1 << 24),
        "M": dim(0, 1 << 20),
        "D": static(16, 512, multiple=16),
        "A": static(1, 256),
        "C": static(16, 1024, multiple=16),
        "Q": static(2, 256, multiple=2),
        "C2": derived(lambda C: 2 * C, hi=2048),
        "L": derived(lambda A, C, D: A * (C // D), hi=512),
    },
    doc="softmax over a window per channel, weighted sum, RMSNorm, RoPE (spec §2.1)",
    reference=reference.pool,
    shapes={
        "tiny": {"N": 3, "R": 24, "M": 9, "D": 32, "A": 4, "C": 64, "Q": 4},
        "flash": {"N": 256, "R": 64, "M": 1024, "D": 512, "A": 4, "C": 1024, "Q": 32},
        "pro": {"N": 8, "R": 1024, "M": 1024, "D": 512, "A": 128, "C": 512, "Q": 32},
        "edge": {"N": [0, 1, 5], "R": [0, 7], "M": [1, 65], "D": 48, "A": 10, "C": 48, "Q": 24},
    },
    types={"act": ("bf16", "f32"), "weight": ("f32", "bf16")},
    params={"eps": 1e-6},
    model_sizes=model_sizes,
    reduces=("L", "D"),
)


@op.kernel(**OPTIONS)
def pool(T, N, R, M, D, A, C, Q, C2, L, act, weight, eps):
    """A block makes an entry."""
    code = entry.device(T, D, 2 * Q, act, eps)
    pooled = pooling(T, D, A, C, L, act)

    @T.prim_func
    def kernel(
        kept: T.Tensor((R, C2), "float32"),
        fresh: T.Tensor((M, C2), "float32"),
        source: T.Tensor((N, L), "int32"),
        ape: T.Tensor((A, C), "float32"),
        w: T.Tensor((D,), weight),
        cos: T.Tensor((N, Q), "float32"),
        sin: T.Tensor((N, Q), "float32"),
        made: T.Tensor((N, D), act),
    ):
        with T.Kernel(N, threads=entry.threads(D)) as n:
            value = T.alloc_local((entry.VECTOR,), act)
            pooled(kept, fresh, source, ape, n, value)
            code.normalize(value, w)
            code.rotate(value, cos, sin, n)
            code.store_row(value, made, n)

    return kernel
