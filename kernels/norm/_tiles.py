"""Geometry and size sets of the two RMSNorm kernels."""

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
