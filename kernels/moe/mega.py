"""The routed experts of a layer in one launch (spec §5.2, §7): tiles of experts in waves."""

from tileproof.dsl import ALL, In, InOut, Op, Out, Values, derived
from tileproof.kernels.gemm._fp4 import Rows, fp4_device, rows_of_tile
from tileproof.kernels.gemm._fp8 import DEPTH, VARIANTS
from tileproof.kernels.gemm._tiles import PAD, writer
from tileproof.kernels.quant._blocks import FP4_GROUP, FP8_VECTOR, stored_scale
from tileproof.kernels.quant._fp8 import device as fp8_device
from tileproof.kernels.quant._fp8 import owned
from tileproof.kernels.row_stream import ceildiv, vector

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


# Of 64 columns sums do not fit into registers.
_TILE = {"width": 32, "threads": 128, "ring": 3}
# By mma.sync on sm_90a, too: the prover follows wgmma statement by statement, for too many of them
_CODES = {**VARIANTS[1], "archs": tuple(a for a in ALL if a != "sm_80")}


@op.kernel(**{**VARIANTS[0], **_TILE})
@op.kernel(**{**_CODES, **_TILE})
def mega(
    T, M, Q, R, K, E, D, I, G, J, N, H, F, V, U, limit, spread, wave,  # noqa: E741
    width, threads, ring, native,
):  # fmt: skip
    """`wave` groups of `spread` blocks stay, all on the device at once, and meet once a wave: a
    group makes a tile, its blocks every `spread`-th column of it.

    While a wave of tiles goes through the first product, the wave before goes through the second:
    what a wave takes must be there when it begins, and what it makes is there at the next barrier.
    Bits are those of the ops one by one: a tile is made by the same code, whoever makes it.
    """
    tokens = rows_of_tile(R)
    first = fp4_device(T, D, DEPTH, tokens, width, threads, ring, native, max(D, I))
    second = fp4_device(T, I, DEPTH, tokens, width, threads, ring, native, max(D, I))
    write = writer(T, D, tokens, width, "bfloat16")
    strip = threads * FP8_VECTOR // DEPTH  # rows that are cast at once
    code = fp8_device(T, (strip, DEPTH), "bfloat16")
    columns = ceildiv(D, width)
    wide = vector("bfloat16")

    @T.macro
    def into(x, xs, source, w13, s13, q, top, e, n, staged, room):
        """Columns n.. of the first product of rows top.. of tile q, which x has anywhere."""
        first.product(
            Rows(x, xs, lambda r: (source[q, top + r] // K,), lambda r: source[q, top + r] >= 0),
            Rows(w13, s13, lambda i: (e, n + i), lambda i: n + i < N),
            staged,
            room,
        )
        T.sync_threads()

    @T.macro
    def back(a, s, w2, s2, y, q, top, e, j, staged, room):
        """Columns j·width.. of the second."""
        second.product(
            Rows(a, s, lambda r: (q, top + r), lambda r: True),
            Rows(w2, s2, lambda i: (e, j * width + i), lambda i: j * width + i < D),
            staged,
            room,
        )
        T.sync_threads()
        write(staged, y, j, lambda r: (q, top + r), lambda r: True)

    @T.macro
    def middle(x, xs, source, weight, w13, s13, a, s, q, top, e, j, staged, room):
        """128 columns of silu(g) u w: two products of each part, then e4m3 with one scale."""
        gate = T.alloc_shared((tokens, width + PAD), "bfloat16")
        value = T.alloc_shared((tokens, DEPTH + PAD), "bfloat16")
        group = T.alloc_fragment((strip, DEPTH), "bfloat16")
        codes = T.alloc_fragment((strip, DEPTH), "float8_e4m3fn")
        exponent = T.alloc_fragment((strip,), "int32")
        T.annotate_layout({group: owned(T, (strip, DEPTH), threads)})
        for c in T.serial(2 * DEPTH // width):
            part = c // 2 * width
            into(x, xs, source, w13, s13, q, top, e, c % 2 * I + j * DEPTH + part, staged, room)
            if c % 2 == 0:
                for r, i in T.Parallel(tokens, width):
                    gate[r, i] = staged[r, i]
            else:
                for r, i in T.Parallel(tokens, width):
                    pair = source[q, top + r]
                    factor = T.if_then_else(pair >= 0, weight[pair // K, pair % K], T.float32(0))
                    made = gated(
                        T, limit, T.cast(gate[r, i], "float32"), T.cast(staged[r, i], "float32")
                    )
                    value[r, part + i] = T.cast(made * factor, "bfloat16")
        T.sync_threads()
        for down in T.serial(tokens // strip):
            for r, i in T.Parallel(strip, DEPTH):
                row = down * strip + r
                inside = (j * DEPTH + i < I) & (source[q, top + row] >= 0)
                group[r, i] = T.if_then_else(inside, value[row, i], T.bfloat16(0))
            code.encode(group, exponent, codes)
            for r, i in T.Parallel(strip, DEPTH):
                if j * DEPTH + i < I:
                    a[q, top + down * strip + r, j * DEPTH + i] = codes[r, i]
            for r in T.Parallel(strip):
                s[q, top + down * strip + r, j] = stored_scale(T, exponent[r])

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
            staged = T.alloc_shared((tokens, width + PAD), "bfloat16")
            room = first.room()
            for now in T.serial(T.ceildiv(Q, wave) + 1):
                q = now * wave + own
                if q < Q:
                    e = expert[q]
                    if e >= 0:
                        for step, i in T.grid(ceildiv(J, spread), R // tokens):
                            j = step * spread + part
                            if j < J:
                                middle(
                                    x, xs, source, weight, w13, s13, a, s,
                                    q, i * tokens, e, j, staged, room,
                                )  # fmt: skip
                before = q - wave
                if (before >= 0) & (before < Q):
                    e = expert[before]
                    if e >= 0:
                        for step, i in T.grid(ceildiv(columns, spread), R // tokens):
                            j = step * spread + part
                            if j < columns:
                                back(a, s, w2, s2, y, before, i * tokens, e, j, staged, room)
                T.sync_grid()
            for step in T.serial(T.ceildiv(M, wave)):
                m = step * wave + own
                if m < M:
                    for stride in T.serial(ceildiv(D, threads * wide * spread)):
                        combined(y, place, shared, out, m, stride * spread + part)

    return kernel
