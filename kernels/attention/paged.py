"""Attention of every token over its own lists of entries in FP8 pages (spec §3.2, §12.1)."""

from tileproof.dsl import In, Op, Out, Values, derived
from tileproof.kernels import kv_cache
from tileproof.kernels.row_stream import MATRIX_OPTIONS, WGMMA_OPTIONS

from . import _cluster, reference
from ._core import HEADS, LARGE, SLOTS, SMALL, TOKENS, device
from ._entries import fp8_pages, fp8_settle


def model_sizes(config):
    """The core attention of a HF config whose heads the cache's format has; pages of 64 entries."""
    V = config["head_dim"] - config["qk_rope_head_dim"]
    if V % kv_cache.GROUP == 0:
        rope = config["qk_rope_head_dim"]
        yield {"H": config["num_attention_heads"], "V": V, "R": rope, "E": 64, "F": 64}


_V4 = {"V": 448, "R": 64, "E": 64, "F": 64, "Z": 64, "W": 128, "Y": 64}
_SMALL_SIZES = {"H": 8, "V": 64, "R": 32, "E": 4, "F": 2}

op = Op(
    "attention/paged",
    args=(
        In("q", "M H D", "bf16"),
        *kv_cache.kv_views(In, "window"),
        In("near", "M W", "i32", values=Values("0", "Z*E-1", none=-1)),
        *kv_cache.kv_views(In, "pool", ("Y", "F", "X", "U")),
        In("chosen", "M K", "i32", values=Values("0", "Y*F-1", none=-1)),
        In("sink", "H", "f32"),
        Out("out", "M H D", "bf16"),
    ),
    dims={
        "M": TOKENS,
        "H": HEADS,
        **kv_cache.KV_DIMS,
        "D": derived(lambda V, R: V + R),
        "Z": kv_cache.PAGES,
        "E": kv_cache.ENTRIES,
        "P": kv_cache.PITCH,
        "Q": kv_cache.HALF_PITCH,
        "W": SLOTS,
        "Y": kv_cache.PAGES,
        "F": kv_cache.ENTRIES,
        "X": kv_cache.PITCH,
        "U": kv_cache.HALF_PITCH,
        "K": SLOTS,
    },
    doc="as attention/sparse over entries in FP8 pages, by slots of two pools (spec §3.2, §12.1)",
    reference=reference.paged,
    shapes={
        "tiny": {"M": 7, **_SMALL_SIZES, "Z": 5, "W": 8, "Y": 3, "K": 4},
        "flash": {"M": 64, "H": 64, **_V4, "K": 512},
        "pro": {"M": 64, "H": 128, **_V4, "K": 1024},
        "edge": {
            "M": [0, 1, 5],
            **_SMALL_SIZES,
            "H": 17,
            "Z": 9,
            "W": [0, 33],
            "Y": 2,
            "K": [0, 65],
        },
    },
    params={"spread": 1},
    model_sizes=model_sizes,
    reduces=("D", "W", "K"),
)


@op.kernel(**WGMMA_OPTIONS, archs=("sm_90a",), heads=64, wgmma=True, cluster=False)
@op.kernel(**MATRIX_OPTIONS, archs=LARGE, heads=64, wgmma=False, cluster=False)
@op.kernel(**MATRIX_OPTIONS, archs=SMALL, heads=32, wgmma=False, cluster=False)
def paged(
    T, M, H, V, R, G, VS, RS, GS, D, Z, E, P, Q, W, Y, F, X, U, K, spread, heads, wgmma, cluster
):
    """As attention/sparse. While a chunk is worked on, the next one's bytes come in.

    With `cluster` a token's channels are spread over blocks, otherwise its heads.
    """
    if cluster:
        code = _cluster.device(T, H, D, heads, spread, wgmma)
    else:
        code = device(T, H, D, "bfloat16", heads, spread, ring=1, wgmma=wgmma)
    ways, width = code.ways, code.width
    from_window = fp8_pages(T, code, V, R, E, W, width)
    from_pool = fp8_pages(T, code, V, R, F, K, width)
    settle = fp8_settle(T, code, V, R, width)

    @T.macro
    def fetch(n, r, s, near, pn, pr, ps, chosen, m, first, codes, turned, scales, c, kv, valid):
        if c < T.ceildiv(W, code.chunk):
            from_window(n, r, s, near, m, c, 0, first, valid, codes, turned, scales)
        else:
            skip = T.ceildiv(W, code.chunk)
            from_pool(pn, pr, ps, chosen, m, c, skip, first, valid, codes, turned, scales)

    @T.prim_func
    def kernel(
        q: T.Tensor((M, H, D), "bfloat16"),
        window_nope: T.StridedTensor((Z, E, V), (P, VS, 1), "float8_e4m3fn"),
        window_rope: T.StridedTensor((Z, E, R), (Q, RS, 1), "bfloat16"),
        window_scale: T.StridedTensor((Z, E, G), (P, GS, 1), "float8_e8m0fnu"),
        near: T.Tensor((M, W), "int32"),
        pool_nope: T.StridedTensor((Y, F, V), (X, VS, 1), "float8_e4m3fn"),
        pool_rope: T.StridedTensor((Y, F, R), (U, RS, 1), "bfloat16"),
        pool_scale: T.StridedTensor((Y, F, G), (X, GS, 1), "float8_e8m0fnu"),
        chosen: T.Tensor((M, K), "int32"),
        sink: T.Tensor((H,), "float32"),
        out: T.Tensor((M, H, D), "bfloat16"),
    ):
        with T.Kernel(
            M,
            code.blocks * ways,
            threads=code.threads,
            cluster_dims=(1, ways, 1) if cluster else None,
        ) as (m, b):
            T.assume(P % 16 == 0)
            T.assume(Q % 8 == 0)
            T.assume(X % 16 == 0)
            T.assume(U % 8 == 0)
            codes = T.alloc_shared((code.chunk, min(width, V)), "float8_e4m3fn")
            turned = T.alloc_shared((code.chunk, min(width, R)), "bfloat16")
            scales = T.alloc_shared((code.chunk, G), "int32")
            code.attend(
                q,
                sink,
                out,
                m,
                b // ways,
                b % ways,
                T.ceildiv(W, code.chunk) + T.ceildiv(K, code.chunk),
                lambda *at: fetch(
                    *(window_nope, window_rope, window_scale, near),
                    *(pool_nope, pool_rope, pool_scale, chosen),
                    *(m, b % ways * width, codes, turned, scales, *at),
                ),
                lambda c, kv, valid: settle(
                    codes, turned, scales, b % ways * width, kv, *code.slot(c)
                ),
            )

    return kernel
