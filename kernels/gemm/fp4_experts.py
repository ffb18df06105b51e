"""Tiles of FP8 rows times the FP4 weight of each tile's expert (spec §5.2, §6.3)."""

from tileproof.dsl import In, Op, Out, Values, dim, static

from . import fp4, reference
from ._fp4 import FP4_DIMS, Rows, rows_of_tile
from ._fp8 import OUT, TILE
from ._tcgen05 import TCGEN05, VARIANTS, fp4_tile
from ._tiles import EXPERTS, PAD, writer


def model_sizes(config):
    """The routed experts of the official model."""
    for sizes in fp4.model_sizes(config):
        yield {**sizes, "R": 64}


op = Op(
    "gemm/fp4_experts",
    args=(
        In("x", "Q R K", "e4m3"),
        In("xs", "Q R G", "ue8m0"),
        In("expert", "Q", "i32", values=Values("0", "E-1", none=-1)),
        In("w", "E N H", "u8"),
        In("ws", "E N F", "ue8m0"),
        Out("y", "Q R N", "out"),
    ),
    dims={
        "Q": dim(0, 1 << 20, batch=True),
        "R": static(16, 128, multiple=16),
        "E": EXPERTS,
        **FP4_DIMS,
    },
    doc="x_q W_e^T of tiles of R rows, e = expert_q, otherwise as gemm/fp4; zeros for -1"
    " (spec §5.2, §6.3)",
    reference=reference.fp4_experts,
    shapes={
        "tiny": {"Q": 3, "R": 16, "E": 4, "N": 64, "K": 288, "B": 32},
        "flash": {"Q": 640, "R": 64, "E": 256, "N": 4096, "K": 4096, "B": 128},
        "pro": {"Q": 768, "R": 64, "E": 384, "N": 6144, "K": 7168, "B": 128},
        "edge": {"Q": [0, 1, 5], "R": 96, "E": 3, "N": 136, "K": 160, "B": 128},
    },
    types=OUT,
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**VARIANTS[0], **TILE)
@op.kernel(**VARIANTS[1], **TILE)
@op.kernel(**VARIANTS[2], **TILE)
@op.kernel(**TCGEN05, width=128)
def fp4_experts(T, Q, R, E, N, K, B, G, H, F, out, width, threads, ring, native):
    """One block makes one tile; those of the same columns, sorted by expert, follow one another.
    Tiles of more rows than registers hold the sums of are cut, which changes no bit."""
    tokens = rows_of_tile(R)
    code = fp4_tile(T, K, B, tokens, width, threads, ring, native)
    write = writer(T, N, tokens, width, out)

    @T.prim_func
    def kernel(
        x: T.Tensor((Q, R, K), "float8_e4m3fn"),
        xs: T.Tensor((Q, R, G), "float8_e8m0fnu"),
        expert: T.Tensor((Q,), "int32"),
        w: T.Tensor((E, N, H), "uint8"),
        ws: T.Tensor((E, N, F), "float8_e8m0fnu"),
        y: T.Tensor((Q, R, N), out),
    ):
        with T.Kernel(Q, T.ceildiv(N, width), R // tokens, threads=threads) as (q, j, i):
            staged = T.alloc_shared((tokens, width + PAD), out)
            e = expert[q]
            if e >= 0:
                code.product(
                    Rows(x, xs, lambda m: (q, i * tokens + m), lambda m: True),
                    Rows(w, ws, lambda n: (e, j * width + n), lambda n: j * width + n < N),
                    staged,
                    code.room(),
                )
            else:
                T.clear(staged)
            T.sync_threads()
            write(staged, y, j, lambda m: (q, i * tokens + m), lambda m: True)

    return kernel
