"""Mathematics and bit intrinsics against NumPy; rounding directions against exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel, run

# One float argument: CUDA expression of x, the same in double, arguments.
X = np.array([0.25, 0.5, 0.9, 1.0, 1.5, 2.75, 7.0], np.float32)
FUNCTIONS = {
    "__expf(x)": np.exp,
    "__exp10f(x)": lambda x: 10.0**x,
    "__logf(x)": np.log,
    "__log2f(x)": np.log2,
    "__log10f(x)": np.log10,
    "__sinf(x)": np.sin,
    "__cosf(x)": np.cos,
    "__tanf(x)": np.tan,
    "__powf(x, 1.5f)": lambda x: x**1.5,
    "rsqrtf(x)": lambda x: x**-0.5,
    "rcbrtf(x)": lambda x: np.cbrt(x) ** -1,
    "exp10f(x)": lambda x: 10.0**x,
    "sinpif(x)": lambda x: np.sin(np.pi * x),
    "cospif(x)": lambda x: np.cos(np.pi * x),
    "erff(x)": np.vectorize(math.erf),
    "erfcxf(x)": np.vectorize(lambda x: math.exp(x * x) * math.erfc(x)),
    "normcdff(x)": np.vectorize(lambda x: math.erfc(-x / math.sqrt(2)) / 2),
    "erff(erfinvf(x / 8))": lambda x: x / 8,
    "erfcf(erfcinvf(x / 4))": lambda x: x / 4,
    "normcdff(normcdfinvf(x / 8))": lambda x: x / 8,
    "cyl_bessel_i0f(x)": np.i0,
    "norm3df(x, 2.f, 3.f)": lambda x: np.sqrt(x * x + 13),
    "rnorm4df(x, 1.f, 2.f, 3.f)": lambda x: (x * x + 14) ** -0.5,
    "rhypotf(x, 2.f)": lambda x: (x * x + 4) ** -0.5,
    "tl::fast_rcp(x)": lambda x: 1 / x,
    "__fdividef(1.f, x)": lambda x: 1 / x,
    "tl::pow_of_int<3>(x)": lambda x: x**3,
    "__saturatef(x - 1)": lambda x: np.clip(x - 1, 0, 1),
    "(float)rsqrt((double)x)": lambda x: x**-0.5,
    "(float)sinpi((double)x)": lambda x: np.sin(np.pi * x),
}
HALF = {
    "hexp": np.exp, "hexp2": np.exp2, "hexp10": lambda x: 10.0**x, "hlog": np.log,
    "hlog2": np.log2, "hlog10": np.log10, "hsqrt": np.sqrt, "hrsqrt": lambda x: x**-0.5,
    "hrcp": lambda x: 1 / x, "hsin": np.sin, "hcos": np.cos, "htan": np.tan, "hsinh": np.sinh,
    "hcosh": np.cosh, "htanh": np.tanh, "hatan": np.arctan, "herf": np.vectorize(math.erf),
    "hfloor": np.floor, "hceil": np.ceil, "hrint": np.rint, "hnearbyint": np.rint,
    "htrunc": np.trunc, "__habs": np.abs, "__hneg": np.negative,
}  # fmt: skip


def test_functions_are_accurate():
    y = torch.zeros(len(FUNCTIONS), len(X))
    lines = "".join(f"y[{i * len(X)} + tid] = {e};\n" for i, e in enumerate(FUNCTIONS))
    run("float* y, const float* v", f"float x = v[tid];\n{lines}", [y, torch.from_numpy(X)],
        block=(len(X),))  # fmt: skip
    for got, (name, f) in zip(y.numpy(), FUNCTIONS.items(), strict=True):
        want = f(X.astype(np.float64))
        np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", ["half_t", "bfloat16_t"])
def test_16_bit_functions_round_once(name):
    dtype = torch.float16 if name == "half_t" else torch.bfloat16
    y = torch.zeros(len(HALF), len(X), dtype=dtype)
    lines = "".join(f"y[{i * len(X)} + tid] = {f}(x);\n" for i, f in enumerate(HALF))
    x = torch.from_numpy(X).to(dtype)
    run(f"{name}* y, const {name}* v", f"{name} x = v[tid];\n{lines}", [y, x], block=(len(X),))
    for got, (function, f) in zip(y, HALF.items(), strict=True):
        want = torch.from_numpy(np.asarray(f(x.double().numpy()))).float().to(dtype)
        assert torch.equal(got, want), function


def rounded(value: Fraction, dtype, direction: str):
    """`value` in a format of numpy, in one of CUDA's directions."""
    near = dtype(float(value)) if dtype is np.float64 else dtype(np.float64(float(value)))
    # Two neighbours around the exact value, whatever the conversion above did.
    low = high = near
    while Fraction(float(low)) > value:
        low = np.nextafter(low, dtype(-np.inf))
    while Fraction(float(high)) < value:
        high = np.nextafter(high, dtype(np.inf))
    while (step := np.nextafter(low, dtype(np.inf))) <= high and Fraction(float(step)) <= value:
        low = step
    while (step := np.nextafter(high, dtype(-np.inf))) >= low and Fraction(float(step)) >= value:
        high = step
    if direction == "rn":
        below, above = value - Fraction(float(low)), Fraction(float(high)) - value
        if below == above:
            even = np.asarray(low).view(np.uint32 if dtype is np.float32 else np.uint64) % 2 == 0
            return low if even else high
        return low if below < above else high
    return {"rz": low if value > 0 else high, "ru": high, "rd": low}[direction]


@pytest.mark.parametrize(
    ("dtype", "name", "p"), [(np.float32, "float", "f"), (np.float64, "double", "d")]
)
def test_rounding_directions_are_exact(dtype, name, p):
    rng = np.random.default_rng(0)
    n = 64
    a, b, c = (
        (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)).astype(dtype) for _ in range(3)
    )
    fma = "__fmaf" if p == "f" else "__fma"
    operations = {
        f"__{p}add_M(a, b)": lambda x, y, z: x + y,
        f"__{p}sub_M(a, b)": lambda x, y, z: x - y,
        f"__{p}mul_M(a, b)": lambda x, y, z: x * y,
        f"__{p}div_M(a, b)": lambda x, y, z: x / y,
        f"{fma}_M(a, b, c)": lambda x, y, z: x * y + z,
        f"__{p}rcp_M(a)": lambda x, y, z: 1 / x,
    }
    modes = ["rn", "rz", "ru", "rd"]
    y = np.zeros((len(operations) + 1, len(modes), n), dtype)
    lines = [
        f"y[{(i * 4 + j) * n} + tid] = {e.replace('M', mode)};"
        for i, e in enumerate([*operations, f"__{p}sqrt_M(a < 0 ? -a : a)"])
        for j, mode in enumerate(modes)
    ]
    out = torch.from_numpy(y)
    run(
        f"{name}* y, const {name}* pa, const {name}* pb, const {name}* pc",
        f"{name} a = pa[tid], b = pb[tid], c = pc[tid];\n" + "\n".join(lines),
        [out, torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(c)],
        block=(n,),
    )
    for got, (expression, f) in zip(y, operations.items(), strict=False):
        for row, mode in zip(got, modes, strict=True):
            exact = [f(*map(Fraction, map(float, v))) for v in zip(a, b, c, strict=True)]
            want = np.array([rounded(e, dtype, mode) for e in exact])
            np.testing.assert_array_equal(row, want, err_msg=f"{expression} {mode}")
    below, above = y[-1][3].astype(np.longdouble), y[-1][2].astype(np.longdouble)
    size = np.abs(a).astype(np.longdouble)
    assert ((below**2 <= size) & (above**2 >= size)).all()
    assert (np.nextafter(y[-1][3], dtype(np.inf)) >= y[-1][2]).all()
    assert np.array_equal(y[-1][0], np.sqrt(np.abs(a)))


def test_products_side_by_side_round_before_their_difference_and_sum(seed):
    draw = torch.Generator().manual_seed(seed)
    x, cos, sin = (torch.randn(256, n, generator=draw) for n in (4, 2, 2))
    y = torch.zeros(256, 4)
    run(
        "float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ cos,"
        " const float* __restrict__ sin",
        """
        float row[4], c[2], s[2], p[4];
        *(float4*)row = *(float4*)(x + tid * 4);
        *(float2*)c = *(float2*)(cos + tid * 2);
        *(float2*)s = *(float2*)(sin + tid * 2);
        #pragma unroll
        for (int k = 0; k < 2; ++k) {
          #pragma unroll
          for (int i = 0; i < 2; ++i) {
            p[i] = row[2 * k + i] * c[k];
            p[i + 2] = row[2 * k + i] * s[k];
          }
          row[2 * k] = p[0] - p[3];
          row[2 * k + 1] = p[2] + p[1];
        }
        *(float4*)(y + tid * 4) = *(float4*)row;
        """,
        [y, x, cos, sin],
        block=(256,),
        checked=False,
    )
    a, b = x.view(256, 2, 2).unbind(-1)
    assert torch.equal(y.view(256, 2, 2), torch.stack((a * cos - b * sin, a * sin + b * cos), -1))


def test_zero_and_nan_in_extremes_and_clamps():
    y = torch.zeros(16)
    run(
        "float* y",
        """
        float n = NAN, z = 0.f, m = -z;
        float r[16] = {fmaxf(m, z), fmaxf(z, m), fminf(z, m), fminf(m, z), max(n, 1.f), min(2.f, n),
                       tl::fast_max(n, 3.f), tl::clamp(n, 0.f, 1.f), tl::clamp(5.f, 0.f, 1.f),
                       tl::clamp(0.5f, n, 1.f), (float)tl::fast_max((double)n, 3.0),
                       (float)tl::fast_max(3.0, (double)n), tl::fast_rcp(1e-39f),
                       __fdividef(1.f, 2e38f), __fdividef(INFINITY, 2e38f),
                       tl::RoundTiesAwayFromZero(-2.5f)};
        for (int i = 0; i < 16; ++i) y[i] = r[i];
        """,
        [y],
        block=(1,),
    )
    nan = math.nan
    want = [0.0, 0.0, -0.0, -0.0, 1, 2, 3, nan, 1, nan, nan, 3, math.inf, 0, nan, -3]
    np.testing.assert_array_equal(y.numpy(), np.array(want, np.float32))
    assert np.signbit(y.numpy()[:4]).tolist() == [False, False, True, True]


@pytest.mark.parametrize("name", ["half", "__nv_bfloat16"])
def test_16_bit_fma_rounds_once(name):
    dtype = torch.float16 if name == "half" else torch.bfloat16
    a, b, c = (torch.randn(4096, generator=torch.manual_seed(i)).to(dtype) for i in range(3))
    # Products halfway between two numbers, and a third term too small for a float's last bit.
    half_way = (3, 683 / 2048, 2.0**-24) if name == "half" else (7, 37 / 256, -(2.0**-30))
    for i, sign in enumerate((1, -1)):
        a[i], b[i], c[i] = sign * half_way[0], half_way[1], sign * half_way[2]
    y = torch.zeros_like(a)
    run(
        f"{name}* y, const {name}* a, const {name}* b, const {name}* c",
        "for (int i = tid; i < 4096; i += 32) y[i] = __hfma(a[i], b[i], c[i]);",
        [y, a, b, c],
        checked=False,
    )
    bits, exponent = (11, -14) if name == "half" else (8, -126)
    for got, *terms in zip(*(v.double().tolist() for v in (y, a, b, c)), strict=True):
        exact = Fraction(terms[0]) * Fraction(terms[1]) + Fraction(terms[2])
        scale = max(math.frexp(float(exact))[1] - bits, exponent - bits + 1)
        assert got == float(round(exact / Fraction(2) ** scale) * Fraction(2) ** scale)


def integer_cases():
    x, y = 0x89ABCDEF, 0x01234567
    s8 = [int(np.int8(b)) for b in (0xEF - 256, 0xCD - 256, 0xAB - 256, 0x89 - 256)]
    return {
        "__popc(x)": bin(x).count("1"),
        "__popcll(w)": bin(x << 32 | y).count("1"),
        "__clz((int)y)": 7,
        "__clz(0)": 32,
        "__clzll((long long)y)": 39,
        "__ffs((int)(x & 0xf00))": 9,
        "__ffsll(0)": 0,
        "__brev(x)": int(f"{x:032b}"[::-1], 2),
        "(unsigned)(__brevll(w) >> 32)": int(f"{y:032b}"[::-1], 2),
        "__byte_perm(x, y, 0x7531)": 0x0145_89CD,
        "__byte_perm(x, y, 0xc840)": 0x00FF_67EF,
        "__funnelshift_l(x, y, 8)": 0x23456789,
        "__funnelshift_r(x, y, 40)": 0x6789ABCD,
        "__funnelshift_lc(x, y, 40)": x,
        "__funnelshift_rc(x, y, 40)": y,
        "__fns(x, 4, 2)": 6,
        "__fns(x, 31, -1)": 31,
        "__fns(x, 4, 0)": 0xFFFFFFFF,
        "__fns(x, 0, 40)": 0xFFFFFFFF,
        "__umulhi(x, y)": x * y >> 32,
        "__mulhi((int)x, (int)y)": ((x - (1 << 32)) * y >> 32) & 0xFFFFFFFF,
        "(unsigned)__umul64hi(w, w)": ((x << 32 | y) ** 2 >> 64) & 0xFFFFFFFF,
        "__usad(y, x, 3u)": x - y + 3,
        "__hadd(-3, 4)": 0,
        "__rhadd(3, 4)": 4,
        "__dp4a((int)x, (int)x, 5)": (sum(v * v for v in s8) + 5) & 0xFFFFFFFF,
        "__dp4a(x, x, 5u)": sum(v * v for v in (0xEF, 0xCD, 0xAB, 0x89)) + 5,
        "__dp2a_lo(x, y, 1u)": 0xCDEF * 0x67 + 0x89AB * 0x45 + 1,
        "__dp2a_hi(x, y, 1u)": 0xCDEF * 0x23 + 0x89AB * 0x01 + 1,
        "__float_as_uint(-2.f)": 0xC0000000,
        "__double2hiint(1.0)": 0x3FF00000,
        "__float2int_rn(2.5f)": 2,
        "__float2int_ru(2.1f)": 3,
        "__float2int_rd(-2.1f)": 0xFFFFFFFD,
        "__float2int_rz(3e9f)": 0x7FFFFFFF,
        "__float2uint_rz(-1.f)": 0,
        "__float2int_rn(NAN)": 0,
        "__half2int_rn(half(3.5f))": 4,
        "(unsigned)tl_pack_uint4x2(3, 12)": 0xC3,
        "(unsigned)(tl_int4_packed_load((signed char*)&x, 3) + 16)": 12,
        "tl_uint4_packed_load((unsigned char*)&x, 7)": 8,
        "pack_b8x4((char)1, (char)2, (char)3, (char)4)": 0x04030201,
        "tl::broadcast<uint4>((unsigned char)7).z": 0x07070707,
    }


def test_integer_and_bit_intrinsics():
    cases = integer_cases()
    y = torch.zeros(len(cases), dtype=torch.int32)
    lines = "\n".join(f"out[{i}] = (unsigned)({e});" for i, e in enumerate(cases))
    run(
        "unsigned* out",
        "unsigned x = 0x89abcdefu, y = 0x01234567u;"
        f" unsigned long long w = (unsigned long long)x << 32 | y;\n{lines}",
        [y],
        block=(1,),
    )
    got = [v & 0xFFFFFFFF for v in y.tolist()]
    assert dict(zip(cases, got, strict=True)) == {k: v & 0xFFFFFFFF for k, v in cases.items()}


def test_packed_nibbles_and_dp4a_through_pointers():
    y = torch.zeros(4, dtype=torch.int32)
    run(
        "int* y",
        """
        signed char bytes[4] = {0, 0, 0, 0};
        for (int i = 0; i < 8; ++i) tl_int4_packed_store(bytes, i, i - 4);
        for (int i = 0; i < 8; ++i) y[0] += tl_int4_packed_load(bytes, i) * (i + 1);
        int a = 0x01020304, b = 0x01ff0201;
        y[1] = 10;
        DP4A(&a, &b, y + 1);
        """,
        [y],
        block=(1,),
    )
    assert y[0] == sum((i - 4) * (i + 1) for i in range(8))
    assert y[1] == 10 + 4 * 1 + 3 * 2 + 2 * -1 + 1 * 1


def test_prints_come_out_by_block_and_are_tilelangs(capfd):
    run(
        "float* y",
        """
        if (tid == 1) {
          printf("block %d\\n", (int)blockIdx.x);
          debug_print_msg("here");
          debug_print_var("v", 1.5f);
          debug_print_buffer_value("b", "acc", 3, half_t(2.f));
          debug_print_var("flag", true);
        }
        """,
        [torch.zeros(1)],
        grid=(3,),
        threads=3,
        seed=5,
    )
    place = "BlockIdx=({b}, 0, 0), ThreadIdx=(1, 0, 0)"
    block = (
        "block {b}\n"
        f"msg='here' {place}\n"
        f"msg='v' {place}: dtype=float value=1.500000\n"
        f"msg='b' {place}: buffer=acc, index=3, dtype=half_t value=2.000000\n"
        f"msg='flag' {place}: dtype=bool value=true\n"
    )
    assert capfd.readouterr().out == "".join(block.format(b=b) for b in range(3))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("device_assert(tid != 3);", r"thread \(3, 0, 0\): device assertion failed"),
        ('device_assert_with_msg(tid != 4, "no");', r"thread \(4, 0, 0\).*failed: no"),
        ("assert(tid < 5);", r"thread \(5, 0, 0\).*failed: tid < 5"),
        ("if (tid == 6) __trap();", r"thread \(6, 0, 0\): __trap"),
    ],
)
def test_assertions_name_the_thread_and_their_words(body, words):
    with pytest.raises(virtual.VirtualError, match=words):
        run("int* y", body, [torch.zeros(1, dtype=torch.int32)])


def test_what_was_printed_before_an_error_comes_out(capfd):
    with pytest.raises(virtual.VirtualError, match="assertion failed"):
        run("int* y", 'printf("before\\n"); assert(tid < 0);', [torch.zeros(1, dtype=torch.int32)])
    assert capfd.readouterr().out == "before\n"


def test_shared_accesses_and_addresses():
    y = torch.zeros(4, dtype=torch.int32)
    text = kernel(
        "unsigned* y",
        """
        extern __shared__ __align__(1024) uint4 s[];
        tl::st_bulk_shared<64, 0>(s);
        tl::store_shared_128(s + 1, make_uint4(1, 2, 3, 4));
        tl::store_shared_64(s + 2, make_uint2(5, 6));
        tl::store_shared_32(s + 3, 7);
        y[0] = tl::load_shared_128(s + 1).w;
        y[1] = tl::load_shared_64(s + 2).y;
        y[2] = tl::load_shared_32(s + 3);
        y[3] = smem_ptr_to_uint(s + 1) - smem_ptr_to_uint(s) + tl::load_shared_32(s);
        """,
    )
    virtual.VirtualModule(text, checked=True).launch("k", (1,), (1,), 64, [y])
    assert y.tolist() == [4, 6, 7, 16]
