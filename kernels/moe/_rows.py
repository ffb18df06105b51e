"""What the ops on sorted rows share: a block has one row, or some groups of one."""

from types import SimpleNamespace

from tileproof.dsl import dim, static
from tileproof.kernels.quant._blocks import FP8_VECTOR, TILE, stored_scale
from tileproof.kernels.quant._fp8 import device, owned
from tileproof.kernels.row_stream import ceildiv, row_lanes, vector

TOKENS = dim(0, 1 << 20, batch=True)
TILES = dim(0, 1 << 20, batch=True)  # where a block has one's rows
HIDDEN = static(32, 16384, multiple=32)
LIMIT = {"limit": 10.0}  # of SwiGLU

_MOST = 256  # threads
_GROUPS = 16  # of a block


def geometry(D: int, act: str) -> tuple[int, int, int]:
    """(elements of an access, threads of a block, blocks of a row)."""
    wide = vector(act)
    threads = max(32, row_lanes(D, wide, _MOST))
    return wide, threads, ceildiv(D, wide * threads)


def gated(T, limit, gate, up):
    """silu(min(gate, limit)) * clamp(up, -limit, limit) in float32 (spec §5.2); NaN stays NaN."""
    g = T.if_then_else(gate > limit, T.float32(limit), gate)
    u = T.if_then_else(up > limit, T.float32(limit), up)
    u = T.if_then_else(u < -limit, T.float32(-limit), u)
    return g / (1 + T.exp(-g)) * u


def fp8_rows(T, D):
    """Device code that makes e4m3 rows with a scale per 1×128, as a namespace.

    ``cast(fill, q, s, *row)`` makes the groups of the block's second index; ``fill(group, first)``
    gives the bfloat16 of the row's columns from `first` on, zeros beyond D.
    """
    groups = ceildiv(D, TILE)
    across = min(_GROUPS, max(4, 1 << (groups - 1).bit_length()))
    threads = across * TILE // FP8_VECTOR
    code = device(T, (across, TILE), "bfloat16")

    @T.macro
    def cast(fill, step, q, s, *row):
        group = T.alloc_fragment((across, TILE), "bfloat16")
        codes = T.alloc_fragment((across, TILE), "float8_e4m3fn")
        exponent = T.alloc_fragment((across,), "int32")
        T.annotate_layout({group: owned(T, (across, TILE), threads, vector("bfloat16"))})
        fill(group, step * across * TILE)
        code.encode(group, exponent, codes)
        for i, k in T.Parallel(across, TILE):
            column = (step * across + i) * TILE + k
            if column < D:
                q[(*row, column)] = codes[i, k]
        for i in T.Parallel(across):
            if step * across + i < groups:
                s[(*row, step * across + i)] = stored_scale(T, exponent[i])

    return SimpleNamespace(threads=threads, across=across, steps=ceildiv(groups, across), cast=cast)
