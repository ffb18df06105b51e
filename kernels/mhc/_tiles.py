"""Geometry, size sets and device code that the mHC kernels share."""

from tileproof.dsl import dim, static
from tileproof.kernels.row_stream import THREADS, ceildiv, row_lanes, vector

TOKENS = dim(0, 1 << 20, batch=True)
STREAMS = static(2, 8)
HIDDEN = static(32, 16384, multiple=32)
SHAPES = {
    "tiny": {"M": 7, "N": 4, "D": 64},
    "flash": {"M": 4096, "N": 4, "D": 4096},
    "pro": {"M": 4096, "N": 4, "D": 7168},
    "edge": {"M": [0, 1, 31, 32, 33, 127, 129, 4099], "N": 3, "D": 96},
}


def stream_sizes(config):
    """The residual streams of a HF config: hc_mult streams of hidden_size."""
    yield {"N": config["hc_mult"], "D": config["hidden_size"]}


def stream_geometry(D: int, act: str) -> tuple[int, int, int, int]:
    """(tokens per block, threads per token, elements per access, steps along D)."""
    width = vector(act)
    lanes = row_lanes(D, width)
    return THREADS // lanes, lanes, width, ceildiv(D, lanes * width)


def float_vector(N: int) -> int:
    """Floats of one access to a row of N floats that starts at a multiple of N: 4, 2 or 1."""
    return 4 if N % 4 == 0 else 2 if N % 2 == 0 else 1
