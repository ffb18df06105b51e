"""SwiGLU of sorted rows times their routing weight, as FP8 (spec §5.2, §6.2)."""

from tileproof.dsl import In, Op, Out, Values, derived
from tileproof.kernels.quant._blocks import TILE
from tileproof.kernels.row_stream import OPTIONS, ceildiv

from . import reference
from ._gate import CHOSEN
from ._lists import PAIRS, ROWS
from ._lists import TILE as LISTED
from ._rows import HIDDEN, LIMIT, TILES, fp8_rows, gated


def model_sizes(config):
    """Routed experts of a HF config."""
    yield {
        "I": config["moe_intermediate_size"],
        "K": config["num_experts_per_tok"],
        "R": LISTED,
        "limit": config.get("swiglu_limit", LIMIT["limit"]),
    }


op = Op(
    "moe/swiglu_fp8",
    args=(
        In("h", "Q R N", "bf16"),
        In("weight", "M K", "f32"),
        In("source", "Q R", "i32", values=Values("0", "M*K-1", none=-1)),
        Out("a", "Q R I", "e4m3"),
        Out("s", "Q R G", "ue8m0"),
    ),
    dims={
        "Q": TILES,
        "R": ROWS,
        "M": PAIRS,
        "K": CHOSEN,
        "I": HIDDEN,
        "N": derived(lambda I: 2 * I),  # noqa: E741
        "G": derived(lambda I: ceildiv(I, TILE)),  # noqa: E741
    },
    doc="moe/swiglu times the row's routing weight, to bf16, to e4m3 with a scale per 1×128;"
    " zeros where source is -1 (spec §5.2)",
    reference=reference.swiglu_fp8,
    shapes={
        "tiny": {"Q": 2, "R": 16, "M": 12, "K": 2, "I": 64},
        "flash": {"Q": 640, "R": 64, "M": 4096, "K": 6, "I": 2048},
        "pro": {"Q": 768, "R": 64, "M": 4096, "K": 6, "I": 3072},
        "edge": {"Q": [0, 1, 3], "R": 32, "M": [0, 1, 13], "K": 3, "I": 160},
    },
    params=LIMIT,
    model_sizes=model_sizes,
)


@op.kernel(**OPTIONS)
def swiglu_fp8(T, Q, R, M, K, I, N, G, limit):  # noqa: E741
    """Sixteen neighbouring threads have a group of a row, and another one."""
    code = fp8_rows(T, I)

    @T.macro
    def fill(h, weight, source, q, r, group, first):
        up = T.alloc_fragment((code.across, TILE), "bfloat16")
        factor = T.alloc_local((1,), "float32")
        for i, k in T.Parallel(code.across, TILE):
            inside = (first + i * TILE + k < I) & (source[q, r] >= 0)
            group[i, k] = T.if_then_else(inside, h[q, r, first + i * TILE + k], 0)
        for i, k in T.Parallel(code.across, TILE):
            inside = (first + i * TILE + k < I) & (source[q, r] >= 0)
            up[i, k] = T.if_then_else(inside, h[q, r, I + first + i * TILE + k], 0)
        factor[0] = 0
        if source[q, r] >= 0:
            factor[0] = weight[source[q, r] // K, source[q, r] % K]
        for i, k in T.Parallel(code.across, TILE):
            value = gated(T, limit, T.cast(group[i, k], "float32"), T.cast(up[i, k], "float32"))
            group[i, k] = T.cast(value * factor[0], "bfloat16")

    @T.prim_func
    def kernel(
        h: T.Tensor((Q, R, N), "bfloat16"),
        weight: T.Tensor((M, K), "float32"),
        source: T.Tensor((Q, R), "int32"),
        a: T.Tensor((Q, R, I), "float8_e4m3fn"),
        s: T.Tensor((Q, R, G), "float8_e8m0fnu"),
    ):
        with T.Kernel(Q, R, code.steps, threads=code.threads) as (q, r, step):
            code.cast(lambda *at: fill(h, weight, source, q, r, *at), step, a, s, q, r)

    return kernel
