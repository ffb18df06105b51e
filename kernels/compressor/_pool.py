"""What the compressor's ops share: declarations, and the pooling of one window (spec §2.1)."""

from tileproof.dsl import In, Values, check, derived, dim, static
from tileproof.kernels import entry
from tileproof.kernels.row_stream import ceildiv

_SLOTS = 8  # read before any is used; a window of CSA

# An entry pools L tokens: row r >= 0 is row r of `kept`, -2 - i is row i of `fresh`, -1 is none.
SOURCES = (
    In("kept", "MK C2", "f32"),
    In("fresh", "M C2", "f32"),
    In("source", "N L", "i32", values=Values("-1-M", "MK-1")),
    In("position", "N", "i32", values=Values("0", "X-1")),
    In("ape", "A C", "f32"),
    In("weight", "D", "weight"),
    In("cos", "X Q", "f32"),
    In("sin", "X Q", "f32"),
)


def slots(most):
    """Where the entries go, "0".."most"; -1 is nowhere."""
    return In("slot", "N", "i32", values=Values("0", most, none=-1, distinct=True))


DIMS = {
    "N": dim(0, 1 << 20, batch=True),
    "MK": dim(0, 1 << 24),
    "M": dim(0, 1 << 20),
    "X": dim(1, 1 << 22),
    "A": static(1, 256),
    "C": static(16, 2048, multiple=8),
    "C2": derived(lambda C: 2 * C, hi=4096),
}
CHANNELS = static(16, 1024, multiple=8)
ROTATED = static(2, 256, multiple=2)
SLOTS = derived(lambda A, C, D: A * (C // D), hi=512)
WEIGHT = {"weight": ("f32", "bf16")}
PARAMS = {"eps": 1e-6}


def sizes(config, key):
    """Sizes of a HF config's compressors with entries of ``config[key]`` channels.

    The main branch (``head_dim``) exists with windows of CSA and of HCA, the indexer's with CSA's.
    """
    rates = config["compress_rates"]
    csa, hca = rates["compressed_sparse_attention"], rates["heavily_compressed_attention"]
    D, Q = config[key], config["qk_rope_head_dim"] // 2
    for A, windows in ((csa, 2), (hca, 1))[: 2 if key == "head_dim" else 1]:
        for weight in ("f32", "bf16"):
            yield {"D": D, "Q": Q, "A": A, "C": windows * D, "weight": weight,
                   "eps": config["rms_norm_eps"]}  # fmt: skip


def pooling(T, D, A, C, L, act):
    """Macro ``(kept, fresh, source, ape, n, value)``: the pooled entry n, rounded to `act`.

    A thread has four channels and walks through the slots, eight at a time, first to last. Of a
    group of eight, with m the largest z so far (0 while there is none):

        m' = max(m, max_j z_j);   l = l exp(m - m') + sum_j exp(z_j - m')
                                  o = o exp(m - m') + sum_j exp(z_j - m') kv_j

    The order hangs on L alone, so an entry's bits do not say in which batches its tokens came.
    """
    check(C in (D, 2 * D), "compressor: columns", got=C, expected=f"D or 2 D with D = {D}")
    vector = entry.VECTOR
    lowest = -T.infinity("float32")

    @T.macro
    def load(target, at, tensor, row, column):
        for v in T.vectorized(vector):
            target[at * vector + v] = tensor[row, column + v]

    @T.macro
    def pool(kept, fresh, source, ape, n, value):
        thread = T.get_thread_binding()
        d = thread * vector
        kv = T.alloc_local((_SLOTS * vector,), "float32")
        z = T.alloc_local((_SLOTS * vector,), "float32")
        bias = T.alloc_local((vector,), "float32")
        peak = T.alloc_local((vector,), "float32")
        total = T.alloc_local((vector,), "float32")
        out = T.alloc_local((vector,), "float32")
        step = T.alloc_local((1,), "float32")
        for v in T.unroll(vector):
            peak[v] = lowest
            total[v] = 0
            out[v] = 0
        for group in T.serial(ceildiv(L, _SLOTS)):
            for j in T.unroll(_SLOTS):
                at = group * _SLOTS + j
                # of the window before, the first D columns; of its own, the last
                behind = T.if_then_else(at < L - A, 0, (C - D) // vector)
                column = (thread + behind) * vector
                for v in T.unroll(vector):
                    kv[j * vector + v] = 0
                    z[j * vector + v] = lowest
                row = T.if_then_else((at < L) & (d < D), source[n, at], -1)
                if row >= 0:
                    load(kv, j, kept, row, column)
                    load(z, j, kept, row, C + column)
                if row < -1:
                    load(kv, j, fresh, -2 - row, column)
                    load(z, j, fresh, -2 - row, C + column)
                if (at < L) & (d < D):
                    load(bias, 0, ape, at % A, column)
                    for v in T.unroll(vector):
                        z[j * vector + v] += bias[v]
            for v in T.unroll(vector):
                step[0] = peak[v]
                for j in T.unroll(_SLOTS):
                    peak[v] = T.max(peak[v], z[j * vector + v])
                base = T.if_then_else(peak[v] == lowest, 0, peak[v])
                step[0] = T.exp(step[0] - base)
                total[v] = total[v] * step[0]
                out[v] = out[v] * step[0]
                for j in T.unroll(_SLOTS):
                    step[0] = T.exp(z[j * vector + v] - base)
                    total[v] += step[0]
                    step[0] = step[0] * kv[j * vector + v]
                    out[v] += step[0]
        for v in T.unroll(vector):
            value[v] = T.cast(out[v] / T.if_then_else(total[v] == 0, 1, total[v]), act)

    return pool
