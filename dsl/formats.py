"""The storage formats of DeepSeek-V4, bit by bit, on NumPy arrays (spec §6.1).

* ``e4m3``: 8 bits, no infinity, largest 448, smallest normal 2^-6, smallest subnormal 2^-9.
* ``e2m1``: 4 bits, {0, .5, 1, 1.5, 2, 3, 4, 6} and a sign; two per byte, the even index in the low
  nibble.
* ``ue8m0``: an exponent byte, 2^(byte - 127); no zero, 255 is NaN.

Rounding is to nearest, ties to even, saturating. Scales are powers of two chosen *before* rounding,
so that dividing by them is exact.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .check import check

E4M3_MAX = 448.0
E2M1_MAX = 6.0

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def round_e4m3(x: Floats) -> Bytes:
    """Nearest e4m3 code of each float32, saturating at ±448; NaN stays NaN."""
    clamped = np.clip(np.asarray(x, np.float32), -E4M3_MAX, E4M3_MAX)
    return clamped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def e4m3_to_float(codes: Bytes) -> Floats:
    """The float32 value of each e4m3 code (exact)."""
    return np.asarray(codes, np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def round_e2m1(x: Floats) -> Bytes:
    """Nearest e2m1 code (0..15) of each float32, saturating at ±6. Raises ContractError on NaN."""
    x = np.asarray(x, np.float32)
    check(not np.isnan(x).any(), "e2m1 input", got="NaN", expected="numbers (e2m1 has no NaN)")
    clamped = np.clip(x, -E2M1_MAX, E2M1_MAX)
    return clamped.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & np.uint8(0xF)


def e2m1_to_float(codes: Bytes) -> Floats:
    """The float32 value of each e2m1 code (exact)."""
    codes = np.asarray(codes, np.uint8)
    check(bool((codes < 16).all()), "e2m1 code", got=int(codes.max(initial=0)), expected="0..15")
    return codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def pack_e2m1(codes: Bytes) -> Bytes:
    """Two codes per byte along the last dim (even length), the even index in the low nibble."""
    codes = np.asarray(codes, np.uint8)
    check(codes.shape[-1] % 2 == 0, "e2m1 last dim", got=codes.shape[-1], expected="an even size")
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def unpack_e2m1(packed: Bytes) -> Bytes:
    """Inverse of :func:`pack_e2m1`."""
    packed = np.asarray(packed, np.uint8)
    pair = np.stack([packed & np.uint8(0xF), packed >> np.uint8(4)], axis=-1)
    return pair.reshape(*packed.shape[:-1], -1)


def scale_ue8m0(amax: Floats, largest: float, floor: float) -> Bytes:
    """ue8m0 code of 2^ceil(log2(max(amax, floor) / largest)), the block scale of spec §6.1.

    Args:
        amax: largest magnitude of each block, float32.
        largest: largest magnitude of the element format (448 or 6).
        floor: smallest amax, 1e-4 for e4m3 and 6*2^-126 for e2m1 in the official code. Below
            ``largest * 2^-126`` the quotient is subnormal and the scale stays 2^-126.
    """
    quotient = np.maximum(np.asarray(amax, np.float32), np.float32(floor)) / np.float32(largest)
    bits = quotient.astype(np.float32).view(np.uint32)
    exponent = (bits >> np.uint32(23)) & np.uint32(0xFF)
    above = (bits & np.uint32(0x7FFFFF)) != 0
    return (exponent + above).astype(np.uint8)


def ue8m0_to_float(codes: Bytes) -> Floats:
    """2^(code - 127) of each code; 255 is NaN; code 0 is the subnormal 2^-127."""
    return np.asarray(codes, np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
