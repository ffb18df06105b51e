"""The routed experts of a layer in one launch (spec §5.2, §7): tiles of experts in waves."""

from tileproof.dsl import In, InOut, Op, Out, Values, derived
from tileproof.kernels.attention._core import SMALL
from tileproof.kernels.gemm._fp4_halves import fp4_device
from tileproof.kernels.gemm._fp8 import DEPTH
from tileproof.kernels.quant._blocks import FP4_GROUP, FP8_VECTOR, stored_scale
from tileproof.kernels.quant._fp8 import device as fp8_device
from tileproof.kernels.quant._fp8 import owned
from tileproof.kernels.row_stream import MATRIX_OPTIONS, ceildiv, vector

from . import reference
from ._gate import CHOSEN, EXPERTS
from ._lists import PAIRS, ROWS, TILE, TILES
from ._rows import HIDDEN, LIMIT, gated


def model_sizes(config):
    """Routed experts of the official model."""
    yield {
        "D": config["hidden_size"],
        "I": config["moe_intermediate_size"],
        "E": config["n_routed_experts"],
        "K": config["num_experts_per_tok"],
        "R": TILE,
        "limit": config.get("swiglu_limit", LIMIT["limit"]),
    }


_SMALL = {"spread": 2, "wave": 2}

op = Op(
    "moe/mega",
    args=(
        In("x", "M D", "e4m3"),
        In("xs", "M G", "ue8m0"),
        In("source", "Q R", "i32", values=Values("0", "M*K-1", none=-1)),
        In("expert", "Q", "i32", values=Values("0", "E-1", none=-1)),
        In("place", "M K", "i32", values=Values("0", "Q*R-1", none=-1)),
        In("weight", "M K", "f32"),
        In("w13", "E N H", "u8"),
        In("s13", "E N F", "ue8m0"),
        In("w2", "E D V", "u8"),
        In("s2", "E D U", "ue8m0"),
        In("shared", "M D", "bf16"),
        InOut("a", "Q R I", "e4m3"),
        InOut("s", "Q R J", "ue8m0"),
        InOut("y", "Q R D", "bf16"),
        Out("out", "M D", "bf16"),
    ),
    dims={
        "M": PAIRS,
        "Q": TILES,
        "R": ROWS,
        "K": CHOSEN,
        "E": EXPERTS,
        "D": HIDDEN,
        "I": HIDDEN,
        "G": derived(lambda D: ceildiv(D, DEPTH)),
        "J": derived(lambda I: ceildiv(I, DEPTH)),  # noqa: E741
        "N": derived(lambda I: 2 * I),  # noqa: E741
        "H": derived(lambda D: D // 2),
        "F": derived(lambda D: D // FP4_GROUP),
        "V": derived(lambda I: I // 2),  # noqa: E741
        "U": derived(lambda I: I // FP4_GROUP),  # noqa: E741
    },
    doc="gather, gemm/fp4_experts, moe/swiglu_fp8, gemm/fp4_experts, moe/combine in one launch;"
    " a, s, y are room between them (spec §5.2, §7)",
    reference=reference.mega,
    shapes={
        "tiny": {"M": 9, "Q": 4, "R": 16, "K": 2, "E": 3, "D": 64, "I": 64, **_SMALL},
        "flash": {"M": 4096, "Q": 640, "R": 64, "K": 6, "E": 256, "D": 4096, "I": 2048},
        "pro": {"M": 4096, "Q": 768, "R": 64, "K": 6, "E": 384, "D": 7168, "I": 3072},
        "edge": {"M": [0, 1, 9], "Q": [0, 3], "R": 16, "K": 3, "E": 3, "D": 160, "I": 96, **_SMALL},
    },
    params={**LIMIT, "spread": 4, "wave": 12},
    model_sizes=model_sizes,
    reduces=("K", "D", "I"),
)


_TILE = {**MATRIX_OPTIONS, "width": 32, "threads": 128}


@op.kernel(**_TILE, archs=("sm_80",), stages=2, instruction=False)
@op.kernel(**_TILE, archs=("sm_90a", "sm_100a"), stages=2, instruction=True)
@op.kernel(**_TILE, archs=SMALL, stages=1, instruction=True)
def mega(
    T, M, Q, R, K, E, D, I, G, J, N, H, F, V, U, limit, spread, wave,  # noqa: E741
    width, threads, stages, instruction,
):  # fmt: skip
    """`wave` groups of `spread` blocks stay, all on the device at once, and meet once a wave: a
    group makes a tile, its blocks every `spread`-th column of it.

    While a wave of tiles goes through the first product, the wave before goes through the second:
    what a wave takes must be there when it begins, and what it makes is there at the next barrier.
    Bits are those of the ops one by one: a tile is made by the same code, whoever makes it.
    """
    first = fp4_device(T, D, DEPTH, R, width, threads, stages, instruction)
    second = fp4_device(T, I, DEPTH, R, width, threads, stages, instruction)
    strip = threads * FP8_VECTOR // DEPTH  # rows that are cast at once
    code = fp8_device(T, (strip, DEPTH), "bfloat16")
    columns = ceildiv(D, width)
    wide = vector("bfloat16")

    @T.macro
    def weights(w, ws, e, n, k, w_codes, w_scales):
        T.copy(w[e, n : n + width, k // 2 : (k + DEPTH) // 2], w_codes)
        T.copy(ws[e, n : n + width, k // FP4_GROUP : (k + DEPTH) // FP4_GROUP], w_scales)

    @T.macro
    def gathered(x, xs, source, w, ws, q, e, n, k, x_codes, x_scales, w_codes, w_scales):
        for r, i in T.Parallel(R, DEPTH):
            inside = (source[q, r] >= 0) & (k + i < D)
            x_codes[r, i] = T.if_then_else(inside, x[source[q, r] // K, k + i], T.float8_e4m3fn(0))
        for r, i in T.Parallel(R, 1):
            x_scales[r, i] = T.if_then_else(
                source[q, r] >= 0, xs[source[q, r] // K, k // DEPTH], T.float8_e8m0fnu(1)
            )
        weights(w, ws, e, n, k, w_codes, w_scales)

    @T.macro
    def listed(a, s, w, ws, q, e, n, k, x_codes, x_scales, w_codes, w_scales):
        T.copy(a[q, 0:R, k : k + DEPTH], x_codes)
        T.copy(s[q, 0:R, k // DEPTH : k // DEPTH + 1], x_scales)
        weights(w, ws, e, n, k, w_codes, w_scales)

    @T.macro
    def into(x, xs, source, w13, s13, q, e, n, staged):
        """Columns n.. of the first product of tile q."""
        first.product(lambda *at: gathered(x, xs, source, w13, s13, q, e, n, *at), staged)

    @T.macro
    def back(a, s, w2, s2, y, q, e, n, staged):
        """Columns n.. of the second."""
        second.product(lambda *at: listed(a, s, w2, s2, q, e, n, *at), staged)
        for r, i in T.Parallel(R, width):
            if n + i < D:
                y[q, r, n + i] = staged[r, i]

    @T.macro
    def middle(x, xs, source, weight, w13, s13, a, s, q, e, j, staged):
        """128 columns of silu(g) u w: two products of each half, then e4m3 with one scale."""
        gate = T.alloc_shared((R, width), "bfloat16")
        value = T.alloc_shared((R, DEPTH), "bfloat16")
        group = T.alloc_fragment((strip, DEPTH), "bfloat16")
        codes = T.alloc_fragment((strip, DEPTH), "float8_e4m3fn")
        exponent = T.alloc_fragment((strip,), "int32")
        T.annotate_layout({group: owned(T, (strip, DEPTH), threads)})
        for c in T.serial(2 * DEPTH // width):
            half = c // 2 * width
            into(x, xs, source, w13, s13, q, e, c % 2 * I + j * DEPTH + half, staged)
            T.sync_threads()
            if c % 2 == 0:
                for r, i in T.Parallel(R, width):
                    gate[r, i] = staged[r, i]
            else:
                for top in T.serial(R // strip):
                    for r, i in T.Parallel(strip, width):
                        factor = T.if_then_else(
                            source[q, top * strip + r] >= 0,
                            weight[source[q, top * strip + r] // K, source[q, top * strip + r] % K],
                            T.float32(0),
                        )
                        made = gated(
                            T,
                            limit,
                            T.cast(gate[top * strip + r, i], "float32"),
                            T.cast(staged[top * strip + r, i], "float32"),
                        )
                        value[top * strip + r, half + i] = T.cast(made * factor, "bfloat16")
            T.sync_threads()
        for top in T.serial(R // strip):
            for r, i in T.Parallel(strip, DEPTH):
                inside = (j * DEPTH + i < I) & (source[q, top * strip + r] >= 0)
                group[r, i] = T.if_then_else(inside, value[top * strip + r, i], T.bfloat16(0))
            code.encode(group, exponent, codes)
            for r, i in T.Parallel(strip, DEPTH):
                if j * DEPTH + i < I:
                    a[q, top * strip + r, j * DEPTH + i] = codes[r, i]
            for r in T.Parallel(strip):
                s[q, top * strip + r, j] = stored_scale(T, exponent[r])

    @T.macro
    def combined(y, place, shared, out, m, block):
        row = T.alloc_local((wide,), "bfloat16")
        total = T.alloc_local((wide,), "float32")
        d = (block * threads + T.get_thread_binding()) * wide
        if d < D:
            for v in T.vectorized(wide):
                total[v] = 0.0
            for k in T.unroll(K):
                if place[m, k] >= 0:
                    for v in T.vectorized(wide):
                        row[v] = y[place[m, k] // R, place[m, k] % R, d + v]
                    for v in T.vectorized(wide):
                        total[v] += T.cast(row[v], "float32")
            for v in T.vectorized(wide):
                row[v] = shared[m, d + v]
            for v in T.vectorized(wide):
                total[v] += T.cast(row[v], "float32")
            for v in T.vectorized(wide):
                out[m, d + v] = T.cast(total[v], "bfloat16")

    @T.prim_func
    def kernel(
        x: T.Tensor((M, D), "float8_e4m3fn"),
        xs: T.Tensor((M, G), "float8_e8m0fnu"),
        source: T.Tensor((Q, R), "int32"),
        expert: T.Tensor((Q,), "int32"),
        place: T.Tensor((M, K), "int32"),
        weight: T.Tensor((M, K), "float32"),
        w13: T.Tensor((E, N, H), "uint8"),
        s13: T.Tensor((E, N, F), "float8_e8m0fnu"),
        w2: T.Tensor((E, D, V), "uint8"),
        s2: T.Tensor((E, D, U), "float8_e8m0fnu"),
        shared: T.Tensor((M, D), "bfloat16"),
        a: T.Tensor((Q, R, I), "float8_e4m3fn"),
        s: T.Tensor((Q, R, J), "float8_e8m0fnu"),
        y: T.Tensor((Q, R, D), "bfloat16"),
        out: T.Tensor((M, D), "bfloat16"),
    ):
        with T.Kernel(spread, wave, threads=threads) as (part, own):
            staged = T.alloc_shared((R, width), "bfloat16")
            for now in T.serial(T.ceildiv(Q, wave) + 1):
                q = now * wave + own
                if q < Q:
                    e = expert[q]
                    if e >= 0:
                        for step in T.serial(ceildiv(J, spread)):
                            j = step * spread + part
                            if j < J:
                                middle(x, xs, source, weight, w13, s13, a, s, q, e, j, staged)
                before = q - wave
                if (before >= 0) & (before < Q):
                    e = expert[before]
                    if e >= 0:
                        for step in T.serial(ceildiv(columns, spread)):
                            n = (step * spread + part) * width
                            if n < D:
                                back(a, s, w2, s2, y, before, e, n, staged)
                T.sync_grid()
            for step in T.serial(T.ceildiv(M, wave)):
                m = step * wave + own
                if m < M:
                    for stride in T.serial(ceildiv(D, threads * wide * spread)):
                        combined(y, place, shared, out, m, stride * spread + part)

    return kernel
