"""FP4 weights recast to FP8, without loss where that is possible (spec §5.3)."""

from tileproof.dsl import In, Op, Out, derived, static
from tileproof.kernels.row_stream import OPTIONS, THREADS

from . import reference
from ._blocks import (
    FP4_GROUP,
    NAN,
    NAN_SCALE,
    TILE,
    WEIGHT_DIMS,
    WEIGHT_SHAPES,
    load_code,
    weight_sizes,
)
from ._fp4 import device, e2m1_value

_GROUPS = TILE // FP4_GROUP  # of a row of a tile
_STEPS = TILE * _GROUPS // THREADS

op = Op(
    "quant/fp4_to_fp8",
    args=(
        In("p", "M N H", "u8"),
        In("s", "M N F", "ue8m0"),
        Out("q", "M N K", "e4m3"),
        Out("t", "M G", "ue8m0"),
        Out("exact", "M G", "u8"),
    ),
    dims={
        **WEIGHT_DIMS,
        "K": static(32, 16384, multiple=FP4_GROUP),
        "H": derived(lambda K: K // 2),
        "F": derived(lambda K: K // FP4_GROUP),
    },
    doc="e2m1 with a scale s per 1×32 → e4m3 with a scale t per N×128; exact: 1 where nothing is"
    " lost (spec §5.3)",
    reference=reference.fp4_to_fp8,
    shapes=WEIGHT_SHAPES,
    model_sizes=weight_sizes,
)


@op.kernel(**OPTIONS)
def fp4_to_fp8(T, M, N, K, G, H, F):
    """A block recasts one tile; a thread takes a group in each of four steps."""
    fp4 = device(T, "float32")

    @T.prim_func
    def kernel(
        p: T.Tensor((M, N, H), "uint8"),
        s: T.Tensor((M, N, F), "float8_e8m0fnu"),
        q: T.Tensor((M, N, K), "float8_e4m3fn"),
        t: T.Tensor((M, G), "float8_e8m0fnu"),
        exact: T.Tensor((M, G), "uint8"),
    ):
        with T.Kernel(M, G, threads=THREADS) as (m, g):
            thread = T.get_thread_binding()
            scales = T.alloc_fragment((1, TILE * _GROUPS), "int32")
            largest = T.alloc_fragment((1,), "int32")
            target = T.alloc_shared((1,), "uint8")
            losses = T.alloc_shared((THREADS,), "int32")
            lost = T.alloc_fragment((1, THREADS), "int32")
            any_lost = T.alloc_fragment((1,), "int32")
            packed = T.alloc_local((FP4_GROUP // 2,), "uint8")
            nibbles = T.alloc_local((FP4_GROUP,), "int32")
            codes = T.alloc_local((FP4_GROUP,), "float8_e4m3fn")
            loss = T.alloc_local((1,), "int32")
            # t = max(s) / 2^6: the largest code, 6, becomes at most 384
            for i, e in T.Parallel(1, TILE * _GROUPS):
                inside = (e // _GROUPS < N) & (g * _GROUPS + e % _GROUPS < F)
                scales[i, e] = T.if_then_else(
                    inside, load_code(T, s[m, e // _GROUPS, g * _GROUPS + e % _GROUPS]), 0
                )
            T.reduce_max(scales, largest, dim=1)
            for i in T.Parallel(1):
                code = largest[i] & 255  # tells the prover that it is a byte
                reduced = T.if_then_else(code == NAN_SCALE, code, T.max(code - 6, 0))
                target[i] = T.cast(reduced, "uint8")
                t[m, g + i] = T.reinterpret(target[i], "float8_e8m0fnu")
            loss[0] = 0
            for step in T.serial(_STEPS):
                n = (step * THREADS + thread) // _GROUPS
                f = g * _GROUPS + thread % _GROUPS
                if (n < N) & (f < F):
                    for v in T.vectorized(FP4_GROUP // 2):
                        packed[v] = p[m, n, f * (FP4_GROUP // 2) + v]
                    fp4.unpack(packed, nibbles)
                    # k = log2(s / t) <= 6; below -126 all rounds to zero, as it does there
                    to = T.cast(target[0], "int32")
                    k = T.min(T.max(load_code(T, s[m, n, f]) - to, -126), 6)
                    bits = T.if_then_else(to == NAN_SCALE, NAN, T.shift_left(k + 127, 23))
                    for e in T.unroll(FP4_GROUP):
                        value = e2m1_value(T, nibbles[e]) * T.reinterpret(bits, "float32")
                        codes[e] = T.cast(value, "float8_e4m3fn")
                        kept = T.cast(codes[e], "float32")
                        loss[0] = T.if_then_else(kept == value, loss[0], 1)
                    for c in T.unroll(FP4_GROUP // 16):
                        for v in T.vectorized(16):
                            q[m, n, f * FP4_GROUP + c * 16 + v] = codes[c * 16 + v]
            losses[thread] = loss[0]
            for i, e in T.Parallel(1, THREADS):
                lost[i, e] = losses[e]
            T.reduce_max(lost, any_lost, dim=1)
            for i in T.Parallel(1):
                exact[m, g + i] = T.cast(T.if_then_else(any_lost[i] == 0, 1, 0), "uint8")

    return kernel
