"""Device code of the fp4 ops: a thread owns a group of 32, so nothing is exchanged.

e2m1 is converted on the bits of float32, on every architecture alike: only two of them have an
instruction for it.
"""

from types import SimpleNamespace

from tileproof.kernels.row_stream import vector

from ._blocks import (
    E2M1,
    FP4_GROUP,
    MAGNITUDE,
    NAN_SCALE,
    inverse,
    magnitude,
    scale,
    scale_code,
)


def e2m1_value(T, code):
    """float32 value of a code: with its three low bits as exponent and mantissa of a float32 it is
    too small by 2^126."""
    bits = T.shift_left(code & 7, 22) | T.shift_left(code & 8, 28)
    return T.reinterpret(bits, "float32") * T.float32(2.0**126)


def device(T, act):
    """Macros on one group in a thread's registers."""
    wide = vector(act)

    @T.macro
    def load(x, m, g, row):
        for c in T.unroll(FP4_GROUP // wide):
            for v in T.vectorized(wide):
                row[c * wide + v] = x[m, g * FP4_GROUP + c * wide + v]

    @T.macro
    def store(row, y, m, g):
        for c in T.unroll(FP4_GROUP // wide):
            for v in T.vectorized(wide):
                y[m, g * FP4_GROUP + c * wide + v] = row[c * wide + v]

    @T.macro
    def encode(row, code, codes):
        """The group's scale, and its nearest e2m1 codes: ties to even."""
        amax = T.alloc_local((1,), "int32")
        amax[0] = 0
        for k in T.unroll(FP4_GROUP):
            amax[0] = T.max(amax[0], magnitude(T, row[k]))
        code[0] = scale_code(T, E2M1, amax[0])
        for k in T.unroll(FP4_GROUP):
            bits = T.reinterpret(T.cast(row[k], "float32") * inverse(T, code[0]), "int32")
            size = bits & MAGNITUDE
            # float32 counts in halves at 2^22, so the sum rounds |v| < 1 to 0, 0.5 or 1
            half = T.reinterpret(size, "float32") + T.float32(2.0**22)
            # from 1 on one bit of the mantissa stays; code 2 is 1.0, whose bits are 254 << 22
            kept = T.shift_right(size + 0x1FFFFF + (T.shift_right(size, 22) & 1), 22) - 252
            small = T.reinterpret(half, "int32") & 7
            unsigned = T.if_then_else(size < 0x3F800000, small, kept)
            signed = unsigned | (T.shift_right(bits, 28) & 8)
            # a group that is not finite has no scale: its codes are all 7
            codes[k] = T.if_then_else(code[0] == NAN_SCALE, 7, signed)

    @T.macro
    def pack(codes, packed):
        """Two codes a byte, the even column's in the low half."""
        for j in T.unroll(FP4_GROUP // 2):
            packed[j] = T.cast(codes[2 * j] | T.shift_left(codes[2 * j + 1], 4), "uint8")

    @T.macro
    def unpack(packed, codes):
        for j in T.unroll(FP4_GROUP // 2):
            codes[2 * j] = T.cast(packed[j], "int32") & 15
            codes[2 * j + 1] = T.shift_right(T.cast(packed[j], "int32"), 4)

    @T.macro
    def decode(codes, code, row):
        for k in T.unroll(FP4_GROUP):
            row[k] = T.cast(e2m1_value(T, codes[k]) * scale(T, code[0]), act)

    return SimpleNamespace(
        load=load, store=store, encode=encode, pack=pack, unpack=unpack, decode=decode
    )
