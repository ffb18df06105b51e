"""Compressed entries from the tokens of their windows (spec §2.1)."""

from tileproof.dsl import In, Op, Out, Values, check, derived, dim, static
from tileproof.kernels.row_stream import OPTIONS, ceildiv, row_lanes

from . import reference


def model_sizes(config):
    """The compressors of CSA, HCA and the indexer of a HF config."""
    if "compress_rates" not in config:
        return
    rates, Q = config["compress_rates"], config["qk_rope_head_dim"] // 2
    head, index = config["head_dim"], config["index_head_dim"]
    csa, hca = rates["compressed_sparse_attention"], rates["heavily_compressed_attention"]
    for D, A, twice in ((head, csa, 2), (index, csa, 2), (head, hca, 1)):
        for weight in ("f32", "bf16"):
            yield {"D": D, "A": A, "C": twice * D, "Q": Q, "weight": weight,
                   "eps": config["rms_norm_eps"]}  # fmt: skip


op = Op(
    "compressor/pool",
    args=(
        In("kept", "R C2", "f32"),
        In("fresh", "M C2", "f32"),
        In("source", "N L", "i32", values=Values("-1-M", "R-1")),
        In("ape", "A C", "f32"),
        In("weight", "D", "weight"),
        In("cos", "N Q", "f32"),
        In("sin", "N Q", "f32"),
        Out("entry", "N D", "act"),
    ),
    dims={
        "N": dim(0, 1 << 20, batch=True),
        "R": dim(0, 1 << 24),
        "M": dim(0, 1 << 20),
        "D": static(16, 512, multiple=16),
        "A": static(1, 256),
        "C": static(16, 1024, multiple=16),
        "Q": static(2, 256, multiple=2),
        "C2": derived(lambda C: 2 * C, hi=2048),
        "L": derived(lambda A, C, D: A * (C // D), hi=512),
    },
    doc="softmax over a window per channel, weighted sum, RMSNorm, RoPE (spec §2.1)",
    reference=reference.pool,
    shapes={
        "tiny": {"N": 3, "R": 24, "M": 9, "D": 32, "A": 4, "C": 64, "Q": 4},
        "flash": {"N": 256, "R": 64, "M": 1024, "D": 512, "A": 4, "C": 1024, "Q": 32},
        "pro": {"N": 8, "R": 1024, "M": 1024, "D": 512, "A": 128, "C": 512, "Q": 32},
        "edge": {"N": [0, 1, 5], "R": [0, 7], "M": [1, 65], "D": 48, "A": 10, "C": 48, "Q": 24},
    },
    types={"act": ("bf16", "f32"), "weight": ("f32", "bf16")},
    params={"eps": 1e-6},
    model_sizes=model_sizes,
    reduces=("L", "D"),
)

_VECTOR = 4  # channels of a thread: one 16-byte vector of f32
_SLOTS = 8  # read before any is used; a window of CSA
_WARP = 32


@op.kernel(**OPTIONS)
def pool(T, N, R, M, D, A, C, Q, C2, L, act, weight, eps):
    """A block makes one entry. A thread has four channels and walks through the slots in order.

    Of each group of eight, with m the largest z so far (0 while there is none):

        m' = max(m, max_j z_j);   l = l exp(m - m') + sum_j exp(z_j - m')
                                  o = o exp(m - m') + sum_j exp(z_j - m') kv_j
    """
    check(C in (D, 2 * D), "compressor/pool: columns", got=C, expected=f"D or 2 D with D = {D}")
    check(2 * Q <= D, "compressor/pool: rotated channels", got=2 * Q, expected=f"at most D = {D}")
    lanes = max(_WARP, row_lanes(D, _VECTOR))
    lowest = -T.infinity("float32")

    @T.macro
    def load(target, at, tensor, row, column):
        for v in T.vectorized(_VECTOR):
            target[at * _VECTOR + v] = tensor[row, column + v]

    @T.prim_func
    def kernel(
        kept: T.Tensor((R, C2), "float32"),
        fresh: T.Tensor((M, C2), "float32"),
        source: T.Tensor((N, L), "int32"),
        ape: T.Tensor((A, C), "float32"),
        w: T.Tensor((D,), weight),
        cos: T.Tensor((N, Q), "float32"),
        sin: T.Tensor((N, Q), "float32"),
        entry: T.Tensor((N, D), act),
    ):
        with T.Kernel(N, threads=lanes) as n:
            thread = T.get_thread_binding()
            d = thread * _VECTOR
            kv = T.alloc_local((_SLOTS * _VECTOR,), "float32")
            z = T.alloc_local((_SLOTS * _VECTOR,), "float32")
            bias = T.alloc_local((_VECTOR,), "float32")
            peak = T.alloc_local((_VECTOR,), "float32")
            total = T.alloc_local((_VECTOR,), "float32")
            out = T.alloc_local((_VECTOR,), "float32")
            step = T.alloc_local((1,), "float32")
            value = T.alloc_local((_VECTOR,), act)
            square = T.alloc_fragment((lanes,), "float32")
            factor = T.alloc_fragment((1,), "float32")
            for v in T.unroll(_VECTOR):
                peak[v] = lowest
                total[v] = 0
                out[v] = 0
            for group in T.serial(ceildiv(L, _SLOTS)):
                for j in T.unroll(_SLOTS):
                    slot = group * _SLOTS + j
                    # of the window before, the first D columns; of its own, the last
                    behind = T.if_then_else(slot < L - A, 0, (C - D) // _VECTOR)
                    column = (thread + behind) * _VECTOR
                    for v in T.unroll(_VECTOR):
                        kv[j * _VECTOR + v] = 0
                        z[j * _VECTOR + v] = lowest
                    at = T.if_then_else((slot < L) & (d < D), source[n, slot], -1)
                    if at >= 0:
                        load(kv, j, kept, at, column)
                        load(z, j, kept, at, C + column)
                    if at < -1:
                        load(kv, j, fresh, -2 - at, column)
                        load(z, j, fresh, -2 - at, C + column)
                    if (slot < L) & (d < D):
                        load(bias, 0, ape, slot % A, column)
                        for v in T.unroll(_VECTOR):
                            z[j * _VECTOR + v] += bias[v]
                for v in T.unroll(_VECTOR):
                    step[0] = peak[v]
                    for j in T.unroll(_SLOTS):
                        peak[v] = T.max(peak[v], z[j * _VECTOR + v])
                    base = T.if_then_else(peak[v] == lowest, 0, peak[v])
                    step[0] = T.exp(step[0] - base)
                    total[v] = total[v] * step[0]
                    out[v] = out[v] * step[0]
                    for j in T.unroll(_SLOTS):
                        step[0] = T.exp(z[j * _VECTOR + v] - base)
                        total[v] += step[0]
                        step[0] = step[0] * kv[j * _VECTOR + v]
                        out[v] += step[0]
            # pooled, rounded to the type of entries; its square
            for v in T.unroll(_VECTOR):
                value[v] = out[v] / T.if_then_else(total[v] == 0, 1, total[v])
            for i in T.Parallel(lanes):
                square[i] = 0
                for v in T.unroll(_VECTOR):
                    step[0] = T.cast(value[v], "float32")
                    step[0] = step[0] * step[0]
                    square[i] += step[0]
            T.reduce_sum(square, factor, dim=0)
            for i in T.Parallel(lanes):
                step[0] = 1.0 / T.sqrt(factor[0] / D + eps)
                if i * _VECTOR < D:
                    for v in T.unroll(_VECTOR):
                        value[v] = (
                            T.cast(value[v], "float32") * step[0] * T.cast(w[d + v], "float32")
                        )
                    # (x, y) -> (x cos - y sin, x sin + y cos) of the last 2 Q channels
                    for v in T.unroll(_VECTOR // 2):
                        pair = (d - (D - 2 * Q)) // 2 + v
                        if (pair >= 0) & (pair < Q):
                            out[0] = T.cast(value[2 * v], "float32")
                            out[1] = T.cast(value[2 * v + 1], "float32")
                            out[2] = out[0] * cos[n, pair]
                            out[3] = out[1] * sin[n, pair]
                            value[2 * v] = out[2] - out[3]
                            out[2] = out[0] * sin[n, pair]
                            out[3] = out[1] * cos[n, pair]
                            value[2 * v + 1] = out[2] + out[3]
                    for v in T.vectorized(_VECTOR):
                        entry[n, d + v] = value[v]

    return kernel
