"""Geometry, size sets and device code of the RMSNorm kernels."""

from tileproof.dsl import dim, static
from tileproof.kernels.row_stream import THREADS, ceildiv, row_lanes

VECTOR = 8  # elements a thread takes at once: one 16-byte vector of bf16, two of f32
DIMS = {
    "M": dim(0, 1 << 20, batch=True),
    "D": static(16, 16384, multiple=16),
    "P": dim(16, 1 << 20, multiple=VECTOR),  # rows may be a slice of wider ones
}
SHAPES = {
    "tiny": {"M": 7, "D": 64},
    "flash": {"M": 4096, "D": 4096},
    "pro": {"M": 4096, "D": 7168},
    "edge": {"M": [0, 1, 31, 32, 33, 127, 129, 4099], "D": 96},
}
_WIDE_ROW = 8192  # beyond it 128 threads would hold more than 64 elements each


def geometry(D: int) -> tuple[int, int, int]:
    """(rows per block, row width rounded up to whole thread steps, threads) for rows of `D`."""
    lanes = row_lanes(D, VECTOR, most=THREADS if D <= _WIDE_ROW else 2 * THREADS)
    step = lanes * VECTOR
    rows = max(1, THREADS // lanes)
    return rows, ceildiv(D, step) * step, rows * lanes


def statistics(T, D, eps):
    """Macro ``(x, M, first, row, factor)``: rows from `first` on, zeros beyond the ends of x, and
    ``factor = 1 / sqrt(mean(row^2) + eps)`` of each."""
    rows, width, _ = geometry(D)

    @T.macro
    def device(x, M, first, row, factor):
        square = T.alloc_fragment((rows, width), "float32")
        for i, d in T.Parallel(rows, width):
            inside = (first + i < M) & (d < D)
            row[i, d] = T.if_then_else(inside, x[first + i, d], 0)
        for i, d in T.Parallel(rows, width):
            square[i, d] = T.cast(row[i, d], "float32") * T.cast(row[i, d], "float32")
        T.reduce_sum(square, factor, dim=1)
        for i in T.Parallel(rows):
            factor[i] = 1.0 / T.sqrt(factor[i] / D + eps)

    return device
