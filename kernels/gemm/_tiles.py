"""Tiles of ``x W^T`` on tensor cores, K in one order (spec §6.3, §8).

An element of the result is summed over K by one warp, 16 columns at a time from left to right, in
float32. Neither the tile nor the number of tokens changes that order, so a row's bits are its own.

bfloat16 operands go to the tensor cores as they are. A float32 is the exact sum of three bfloat16
(high, middle, low); of the nine products of two such sums the six largest are added, which leaves
out less than a rounding to float32 does. high × high has a sum of its own, so that the five small
ones lose nothing to it; they follow one another for every `depth` columns.
"""

from types import SimpleNamespace

from tileproof.dsl import dim, static
from tileproof.kernels.row_stream import bits, vector

TOKENS = dim(0, 1 << 20, batch=True)
ROWS = dim(8, 1 << 18, multiple=8)  # of a weight
EXPERTS = dim(1, 1024)
COLUMNS = static(16, 1 << 16, multiple=16)
TYPES = {"act": ("bf16", "f32"), "out": ("bf16", "f32")}

TILE = {"tokens": 64, "width": 64, "threads": 128, "stages": 3}
_PARTS = 3
PAD = 8  # columns added to a tile, so that eight rows of a matrix instruction lie in all banks


def writer(T, N, rows, width, out):
    """Macro ``(staged, y, j, row, exists)``: the tile [rows, width] of columns j·width on to y, 16
    bytes at once. ``row(m)`` are the indices of a row before its column, ``exists(m)`` says
    whether it is one of y's.
    """
    at_once = vector(out)

    @T.macro
    def device(staged, y, j, row, exists):
        T.assume(N % ROWS.multiple == 0)
        for m, c in T.Parallel(rows, width // at_once):
            if exists(m) & (j * width + c * at_once < N):
                for v in T.vectorized(at_once):
                    y[(*row(m), j * width + c * at_once + v)] = staged[m, c * at_once + v]

    return device


def device(T, K, act, tokens, width, stages):
    """Device code of one tile, as a namespace of macros.

    ``product(bring, result)`` is the whole tile; ``bring(k, x_tile, w_tile)`` loads the columns
    from k on of both operands, zeros beyond their ends.
    """
    parts = 1 if bits(act) == 16 else _PARTS
    depth = 64 if parts == 1 else 32
    pairs = [(a, b) for a in range(parts) for b in range(parts) if a + b < parts]

    @T.macro
    def split(source, target, count):
        # source = high + middle + low exactly
        for i, k in T.Parallel(count, depth):
            high = T.cast(source[i, k], "bfloat16")
            rest = source[i, k] - T.cast(high, "float32")
            middle = T.cast(rest, "bfloat16")
            target[i, k] = high
            target[count + i, k] = middle
            target[2 * count + i, k] = T.cast(rest - T.cast(middle, "float32"), "bfloat16")

    @T.macro
    def product(bring, result):
        x_tile = T.alloc_shared((tokens, depth), act)
        w_tile = T.alloc_shared((width, depth), act)
        acc = T.alloc_fragment((tokens, width), "float32")
        T.clear(acc)
        if parts == 1:
            for k in T.Pipelined(T.ceildiv(K, depth), num_stages=stages):
                bring(k * depth, x_tile, w_tile)
                T.gemm(x_tile, w_tile, acc, transpose_B=True)
        else:
            rest = T.alloc_fragment((tokens, width), "float32")
            T.clear(rest)
            x_parts = T.alloc_shared((parts * tokens, depth), "bfloat16")
            w_parts = T.alloc_shared((parts * width, depth), "bfloat16")
            for k in T.Pipelined(T.ceildiv(K, depth), num_stages=2):
                bring(k * depth, x_tile, w_tile)
                split(x_tile, x_parts, tokens)
                split(w_tile, w_parts, width)
                for a, b in pairs:
                    T.gemm(
                        x_parts[a * tokens : (a + 1) * tokens, :],
                        w_parts[b * width : (b + 1) * width, :],
                        acc if a + b == 0 else rest,
                        transpose_B=True,
                    )
            for m, n in T.Parallel(tokens, width):
                acc[m, n] += rest[m, n]
        # not T.copy, which becomes stmatrix: the prover does not follow rows of tokens through it
        for m, n in T.Parallel(tokens, width):
            result[m, n] = acc[m, n]

    return SimpleNamespace(depth=depth, product=product)
