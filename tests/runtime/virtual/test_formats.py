"""Narrow number formats against tables: ml_dtypes says what each code means, a search in the sorted
values what a conversion must give. Nothing here shares code with the virtual GPU."""

import functools

import ml_dtypes
import numpy as np
import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel

# Signalling NaNs among the inputs.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")

# name -> (dtype, bits, largest finite code, code above it when saturating, code of NaN)
FORMATS = {
    "e4m3": (ml_dtypes.float8_e4m3fn, 8, 0x7E, 0x7E, 0x7F),
    "e5m2": (ml_dtypes.float8_e5m2, 8, 0x7B, 0x7B, 0x7F),
    "e2m1": (ml_dtypes.float4_e2m1fn, 4, 0x7, 0x7, 0x7),
    "e2m3": (ml_dtypes.float6_e2m3fn, 6, 0x1F, 0x1F, 0x1F),
    "e3m2": (ml_dtypes.float6_e3m2fn, 6, 0x1F, 0x1F, 0x1F),
    "half": (np.float16, 16, 0x7BFF, 0x7C00, 0x7FFF),
    "bf16": (ml_dtypes.bfloat16, 16, 0x7F7F, 0x7F80, 0x7FFF),
}
# Conversions from one number: expression of v, format, direction, whether v is a double.
NARROWING = {
    "e4m3": ("__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3)", "e4m3", "nearest"),
    "e5m2": ("__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E5M2)", "e5m2", "nearest"),
    "e4m3 type": ("fp8_e4_t(v).raw()", "e4m3", "nearest"),
    "e5m2 type": ("fp8_e5_t(v).raw()", "e5m2", "nearest"),
    "e2m1": ("__tl_cvt_float_to_fp4(v)", "e2m1", "nearest"),
    "e2m3": ("__nv_fp6_e2m3(v).__x", "e2m3", "nearest"),
    "e3m2": ("__nv_fp6_e3m2(v).__x", "e3m2", "nearest"),
    "half": ("__float2half_rn(v).raw()", "half", "nearest"),
    "half rz": ("__float2half_rz(v).raw()", "half", "zero"),
    "half ru": ("__float2half_ru(v).raw()", "half", "up"),
    "half rd": ("__float2half_rd(v).raw()", "half", "down"),
    "bf16": ("__float2bfloat16_rn(v).raw()", "bf16", "nearest"),
    "bf16 rz": ("__float2bfloat16_rz(v).raw()", "bf16", "zero"),
    "bf16 ru": ("__float2bfloat16_ru(v).raw()", "bf16", "up"),
    "bf16 rd": ("__float2bfloat16_rd(v).raw()", "bf16", "down"),
}
FROM_DOUBLE = {
    "e4m3": ("__nv_cvt_double_to_fp8(v, __NV_SATFINITE, __NV_E4M3)", "e4m3", "nearest"),
    "e5m2": ("__nv_cvt_double_to_fp8(v, __NV_SATFINITE, __NV_E5M2)", "e5m2", "nearest"),
    "e2m1": ("__tl_cvt_double_to_fp4(v)", "e2m1", "nearest"),
    "half": ("__double2half(v).raw()", "half", "nearest"),
    "bf16": ("__double2bfloat16(v).raw()", "bf16", "nearest"),
}
# What a code means, as float; the codes are those of `c`.
WIDENING = {
    "e4m3": "__tl_cvt_fp8x2_to_float2(c, __NV_E4M3).x",
    "e5m2": "__tl_cvt_fp8x2_to_float2(c, __NV_E5M2).x",
    "e2m1": "__tl_cvt_fp4_to_float(c)",
    "e2m3": "float(vgpu::bit_cast<__nv_fp6_e2m3>((unsigned char)c))",
    "e3m2": "float(vgpu::bit_cast<__nv_fp6_e3m2>((unsigned char)c))",
    "half": "__half2float(half_t::bitcast(c))",
    "bf16": "__bfloat162float(bfloat16_t::bitcast(c))",
}
# Packed conversions of (v, w): where w's code begins, and the scalar one they repeat.
PACKED = {
    "__nv_cvt_float2_to_fp8x2(make_float2(v, w), __NV_SATFINITE, __NV_E4M3)": (8, "e4m3"),
    "__nv_cvt_double2_to_fp8x2(make_double2(v, w), __NV_SATFINITE, __NV_E5M2)": (8, "e5m2"),
    "__tl_cvt_float2_to_fp4x2(make_float2(v, w))": (4, "e2m1"),
    "__tl_cvt_double2_to_fp4x2(make_double2(v, w))": (4, "e2m1"),
    "tl::to_uint1(__float22half2_rn(make_float2(v, w))).x": (16, "half"),
    "tl::to_uint1(__floats2bfloat162_rn(v, w)).x": (16, "bf16"),
    "__tl_cvt_float2_to_e8m0x2(make_float2(v, w))": (8, "e8m0"),
    "__tl_cvt_double2_to_e8m0x2(make_double2(v, w))": (8, "e8m0"),
}


def cases(expressions) -> str:
    return " ".join(f"case {i}: y[i] = (unsigned)({e}); break;" for i, e in enumerate(expressions))


LOOP = "for (int i = blockIdx.x * 32 + tid; i < n; i += 32 * gridDim.x)"


@functools.cache
def module() -> virtual.VirtualModule:
    narrowing = [e for e, *_ in NARROWING.values()] + ["__nv_fp8_e8m0(v).__x"]
    narrowing += ["__float_as_uint(float(tfloat32_t(v)))"]
    narrowing += ["bfloat16_t((int)v).raw()", "__int2bfloat16_rn((int)v).raw()"]
    doubles = [e for e, *_ in FROM_DOUBLE.values()] + ["__nv_fp8_e8m0(v).__x"]
    widening = [f"__float_as_uint({e})" for e in WIDENING.values()]
    widening += ["__float_as_uint(float(vgpu::bit_cast<fp8_e8_t>((unsigned char)c)))"]
    widening += ["__tl_cvt_e2m1_to_e4m3(c)", "__tl_cvt_e2m1x2_to_e4m3x2(c)"]
    widening += ["__tl_cvt_e2m1x4_to_e4m3x4(c)"]
    return virtual.VirtualModule(
        kernel(
            "unsigned* y, const float* x, int n, int which",
            f"{LOOP} {{ float v = x[i]; switch (which) {{ {cases(narrowing)} }} }}",
            "narrow",
        )
        + kernel(
            "unsigned* y, const double* x, int n, int which",
            f"{LOOP} {{ double v = x[i]; switch (which) {{ {cases(doubles)} }} }}",
            "narrow_double",
        )
        + kernel(
            "unsigned* y, int n, int which",
            f"{LOOP} {{ unsigned c = i; switch (which) {{ {cases(widening)} }} }}",
            "widen",
        )
        + kernel(
            "unsigned* y, const float* x, int n, int which",
            f"{LOOP} {{ float v = x[i], w = x[n - 1 - i]; switch (which) {{ {cases(PACKED)} }} }}",
            "pack",
        ),
        checked=False,
    )


def convert(name: str, which: int, x: np.ndarray | int) -> np.ndarray:
    n = x if isinstance(x, int) else len(x)
    y = torch.zeros(n, dtype=torch.int32)
    inputs = [] if isinstance(x, int) else [torch.from_numpy(x)]
    module().launch(name, (4,), (32,), 0, [y, *inputs, n, which])
    return y.numpy().view(np.uint32)


def magnitudes(name: str) -> np.ndarray:
    """The finite magnitudes of a format in the order of their codes."""
    dtype, bits, largest, *_ = FORMATS[name]
    codes = np.arange(largest + 1, dtype=np.uint16 if bits == 16 else np.uint8)
    return codes.view(dtype).astype(np.float64)


def expected(name: str, x: np.ndarray, direction: str) -> np.ndarray:
    _, bits, largest, above, nan = FORMATS[name]
    values, size = magnitudes(name), np.abs(x.astype(np.float64))
    # One step further than the largest number lies what rounds to `above`.
    step = values[-1] - values[-2]
    values = np.append(values, values[-1] + step)
    low = np.clip(np.searchsorted(values, size, side="right") - 1, 0, largest)
    exact = (values[low] == size) | np.isinf(size)
    if direction == "nearest":
        middle = values[low] / 2 + values[low + 1] / 2
        up = (size > middle) | ((size == middle) & (low % 2 == 1))
    else:
        away = {"zero": size < 0, "up": x > 0, "down": x < 0}[direction]
        up = away & ~exact
    code = np.where(up, low + 1, low)
    code = np.where(np.isinf(size), largest + 1, code)
    code = np.where(code > largest, above, code)
    code = code | np.where(np.signbit(x), 1 << (bits - 1), 0)
    return np.where(np.isnan(x), nan, code).astype(np.uint32)


def inputs(name: str, dtype) -> np.ndarray:
    """Every fp16 number, every midpoint of the format with its neighbours, and the specials."""
    values = magnitudes(name)
    values = np.append(values, 2 * values[-1] - values[-2])
    with np.errstate(over="ignore"):
        middles = (values[:-1] / 2 + values[1:] / 2).astype(dtype)
        edges = np.concatenate([middles, values.astype(dtype)])
        edges = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, np.inf)])
    specials = np.array([0, np.inf, np.finfo(dtype).max, np.finfo(dtype).tiny], dtype)
    specials = np.append(specials, [np.finfo(dtype).smallest_subnormal, 300000, 70000]).astype(
        dtype
    )
    positive = np.concatenate([edges, specials])
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(dtype)
    return np.concatenate([halves, positive, -positive])


@pytest.mark.parametrize("case", NARROWING)
def test_floats_round_as_the_sorted_values_say(case):
    _, name, direction = NARROWING[case]
    x = inputs(name, np.float32)
    got = convert("narrow", list(NARROWING).index(case), x)
    np.testing.assert_array_equal(got, expected(name, x, direction))


@pytest.mark.parametrize("case", FROM_DOUBLE)
def test_doubles_round_once(case):
    _, name, direction = FROM_DOUBLE[case]
    x = inputs(name, np.float64)
    got = convert("narrow_double", list(FROM_DOUBLE).index(case), x)
    np.testing.assert_array_equal(got, expected(name, x, direction))


@pytest.mark.parametrize("name", WIDENING)
def test_every_code_widens_as_ml_dtypes_says(name):
    dtype, bits, *_ = FORMATS[name]
    got = convert("widen", list(WIDENING).index(name), 1 << bits).view(np.float32)
    codes = np.arange(1 << bits, dtype=np.uint16 if bits == 16 else np.uint8)
    want = codes.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    number = ~np.isnan(want)
    np.testing.assert_array_equal(got.view(np.uint32)[number], want.view(np.uint32)[number])


def scale_codes(x: np.ndarray) -> np.ndarray:
    """e8m0 of the smallest power of two that is at least |x|, 2^-127 to 2^127."""
    fraction, exponent = np.frexp(np.abs(x.astype(np.float64)))
    power = np.where(fraction == 0.5, exponent - 1, exponent)
    code = np.clip(power + 127, 0, 254)
    code = np.where(x == 0, 0, np.where(np.isinf(x), 254, code))
    return np.where(np.isnan(x), 255, code).astype(np.uint32)


def test_scales_are_powers_of_two_rounded_up():
    got = convert("widen", len(WIDENING), 256).view(np.float32)
    want = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    powers = 2.0 ** np.arange(-127.0, 128)
    edges = np.concatenate([powers, np.nextafter(powers, 0), np.nextafter(powers, np.inf)])
    for kernel_name, case, dtype in (
        ("narrow", len(NARROWING), np.float32),
        ("narrow_double", len(FROM_DOUBLE), np.float64),
    ):
        x = np.concatenate([inputs("bf16", dtype), edges.astype(dtype)])
        np.testing.assert_array_equal(convert(kernel_name, case, x), scale_codes(x))


def test_tf32_rounds_ties_away_and_bf16_of_an_integer_is_cut_off():
    x = inputs("half", np.float32)
    x = x[np.isfinite(x)]
    bits = x.view(np.uint32)
    got = convert("narrow", len(NARROWING) + 1, x)
    np.testing.assert_array_equal(got, (bits + 0x1000) & ~np.uint32(0x1FFF))
    whole = np.trunc(x[np.abs(x) < 2**24]).astype(np.float32)
    cut = convert("narrow", len(NARROWING) + 2, whole)
    np.testing.assert_array_equal(cut, (whole + np.float32(0)).view(np.uint32) >> 16)
    rounded = convert("narrow", len(NARROWING) + 3, whole)
    np.testing.assert_array_equal(rounded, expected("bf16", whole + np.float32(0), "nearest"))


@pytest.mark.parametrize("expression", PACKED)
def test_packed_conversions_put_the_first_element_low(expression):
    shift, name = PACKED[expression]
    x = inputs("half" if name == "e8m0" else name, np.float32)
    got = convert("pack", list(PACKED).index(expression), x)
    codes = scale_codes(x) if name == "e8m0" else expected(name, x, "nearest")
    np.testing.assert_array_equal(got, codes | codes[::-1] << shift)


def test_fp4_becomes_fp8_exactly():
    values = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    table = values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).astype(np.uint32)
    base = len(WIDENING) + 1
    c = np.arange(1 << 16)
    np.testing.assert_array_equal(convert("widen", base, 16), table)
    np.testing.assert_array_equal(
        convert("widen", base + 1, 256), table[c[:256] & 15] | table[c[:256] >> 4] << 8
    )
    want = sum(table[c >> 4 * i & 15] << 8 * i for i in range(4))
    np.testing.assert_array_equal(convert("widen", base + 2, 1 << 16), want)
