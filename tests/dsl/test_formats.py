"""Number formats against tables written from the format definitions, not from a library."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tileproof.dsl import ContractError, formats


def e4m3_value(code: int) -> float:
    """Definition: s eeee mmm, bias 7, no infinity, only x.1111.111 is NaN."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3 = [e4m3_value(c) for c in range(256)]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def nearest_even(x: float, values: list[float]) -> float:
    """The value nearest to x; of two equally near ones, that with the even code."""
    codes = sorted(range(len(values)), key=lambda c: (abs(values[c] - x), c & 1))
    return values[codes[0]]


def test_e4m3_decodes_every_code() -> None:
    got = formats.e4m3_to_float(np.arange(256, dtype=np.uint8))
    np.testing.assert_array_equal(got, np.array(E4M3, np.float32))


@given(st.floats(-600, 600, width=32))
def test_e4m3_rounds_to_nearest_even_and_saturates(x: float) -> None:
    got = formats.e4m3_to_float(formats.round_e4m3(np.array([x], np.float32)))[0]
    positive = [v for v in E4M3[:128] if not math.isnan(v)]
    assert abs(got) == nearest_even(abs(x), positive)
    assert math.copysign(1, got) == math.copysign(1, x)


def test_e2m1_decodes_every_code() -> None:
    got = formats.e2m1_to_float(np.arange(16, dtype=np.uint8))
    np.testing.assert_array_equal(got, np.array(E2M1, np.float32))
    assert np.signbit(got[8])


@given(st.floats(-9, 9, width=32))
def test_e2m1_rounds_to_nearest_even_and_saturates(x: float) -> None:
    got = formats.e2m1_to_float(formats.round_e2m1(np.array([x], np.float32)))[0]
    assert abs(got) == nearest_even(abs(x), [float(v) for v in E2M1[:8]])


@pytest.mark.parametrize(
    ("x", "tie"), [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4)]
)
def test_e2m1_ties_of_the_specification(x: float, tie: float) -> None:
    assert formats.e2m1_to_float(formats.round_e2m1(np.array([x], np.float32)))[0] == tie


def test_e2m1_refuses_nan() -> None:
    with pytest.raises(ContractError, match="e2m1 has no NaN"):
        formats.round_e2m1(np.array([np.nan], np.float32))


def test_e2m1_packs_the_even_index_low() -> None:
    codes = np.array([[1, 2, 15, 0]], np.uint8)
    packed = formats.pack_e2m1(codes)
    np.testing.assert_array_equal(packed, np.array([[0x21, 0x0F]], np.uint8))
    np.testing.assert_array_equal(formats.unpack_e2m1(packed), codes)
    with pytest.raises(ContractError, match="got 3, expected an even size"):
        formats.pack_e2m1(np.zeros((2, 3), np.uint8))


@given(st.floats(2.0**-117, 2.0**120, width=32), st.sampled_from([448.0, 6.0]))
def test_scale_is_the_smallest_power_of_two_that_fits(amax: float, largest: float) -> None:
    code = formats.scale_ue8m0(np.array([amax], np.float32), largest, 0.0)
    scale = float(formats.ue8m0_to_float(code)[0])
    # amax/largest is one rounded float32 division, so "fits" holds up to half an ulp of it.
    assert amax <= scale * largest * (1 + 2.0**-24)
    assert amax > scale / 2 * largest * (1 - 2.0**-24)


def test_scale_floor_keeps_zero_blocks_finite() -> None:
    code = formats.scale_ue8m0(np.zeros(1, np.float32), 448.0, 1e-4)
    assert formats.ue8m0_to_float(code)[0] == 2.0 ** math.ceil(math.log2(1e-4 / 448))


def test_ue8m0_decodes() -> None:
    got = formats.ue8m0_to_float(np.array([0, 1, 127, 254, 255], np.uint8))
    np.testing.assert_array_equal(got, np.array([2.0**-127, 2.0**-126, 1, 2.0**127, np.nan], "f4"))
