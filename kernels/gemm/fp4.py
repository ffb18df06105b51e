"""x W^T of FP8 activations and FP4 weights (spec §6.3)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.quant._blocks import FP4_GROUP

from . import reference
from ._fp4 import FP4_DIMS, Rows
from ._fp8 import DEPTH, OUT, TILE
from ._tcgen05 import TCGEN05, VARIANTS, fp4_tile
from ._tiles import PAD, TOKENS, writer


def model_sizes(config):
    """One routed expert of the official model: gate and up stacked, then down."""
    if "n_routed_experts" in config:
        D, hidden = config["hidden_size"], config["moe_intermediate_size"]
        for N, K in ((2 * hidden, D), (D, hidden)):
            if N % 8 == 0 and K % FP4_GROUP == 0:  # else the model has no official form
                yield {"K": K, "B": DEPTH}


op = Op(
    "gemm/fp4",
    args=(
        In("x", "M K", "e4m3"),
        In("xs", "M G", "ue8m0"),
        In("w", "N H", "u8"),
        In("ws", "N F", "ue8m0"),
        Out("y", "M N", "out"),
    ),
    dims={"M": TOKENS, **FP4_DIMS},
    doc="x W^T, e4m3 × e2m1, scales per 1×B and 1×32, blocks of 32 columns in order (spec §6.3)",
    reference=reference.fp4,
    shapes={
        "tiny": {"M": 7, "N": 64, "K": 288, "B": 32},
        "flash": {"M": 4096, "N": 4096, "K": 4096, "B": 128},
        "pro": {"M": 4096, "N": 6144, "K": 7168, "B": 128},
        "edge": {"M": [0, 1, 63, 64, 65, 129], "N": 136, "K": 160, "B": 128},
    },
    types=OUT,
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**VARIANTS[0], **TILE, tokens=64)
@op.kernel(**VARIANTS[1], **TILE, tokens=64)
@op.kernel(**VARIANTS[2], **TILE, tokens=64)
@op.kernel(**TCGEN05, tokens=64, width=128)
def fp4(T, M, N, K, B, G, H, F, out, tokens, width, threads, ring, native):
    """One block makes one tile."""
    code = fp4_tile(T, K, B, tokens, width, threads, ring, native)
    write = writer(T, N, tokens, width, out)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, K), "float8_e4m3fn"),
        xs: T.Tensor((M, G), "float8_e8m0fnu"),
        w: T.Tensor((N, H), "uint8"),
        ws: T.Tensor((N, F), "float8_e8m0fnu"),
        y: T.Tensor((M, N), out),
    ):
        with T.Kernel(T.ceildiv(N, width), T.ceildiv(M, tokens), threads=threads) as (j, i):
            staged = T.alloc_shared((tokens, width + PAD), out)
            code.product(
                Rows(x, xs, lambda m: (i * tokens + m,), lambda m: i * tokens + m < M),
                Rows(w, ws, lambda n: (j * width + n,), lambda n: j * width + n < N),
                staged,
                code.room(),
            )
            T.sync_threads()
            write(staged, y, j, lambda m: (i * tokens + m,), lambda m: i * tokens + m < M)

    return kernel
