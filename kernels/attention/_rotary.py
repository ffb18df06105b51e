"""Interleaved RoPE on the last channels of every head, alone or behind an RMSNorm (spec §3.2)."""

from tileproof.dsl import check, dim, static
from tileproof.kernels.row_stream import THREADS, ceildiv, row_lanes, vector

from ._core import HEADS

DIMS = {
    "M": dim(0, 1 << 20, batch=True),
    "H": HEADS,
    "D": static(16, 512, multiple=8),
    "C": static(1, 256),  # pairs that turn
}
SHAPES = {
    "tiny": {"M": 7, "H": 8, "D": 32, "C": 4},
    "flash": {"M": 4096, "H": 64, "D": 512, "C": 32},
    "pro": {"M": 4096, "H": 128, "D": 512, "C": 32},
    "edge": {"M": [0, 1, 3, 129], "H": 17, "D": 72, "C": 5},
}


def model_sizes(config):
    """The query heads of a HF config."""
    sizes = {"H": config["num_attention_heads"], "D": config["head_dim"]}
    yield {**sizes, "C": config["qk_rope_head_dim"] // 2}


def turning(T, H, D, C, act, inverse, eps):
    """(macro ``(x, cos, sin, y, m, h)``, heads it takes): heads of token m from h times so many on.

    With `eps` (not None) a head is first divided by its root mean square and rounded to `act`.
    """
    check(2 * C <= D, "RoPE channels of a head", got=2 * C, expected=f"at most D = {D}")
    width = vector(act)
    lanes = row_lanes(D, width)
    rows = THREADS // lanes
    wide = ceildiv(D, lanes * width) * lanes * width
    first = D - 2 * C
    even, odd = (1.0, -1.0) if inverse else (-1.0, 1.0)

    @T.macro
    def turn(x, cos, sin, y, m, h):
        raw = T.alloc_fragment((rows, wide), act)
        row = T.alloc_fragment((rows, wide), "float32")
        square = T.alloc_fragment((rows, wide), "float32")
        factor = T.alloc_fragment((rows,), "float32")
        tile = T.alloc_shared((rows, wide), act)
        for i, d in T.Parallel(rows, wide):
            inside = (h * rows + i < H) & (d < D)
            raw[i, d] = T.if_then_else(inside, x[m, h * rows + i, d], 0)
        T.copy(raw, row)
        if eps is not None:
            # factor = 1 / sqrt(mean(x^2) + eps)
            for i, d in T.Parallel(rows, wide):
                square[i, d] = row[i, d] * row[i, d]
            T.reduce_sum(square, factor, dim=1)
            for i in T.Parallel(rows):
                factor[i] = 1.0 / T.sqrt(factor[i] / D + eps)
            for i, d in T.Parallel(rows, wide):
                row[i, d] *= factor[i]
        T.copy(row, tile)
        # (a, b) -> (a cos - b sin, b cos + a sin), and with -sin for the inverse
        for i, d in T.Parallel(rows, wide):
            turns = (d >= first) & (d < D)
            row[i, d] = T.if_then_else(turns, cos[m, (d - first) // 2], 1)
            square[i, d] = T.if_then_else(turns, sin[m, (d - first) // 2], 0)
        for i, d in T.Parallel(rows, wide):
            row[i, d] *= T.cast(tile[i, d], "float32")
            square[i, d] *= T.cast(tile[i, d ^ 1], "float32")
        for i, d in T.Parallel(rows, wide):
            square[i, d] *= T.if_then_else(d % 2 == 0, even, odd)
        for i, d in T.Parallel(rows, wide):
            row[i, d] += T.if_then_else((d >= first) & (d < D), square[i, d], 0)
        for i, d in T.Parallel(rows, wide):
            if (h * rows + i < H) & (d < D):
                y[m, h * rows + i, d] = row[i, d]

    return turn, rows
