"""x W^T in bfloat16 or float32 (spec §6.3)."""

from tileproof.dsl import In, Op, Out
from tileproof.kernels.row_stream import MATRIX_OPTIONS, ceildiv

from . import reference
from ._tiles import COLUMNS, ROWS, TILE, TOKENS, TYPES, device


def model_sizes(config):
    """Every linear of the exact model, the router and the head (spec §1).

    float32 are the router's logits, kv and z of the compressors side by side (CSA, HCA, indexer),
    the head's logits and what experts add up. Weights get zero rows up to a multiple of 8.
    """
    if "vocab_size" not in config:
        return
    D, R = config["hidden_size"], config["q_lora_rank"]
    head, H = config["head_dim"], config["num_attention_heads"]
    index, HI = config["index_head_dim"], config["index_n_heads"]
    hidden, lora = config["moe_intermediate_size"], config["o_groups"] * config["o_lora_rank"]
    for N in (config["n_routed_experts"], 4 * head, 2 * head, 4 * index, config["vocab_size"]):
        yield {"N": ceildiv(N, 8) * 8, "K": D, "out": "f32"}
    yield {"N": ceildiv(D, 8) * 8, "K": hidden, "out": "f32"}
    for N, K in (
        (R, D),
        (H * head, R),
        (head, D),
        (D, lora),
        (HI * index, R),
        (ceildiv(HI, 8) * 8, D),
    ):
        yield {"N": N, "K": K, "out": "act"}
    for N, K in ((hidden, D), (2 * hidden, D), (D, hidden), (config["vocab_size"], D)):
        yield {"N": N, "K": K, "out": "act"}


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

    @T.macro
    def bring(x, w, i, j, k, x_tile, w_tile):
        T.copy(x[i * tokens, k], x_tile)
        T.copy(w[j * width, k], w_tile)

    @T.prim_func
    def kernel(x: T.Tensor((M, K), act), w: T.Tensor((N, K), act), y: T.Tensor((M, N), out)):
        with T.Kernel(T.ceildiv(N, width), T.ceildiv(M, tokens), threads=threads) as (j, i):
            staged = T.alloc_shared((tokens, width), out)
            code.product(lambda *at: bring(x, w, i, j, *at), staged)
            for m, n in T.Parallel(tokens, width):
                if (i * tokens + m < M) & (j * width + n < N):
                    y[i * tokens + m, j * width + n] = staged[m, n]

    return kernel
