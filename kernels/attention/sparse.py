"""Attention of every token over its own lists of entries (spec §3.2)."""

from tileproof.dsl import In, Op, Out, Values
from tileproof.kernels.row_stream import MATRIX_OPTIONS, WGMMA_OPTIONS

from . import reference
from ._core import ENTRIES, HEADS, LARGE, SLOTS, SMALL, TOKENS, WIDTH, device
from ._entries import bf16_rows, f32_rows


def model_sizes(config):
    """The core attention of a HF config."""
    yield {"H": config["num_attention_heads"], "D": config["head_dim"]}


op = Op(
    "attention/sparse",
    args=(
        In("q", "M H D", "act"),
        In("window", "S D", "act"),
        In("near", "M W", "i32", values=Values("0", "S-1", none=-1)),
        In("pool", "T D", "act"),
        In("chosen", "M K", "i32", values=Values("0", "T-1", none=-1)),
        In("sink", "H", "f32"),
        Out("out", "M H D", "act"),
    ),
    dims={"M": TOKENS, "H": HEADS, "D": WIDTH, "S": ENTRIES, "W": SLOTS, "T": ENTRIES, "K": SLOTS},
    doc="softmax over listed window entries and listed compressed entries, with sinks (spec §3.2)",
    reference=reference.sparse,
    shapes={
        "tiny": {"M": 7, "H": 8, "D": 32, "S": 40, "W": 8, "T": 10, "K": 4},
        "flash": {"M": 64, "H": 64, "D": 512, "S": 4096, "W": 128, "T": 1024, "K": 512},
        "pro": {"M": 64, "H": 128, "D": 512, "S": 4096, "W": 128, "T": 2048, "K": 1024},
        "edge": {
            "M": [0, 1, 5],
            "H": 17,
            "D": 96,
            "S": 65,
            "W": [0, 1, 33],
            "T": 9,
            "K": [0, 32, 65],
        },
    },
    types={"act": ("bf16", "f32")},
    params={"spread": 1},
    model_sizes=model_sizes,
    reduces=("D", "W", "K"),
)


@op.kernel(**WGMMA_OPTIONS, archs=("sm_90a",), heads=64, wgmma=True)
@op.kernel(**MATRIX_OPTIONS, archs=LARGE, heads=64, wgmma=False)
@op.kernel(**MATRIX_OPTIONS, archs=SMALL, heads=32, wgmma=False)
def sparse(T, M, H, D, S, W, T_, K, act, spread, heads, wgmma):
    """A block takes one token and as many heads as fit; chunks of the window come first."""
    as_is = act == "bfloat16"
    code = device(T, H, D, act, heads, spread, ring=2 if as_is else 1, wgmma=wgmma)
    rows = bf16_rows if as_is else f32_rows
    from_window, from_pool = rows(T, code, D, W), rows(T, code, D, K)

    @T.macro
    def bring(window, near, pool, chosen, m, c, kv, valid):
        if c < T.ceildiv(W, code.chunk):
            from_window(window, near, m, c, 0, kv, valid)
        else:
            from_pool(pool, chosen, m, c, T.ceildiv(W, code.chunk), kv, valid)

    @T.macro
    def nothing(window, near, pool, chosen, m, c, kv, valid):
        pass

    fetch, settle = (bring, nothing) if as_is else (nothing, bring)

    @T.prim_func
    def kernel(
        q: T.Tensor((M, H, D), act),
        window: T.Tensor((S, D), act),
        near: T.Tensor((M, W), "int32"),
        pool: T.Tensor((T_, D), act),
        chosen: T.Tensor((M, K), "int32"),
        sink: T.Tensor((H,), "float32"),
        out: T.Tensor((M, H, D), act),
    ):
        with T.Kernel(M, code.blocks, threads=code.threads) as (m, h):
            code.attend(
                q,
                sink,
                out,
                m,
                h,
                0,
                T.ceildiv(W, code.chunk) + T.ceildiv(K, code.chunk),
                lambda *at: fetch(window, near, pool, chosen, m, *at),
                lambda *at: settle(window, near, pool, chosen, m, *at),
            )

    return kernel
