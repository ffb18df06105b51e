"""x W^T of FP8 activations and FP8 weights (spec §6.3)."""

from tileproof.dsl import In, Op, Out, derived

from . import reference
from ._fp8 import COLUMNS, DEPTH, OUT, TILE, groups
from ._tcgen05 import TCGEN05, VARIANTS, fp8_tile
from ._tiles import PAD, ROWS, TOKENS, writer


def model_sizes(config):
    """The FP8 linears of the official model (spec §1): attention, indexer, shared expert, MTP."""
    if "vocab_size" not in config:
        return
    D, R = config["hidden_size"], config["q_lora_rank"]
    head, H = config["head_dim"], config["num_attention_heads"]
    index, HI = config["index_head_dim"], config["index_n_heads"]
    hidden, lora = config["moe_intermediate_size"], config["o_groups"] * config["o_lora_rank"]
    sizes = ((R, D), (H * head, R), (head, D), (D, lora), (HI * index, R), (2 * hidden, D))
    ahead = ((D, D),) if config.get("num_nextn_predict_layers") else ()
    for N, K in (*sizes, (D, hidden), *ahead):
        if N % 8 == 0 and K % 32 == 0:  # else the model has no official form
            yield {"K": K}


op = Op(
    "gemm/fp8",
    args=(
        In("x", "M K", "e4m3"),
        In("xs", "M G", "ue8m0"),
        In("w", "N K", "e4m3"),
        In("ws", "N/128 G", "ue8m0"),
        Out("y", "M N", "out"),
    ),
    dims={
        "M": TOKENS,
        "N": ROWS,
        "K": COLUMNS,
        "G": derived(groups),
    },
    doc="x W^T, e4m3 × e4m3, scales per 1×128 and 128×128, blocks of 128 columns in order"
    " (spec §6.3)",
    reference=reference.fp8,
    shapes={
        "tiny": {"M": 7, "N": 64, "K": 288},
        "flash": {"M": 4096, "N": 1024, "K": 4096},
        "pro": {"M": 4096, "N": 1536, "K": 7168},
        "edge": {"M": [0, 1, 63, 64, 65, 129], "N": 136, "K": 160},
    },
    types=OUT,
    model_sizes=model_sizes,
    reduces=("K",),
)


@op.kernel(**VARIANTS[0], **TILE, tokens=64)
@op.kernel(**VARIANTS[1], **TILE, tokens=64)
@op.kernel(**VARIANTS[2], **TILE, tokens=64)
@op.kernel(**TCGEN05, tokens=64, width=64)
def fp8(T, M, N, K, G, out, tokens, width, threads, ring, native):
    """One block makes one tile, all of it under one row of weight scales."""
    code = fp8_tile(T, K, tokens, width, threads, ring, native)
    write = writer(T, N, tokens, width, out)

    @T.macro
    def bring(x, w, i, j, g, x_codes, w_codes):
        code.fetch_x(x, lambda m: (i * tokens + m,), lambda m: i * tokens + m < M, g, x_codes)
        code.fetch_w(w, lambda n: (j * width + n,), lambda n: j * width + n < N, g, w_codes)

    @T.macro
    def scales(xs, ws, i, j, x_scales, w_scales):
        for m, g in T.Parallel(tokens, G):
            x_scales[m, g] = T.if_then_else(
                i * tokens + m < M, xs[i * tokens + m, g], T.float8_e8m0fnu(1)
            )
        for g in T.Parallel(G):
            w_scales[g] = ws[j * width // DEPTH, g]

    @T.prim_func
    def kernel(
        x: T.Tensor((M, K), "float8_e4m3fn"),
        xs: T.Tensor((M, G), "float8_e8m0fnu"),
        w: T.Tensor((N, K), "float8_e4m3fn"),
        ws: T.Tensor(((N + (DEPTH - 1)) // DEPTH, G), "float8_e8m0fnu"),
        y: T.Tensor((M, N), out),
    ):
        with T.Kernel(T.ceildiv(N, width), T.ceildiv(M, tokens), threads=threads) as (j, i):
            staged = T.alloc_shared((tokens, width + PAD), out)
            code.product(
                lambda *at: bring(x, w, i, j, *at), lambda *at: scales(xs, ws, i, j, *at), staged
            )
            T.sync_threads()
            write(staged, y, j, lambda m: (i * tokens + m,), lambda m: i * tokens + m < M)

    return kernel
