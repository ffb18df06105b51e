"""Compressed entries of attention in official precision, in pages of FP8 (spec §2.1, §12.1)."""

from tileproof.dsl import InOut, Op, derived
from tileproof.kernels import entry, kv_cache
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._pool import DIMS, PARAMS, SLOTS, SOURCES, WEIGHT, pooling, sizes, slots


def model_sizes(config):
    """The main branches; a model whose RoPE leaves no whole groups of 64 has no official form."""
    V, R = kv_cache.widths(config)
    if V % kv_cache.GROUP == 0:
        for size in sizes(config, "head_dim"):
            del size["D"], size["Q"]
            yield {**size, "V": V, "R": R, "E": kv_cache.MODEL_ENTRIES}


op = Op(
    "compressor/pool_fp8",
    args=(*SOURCES, slots("Z*E-1"), *kv_cache.kv_views(InOut, "pool", ("Z", "E", "P", "PH"))),
    dims={
        **DIMS,
        **kv_cache.PAGED_DIMS,
        "PH": kv_cache.HALF_PITCH,
        **kv_cache.KV_DIMS,
        "D": derived(lambda V, R: V + R),
        "Q": derived(lambda R: R // 2),
        "L": SLOTS,
    },
    doc="entries from their windows, in FP8 pages: pooling, RMSNorm, RoPE, e4m3 (spec §2.1)",
    reference=reference.pool_fp8,
    shapes={
        "tiny": {"N": 3, "MK": 24, "M": 9, "Z": 2, "X": 64, "V": 64, "R": 64, "E": 4, "A": 4,
                 "C": 256},
        "flash": {"N": 256, "MK": 64, "M": 1024, "Z": 64, "X": 4096, "V": 448, "R": 64, "E": 64,
                  "A": 4, "C": 1024},
        "pro": {"N": 8, "MK": 1024, "M": 1024, "Z": 4, "X": 4096, "V": 448, "R": 64, "E": 64,
                "A": 128, "C": 512},
        "edge": {"N": [0, 1, 5], "MK": [0, 7], "M": [1, 65], "Z": 3, "X": 3, "V": 128, "R": 8,
                 "E": 2, "A": 10, "C": 136},
    },
    types=WEIGHT,
    params=PARAMS,
    model_sizes=model_sizes,
    reduces=("L", "D"),
)  # fmt: skip


@op.kernel(**OPTIONS)
def pool_fp8(T, N, MK, M, X, Z, E, P, PH, V, R, G, VS, RS, GS, D, A, C, Q, C2, L, weight, eps):
    """A block makes an entry."""
    code = entry.device(T, D, R, "bfloat16", eps)
    pooled = pooling(T, D, A, C, L, "bfloat16")

    @T.prim_func
    def kernel(
        kept: T.Tensor((MK, C2), "float32"),
        fresh: T.Tensor((M, C2), "float32"),
        source: T.Tensor((N, L), "int32"),
        position: T.Tensor((N,), "int32"),
        ape: T.Tensor((A, C), "float32"),
        w: T.Tensor((D,), weight),
        cos: T.Tensor((X, Q), "float32"),
        sin: T.Tensor((X, Q), "float32"),
        slot: T.Tensor((N,), "int32"),
        pool_nope: T.StridedTensor((Z, E, V), (P, VS, 1), "float8_e4m3fn"),
        pool_rope: T.StridedTensor((Z, E, R), (PH, RS, 1), "bfloat16"),
        pool_scale: T.StridedTensor((Z, E, G), (P, GS, 1), "float8_e8m0fnu"),
    ):
        with T.Kernel(N, threads=entry.threads(D)) as n:
            T.assume(P % kv_cache.PITCH.multiple == 0)
            T.assume(PH % kv_cache.HALF_PITCH.multiple == 0)
            value = T.alloc_local((entry.VECTOR,), "bfloat16")
            pooled(kept, fresh, source, ape, n, value)
            code.normalize(value, w)
            code.rotate(value, cos, sin, position[n])
            code.store_page(value, pool_nope, pool_rope, pool_scale, slot[n], E)

    return kernel
