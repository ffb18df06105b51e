"""Keys of the indexer in official precision, in pages of FP4 (spec §2.1, §12.1)."""

from tileproof.dsl import InOut, Op, derived, static
from tileproof.kernels import entry, kv_cache
from tileproof.kernels.row_stream import OPTIONS

from . import reference
from ._pool import DIMS, PARAMS, ROTATED, SLOTS, SOURCES, WEIGHT, pooling, sizes, slots


def model_sizes(config):
    """The indexer's branch; keys that are no multiple of 128 wide have no official form."""
    if config["index_head_dim"] % 128 == 0:
        for size in sizes(config, "index_head_dim"):
            yield {**size, "E": kv_cache.MODEL_ENTRIES}


op = Op(
    "compressor/pool_fp4",
    args=(*SOURCES, slots("Z*E-1"), *kv_cache.key_views(InOut, "pool")),
    dims={
        **DIMS,
        **kv_cache.PAGED_DIMS,
        "D": static(128, 1024, multiple=128),
        "Q": ROTATED,
        "B": derived(lambda D: D // 2),
        "G": derived(lambda D: D // 32),
        "L": SLOTS,
    },
    doc="keys from their windows, in FP4 pages: pooling, RMSNorm, RoPE, Hadamard, e2m1 (spec §2.1)",
    reference=reference.pool_fp4,
    shapes={
        "tiny": {"N": 3, "MK": 24, "M": 9, "Z": 2, "X": 64, "D": 128, "Q": 32, "E": 4, "A": 4,
                 "C": 256},
        "flash": {"N": 256, "MK": 64, "M": 1024, "Z": 64, "X": 4096, "D": 128, "Q": 32, "E": 64,
                  "A": 4, "C": 256},
        "pro": {"N": 256, "MK": 64, "M": 1024, "Z": 64, "X": 4096, "D": 128, "Q": 32, "E": 64,
                "A": 4, "C": 256},
        "edge": {"N": [0, 1, 5], "MK": [0, 7], "M": [1, 65], "Z": 3, "X": 3, "D": 256, "Q": 4,
                 "E": 4, "A": 10, "C": 256},
    },
    types=WEIGHT,
    params=PARAMS,
    model_sizes=model_sizes,
    reduces=("L", "D"),
)  # fmt: skip


@op.kernel(**OPTIONS)
def pool_fp4(T, N, MK, M, X, Z, E, P, D, A, C, Q, C2, B, G, L, weight, eps):
    """A block makes a key."""
    code = entry.device(T, D, 2 * Q, "bfloat16", eps)
    pooled = pooling(T, D, A, C, L, "bfloat16")
    store = entry.key_store(T, D)

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
        pool_codes: T.StridedTensor((Z, E, B), (P, B, 1), "uint8"),
        pool_scale: T.StridedTensor((Z, E, G), (P, G, 1), "float8_e8m0fnu"),
    ):
        with T.Kernel(N, threads=entry.threads(D)) as n:
            T.assume(P % kv_cache.PITCH.multiple == 0)
            value = T.alloc_local((entry.VECTOR,), "bfloat16")
            pooled(kept, fresh, source, ape, n, value)
            code.normalize(value, w)
            code.rotate(value, cos, sin, position[n])
            store(value, pool_codes, pool_scale, slot[n], E)

    return kernel
