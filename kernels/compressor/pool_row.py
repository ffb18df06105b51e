"""Compressed entries in exact precision, as rows (spec §2.1)."""

from tileproof.dsl import InOut, Op, dim
from tileproof.kernels import entry
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._pool import CHANNELS, DIMS, PARAMS, ROTATED, SLOTS, SOURCES, WEIGHT, pooling, sizes, slots


def model_sizes(config):
    """Both branches."""
    yield from sizes(config, "head_dim")
    yield from sizes(config, "index_head_dim")


op = Op(
    "compressor/pool_row",
    args=(*SOURCES, slots("S-1"), InOut("rows", "S D", "act")),
    dims={"S": dim(0, 1 << 30), **DIMS, "D": CHANNELS, "Q": ROTATED, "L": SLOTS},
    doc="entries from their windows, as rows: pooling, RMSNorm, RoPE (spec §2.1)",
    reference=reference.pool_row,
    shapes={
        "tiny": {"N": 3, "MK": 24, "M": 9, "S": 8, "X": 64, "D": 32, "A": 4, "C": 64, "Q": 4},
        "flash": {"N": 256, "MK": 64, "M": 1024, "S": 4096, "X": 4096, "D": 512, "A": 4, "C": 1024,
                  "Q": 32},
        "pro": {"N": 8, "MK": 1024, "M": 1024, "S": 64, "X": 4096, "D": 512, "A": 128, "C": 512,
                "Q": 32},
        "edge": {"N": [0, 1, 5], "MK": [0, 7], "M": [1, 65], "S": [6], "X": [3], "D": 48, "A": 10,
                 "C": 48, "Q": 24},
    },
    types={"act": ("bf16", "f32"), **WEIGHT},
    params=PARAMS,
    model_sizes=model_sizes,
    reduces=("L", "D"),
)  # fmt: skip


@op.kernel(**OPTIONS)
def pool_row(T, N, MK, M, S, X, D, A, C, Q, C2, L, act, weight, eps):
    """A block makes an entry."""
    code = entry.device(T, D, 2 * Q, act, eps)
    pooled = pooling(T, D, A, C, L, act)

    @T.prim_func
    def kernel(
        kept: T.Tensor((MK, C2), "float32"),
        fresh: T.Tensor((M, C2), "float32"),
        source: T.Tensor((N, L), "int32"),
        position: T.Tensor((N,), "int32"),
        ape: T.Tensor((A, C), "float32"),
        w: T.Tensor((D,), weight),
        cos: T.Tensor((X, Q), "float32"),
        sin: T.Tensor((X, Q), "float32"),
        slot: T.Tensor((N,), "int32"),
        rows: T.Tensor((S, D), act),
    ):
        with T.Kernel(N, threads=entry.threads(D)) as n:
            value = T.alloc_local((entry.VECTOR,), act)
            pooled(kept, fresh, source, ape, n, value)
            code.normalize(value, w)
            code.rotate(value, cos, sin, position[n])
            code.store_row(value, rows, slot[n])

    return kernel
