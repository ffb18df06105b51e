"""Entries of the window in exact precision, as rows: RMSNorm, RoPE (spec §2.1)."""

from tileproof.dsl import InOut, Op, dim
from tileproof.kernels import entry
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._kv import CHANNELS, DIMS, ROTATED, TYPES, sources


def model_sizes(config):
    """The KV branch of every layer."""
    for weight in TYPES["weight"]:
        yield {"D": config["head_dim"], "Q": config["qk_rope_head_dim"] // 2, "weight": weight,
               "eps": config["rms_norm_eps"]}  # fmt: skip


op = Op(
    "norm/kv_row",
    args=(*sources("act", "S-1"), InOut("rows", "S D", "act")),
    dims={"S": dim(0, 1 << 30), **DIMS, "D": CHANNELS, "Q": ROTATED},
    doc="RMSNorm with weight, then RoPE, into rows of a pool (spec §2.1)",
    reference=reference.kv_row,
    shapes={
        "tiny": {"M": 7, "S": 9, "X": 64, "D": 32, "Q": 4},
        "flash": {"M": 4096, "S": 8192, "X": 4096, "D": 512, "Q": 32},
        "pro": {"M": 4096, "S": 8192, "X": 4096, "D": 512, "Q": 32},
        "edge": {"M": [0, 1, 65], "S": 70, "X": 3, "D": 48, "Q": 24},
    },
    types={"act": ("bf16", "f32"), **TYPES},
    params={"eps": 1e-6},
    model_sizes=model_sizes,
    reduces=("D",),
)


@op.kernel(**OPTIONS)
def kv_row(T, M, S, X, PX, D, Q, act, weight, eps):
    """A block makes an entry."""
    code = entry.device(T, D, 2 * Q, act, eps)

    @T.prim_func
    def kernel(
        x: T.StridedTensor((M, D), (PX, 1), act),
        w: T.Tensor((D,), weight),
        cos: T.Tensor((X, Q), "float32"),
        sin: T.Tensor((X, Q), "float32"),
        position: T.Tensor((M,), "int32"),
        slot: T.Tensor((M,), "int32"),
        rows: T.Tensor((S, D), act),
    ):
        with T.Kernel(M, threads=entry.threads(D)) as m:
            T.assume(PX % DIMS["PX"].multiple == 0)
            value = T.alloc_local((entry.VECTOR,), act)
            code.load(x, m, value)
            code.normalize(value, w)
            code.rotate(value, cos, sin, position[m])
            code.store_row(value, rows, slot[m])

    return kernel
