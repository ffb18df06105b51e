"""Entries of the window in official precision, in pages: RMSNorm, RoPE, e4m3 (spec §2.1, §12.1)."""

from tileproof.dsl import InOut, Op, derived
from tileproof.kernels import entry, kv_cache
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._kv import DIMS, TYPES, sources


def model_sizes(config):
    """The KV branch of every layer, where RoPE leaves whole groups of 64."""
    V, R = kv_cache.widths(config)
    if V % kv_cache.GROUP == 0:
        for weight in TYPES["weight"]:
            yield {"V": V, "R": R, "E": kv_cache.MODEL_ENTRIES, "weight": weight,
                   "eps": config["rms_norm_eps"]}  # fmt: skip


op = Op(
    "norm/kv_fp8",
    args=(*sources("bf16", "Z*E-1"), *kv_cache.kv_views(InOut, "pool", ("Z", "E", "P", "PH"))),
    dims={
        **DIMS,
        **kv_cache.PAGED_DIMS,
        "PH": kv_cache.HALF_PITCH,
        **kv_cache.KV_DIMS,
        "D": derived(lambda V, R: V + R),
        "Q": derived(lambda R: R // 2),
    },
    doc="RMSNorm with weight, then RoPE, into FP8 pages (spec §2.1, §12.1)",
    reference=reference.kv_fp8,
    shapes={
        "tiny": {"M": 7, "Z": 3, "X": 64, "V": 64, "R": 64, "E": 4},
        "flash": {"M": 4096, "Z": 128, "X": 4096, "V": 448, "R": 64, "E": 64},
        "pro": {"M": 4096, "Z": 128, "X": 4096, "V": 448, "R": 64, "E": 64},
        "edge": {"M": [0, 1, 65], "Z": 33, "X": 3, "V": 128, "R": 8, "E": 2},
    },
    types=TYPES,
    params={"eps": 1e-6},
    model_sizes=model_sizes,
    reduces=("D",),
)


@op.kernel(**OPTIONS)
def kv_fp8(T, M, X, PX, Z, E, P, PH, V, R, G, VS, RS, GS, D, Q, weight, eps):
    """A block makes an entry."""
    code = entry.device(T, D, R, "bfloat16", eps)

    @T.prim_func
    def kernel(
        x: T.StridedTensor((M, D), (PX, 1), "bfloat16"),
        w: T.Tensor((D,), weight),
        cos: T.Tensor((X, Q), "float32"),
        sin: T.Tensor((X, Q), "float32"),
        position: T.Tensor((M,), "int32"),
        slot: T.Tensor((M,), "int32"),
        pool_nope: T.StridedTensor((Z, E, V), (P, VS, 1), "float8_e4m3fn"),
        pool_rope: T.StridedTensor((Z, E, R), (PH, RS, 1), "bfloat16"),
        pool_scale: T.StridedTensor((Z, E, G), (P, GS, 1), "float8_e8m0fnu"),
    ):
        with T.Kernel(M, threads=entry.threads(D)) as m:
            T.assume(PX % DIMS["PX"].multiple == 0)
            T.assume(P % kv_cache.PITCH.multiple == 0)
            T.assume(PH % kv_cache.HALF_PITCH.multiple == 0)
            value = T.alloc_local((entry.VECTOR,), "bfloat16")
            code.load(x, m, value)
            code.normalize(value, w)
            code.rotate(value, cos, sin, position[m])
            code.store_page(value, pool_nope, pool_rope, pool_scale, slot[m], E)

    return kernel
