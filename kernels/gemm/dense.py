"""x W^T in bfloat16 or float32 (spec §6.3)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import MATRIX_OPTIONS

from . import reference
from ._tiles import COLUMNS, ROWS, TILE, TOKENS, TYPES, device, writer


def model_sizes(config):
    """Every linear of the exact model, the router and the head (spec §1).

    float32 are the router's logits, kv and z of the compressors side by side (CSA, HCA, indexer),
    and the head's logits.
    """
    if "vocab_size" not in config:
        return
    D, R = config["hidden_size"], config["q_lora_rank"]
    hidden, lora = config["moe_intermediate_size"], config["o_groups"] * config["o_lora_rank"]
    yield {"K": D, "out": "f32"}
    for K in (D, R, lora, hidden):
        yield {"K": K, "out": "act"}


op = Op(
    "gemm/dense",
    args=(In("x", "M K", "act"), In("w", "N K", "act"), Out("y", "M N", "out")),
    dims={"M": TOKENS, "N": ROWS, "K": COLUMNS},
    doc="x W^T, K summed in one order (spec §6.3)",
    reference=reference.dense,
    shapes={
        "tiny": {"M": 7, "N": 64, "K": 64},
        "flash": {"M": 4096, "N": 256, "K": 4096},
        "pro": {"M": 4096, "N": 384, "K": 7168},
        "edge": {"M": [0, 1, 63, 64, 65, 129], "N": 72, "K": 112},
    },
    types=TYPES,
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**MATRIX_OPTIONS, **TILE)
def dense(T, M, N, K, act, out, tokens, width, threads, stages):
    """One block makes one tile."""
    code = device(T, K, act, tokens, width, stages)
    write = writer(T, N, tokens, width, out)

    @T.macro
    def bring(x, w, i, j, k, x_tile, w_tile):
        T.copy(x[i * tokens, k], x_tile)
        T.copy(w[j * width, k], w_tile)

    @T.prim_func
    def kernel(x: T.Tensor((M, K), act), w: T.Tensor((N, K), act), y: T.Tensor((M, N), out)):
        with T.Kernel(T.ceildiv(N, width), T.ceildiv(M, tokens), threads=threads) as (j, i):
            staged = T.alloc_shared((tokens, width), out)
            code.product(lambda *at: bring(x, w, i, j, *at), staged)
            write(staged, y, j, lambda m: (i * tokens + m,), lambda m: i * tokens + m < M)

    return kernel
