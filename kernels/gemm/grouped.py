"""x_g W_g^T for every group, as the output projection needs (spec §1, §3.2)."""

from tileproof.dsl import In, Op, Out, static
from tileproof.kernels.row_stream import MATRIX_OPTIONS

from . import reference
from ._tiles import COLUMNS, ROWS, TILE, TOKENS, TYPES, device, writer


def model_sizes(config):
    """o_a_proj of a HF config: groups of heads."""
    if "o_groups" in config:
        G = config["o_groups"]
        K = config["num_attention_heads"] * config["head_dim"] // G
        yield {"G": G, "K": K, "out": "act"}


op = Op(
    "gemm/grouped",
    args=(In("x", "M G K", "act"), In("w", "G N K", "act"), Out("y", "M G N", "out")),
    dims={"M": TOKENS, "G": static(1, 64), "N": ROWS, "K": COLUMNS},
    doc="x_g W_g^T for G groups, K summed in one order (spec §1, §3.2)",
    reference=reference.grouped,
    shapes={
        "tiny": {"M": 7, "G": 2, "N": 16, "K": 128},
        "flash": {"M": 4096, "G": 8, "N": 1024, "K": 4096},
        "pro": {"M": 4096, "G": 16, "N": 1024, "K": 4096},
        "edge": {"M": [0, 1, 63, 64, 65, 129], "G": 3, "N": 72, "K": 80},
    },
    types=TYPES,
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**MATRIX_OPTIONS, **TILE)
def grouped(T, M, G, N, K, act, out, tokens, width, threads, stages):
    """One block makes one tile of one group."""
    code = device(T, K, act, tokens, width, stages)
    write = writer(T, N, tokens, width, out)

    @T.macro
    def bring(x, w, g, i, j, k, x_tile, w_tile):
        T.copy(x[i * tokens : (i + 1) * tokens, g, k : k + code.depth], x_tile)
        T.copy(w[g, j * width : (j + 1) * width, k : k + code.depth], w_tile)

    @T.prim_func
    def kernel(
        x: T.Tensor((M, G, K), act), w: T.Tensor((G, N, K), act), y: T.Tensor((M, G, N), out)
    ):
        with T.Kernel(T.ceildiv(N, width), T.ceildiv(M, tokens), G, threads=threads) as (j, i, g):
            staged = T.alloc_shared((tokens, width), out)
            code.product(lambda *at: bring(x, w, g, i, j, *at), staged)
            write(staged, y, j, lambda m: (i * tokens + m, g), lambda m: i * tokens + m < M)

    return kernel
