"""Device code of the fp8 ops.

A cast holds its groups in a fragment [groups, elements of a group], so that the largest magnitude
of a group, whose threads are neighbours, is one reduction. sm_80 has no instruction for e4m3;
there CUDA's header converts, exactly, with integers.
"""

from types import SimpleNamespace

from tileproof.kernels.row_stream import THREADS

from ._blocks import (
    E4M3,
    FP8_VECTOR,
    NAN,
    NAN_SCALE,
    inverse,
    magnitude,
    scale,
    scale_code,
)


def owned(T, shape, threads=THREADS, vector=FP8_VECTOR):
    """Layout of a fragment: each thread has `vector` elements in a row, then the next thread's."""

    def place(i, k):
        at = i * shape[1] + k
        step = vector * threads
        return at // vector % threads, at % vector + at // step * vector

    return T.Fragment(shape, forward_fn=place)


def device(T, shape, act):
    """Macros on fragments of `shape`."""
    groups, size = shape

    @T.macro
    def encode(x, code, codes):
        """Each group's scale, and its nearest e4m3 codes; NaN where a group is not finite."""
        sizes = T.alloc_fragment(shape, "int32")
        amax = T.alloc_fragment((groups,), "int32")
        for i, k in T.Parallel(groups, size):
            sizes[i, k] = magnitude(T, x[i, k])
        T.reduce_max(sizes, amax, dim=1)
        for i in T.Parallel(groups):
            code[i] = scale_code(T, E4M3, amax[i])
        for i, k in T.Parallel(groups, size):
            value = T.cast(x[i, k], "float32") * inverse(T, code[i])
            nan = T.reinterpret(NAN, "float32")
            codes[i, k] = T.cast(T.if_then_else(code[i] == NAN_SCALE, nan, value), "float8_e4m3fn")

    @T.macro
    def decode(codes, code, y):
        for i, k in T.Parallel(groups, size):
            y[i, k] = T.cast(T.cast(codes[i, k], "float32") * scale(T, code[i]), act)

    return SimpleNamespace(encode=encode, decode=decode)


def dequantised(T):
    """Macro ``(codes, code, row)``: 16 codes of one group to bf16."""

    @T.macro
    def convert(codes, code, row):
        for v in T.vectorized(FP8_VECTOR):
            row[v] = T.cast(T.cast(codes[v], "float32") * scale(T, code), "bfloat16")

    return convert
