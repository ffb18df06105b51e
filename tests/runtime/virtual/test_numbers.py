"""Number formats: every conversion against torch, bit for bit."""

import pytest
import torch

from .support import bits, run

FLOATS = torch.cat(
    [
        # all bf16 patterns as floats, and their neighbourhoods down to the rounding ties
        (torch.arange(1 << 16, dtype=torch.int32) << 16).view(torch.float32),
        ((torch.arange(1 << 16, dtype=torch.int32) << 16) | 0x8000).view(torch.float32),
        ((torch.arange(1 << 16, dtype=torch.int32) << 16) | 0x7FFF).view(torch.float32),
        ((torch.arange(1 << 16, dtype=torch.int32) << 16) | 0x8001).view(torch.float32),
        torch.linspace(-500, 500, 1 << 14),
        torch.logspace(-45, -4, 1 << 14, base=2),
    ]
)


def convert(source: torch.Tensor, c_source: str, target: torch.dtype, c_target: str):
    out = torch.zeros(len(source), dtype=target)
    run(
        f"{c_target}* y, const {c_source}* x, int n",
        f"for (int i = tid; i < n; i += 256) y[i] = ({c_target})(float)x[i];",
        [out, source, len(source)],
        block=(256,),
        checked=False,
    )
    return out


@pytest.mark.parametrize(
    ("dtype", "name", "patterns"),
    [
        (torch.bfloat16, "bfloat16_t", 1 << 16),
        (torch.float16, "half_t", 1 << 16),
        (torch.float8_e4m3fn, "fp8_e4_t", 1 << 8),
        (torch.float8_e5m2, "fp8_e5_t", 1 << 8),
    ],
)
def test_every_pattern_widens_as_torch_does(dtype, name, patterns):
    storage = torch.int16 if patterns == 1 << 16 else torch.uint8
    source = torch.arange(patterns, dtype=torch.int32).to(storage).view(dtype)
    got, want = convert(source, name, torch.float32, "float"), source.float()
    assert torch.equal(got.isnan(), want.isnan())
    number = ~want.isnan()
    assert torch.equal(bits(got)[number], bits(want)[number])


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "bfloat16_t"), (torch.float16, "half_t")]
)
def test_floats_round_to_16_bits_as_torch_does(dtype, name):
    got, want = convert(FLOATS, "float", dtype, name), FLOATS.to(dtype)
    number = ~want.isnan()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(bits(got)[number], bits(want)[number])
    assert (bits(got)[~number] == 0x7FFF).all()  # the hardware's canonical NaN


@pytest.mark.parametrize(
    ("dtype", "name", "largest"),
    [(torch.float8_e4m3fn, "fp8_e4_t", 448.0), (torch.float8_e5m2, "fp8_e5_t", 57344.0)],
)
def test_floats_round_to_fp8_and_saturate(dtype, name, largest):
    got = convert(FLOATS, "float", dtype, name)
    number = ~FLOATS.isnan()
    want = FLOATS.clamp(-largest, largest).to(dtype)
    assert torch.equal(bits(got)[number], bits(want)[number])
    assert (bits(got)[~number] == 0x7F).all()


def test_packed_fp8_conversion_puts_x_low():
    x = torch.tensor([1.0, -2.0, 0.5, 1000.0])
    y = torch.zeros(2, dtype=torch.int16)
    run(
        "unsigned short* y, const float* x",
        "y[tid] = __nv_cvt_float2_to_fp8x2(((const float2*)x)[tid], __NV_SATFINITE, __NV_E4M3);",
        [y, x],
        block=(2,),
    )
    assert torch.equal(y.view(torch.float8_e4m3fn).float(), torch.tensor([1.0, -2.0, 0.5, 448.0]))


@pytest.mark.parametrize("operator", ["+", "-", "*", "/"])
def test_bf16_arithmetic_rounds_each_operation(operator):
    torch.manual_seed(0)
    a, b = (torch.randn(4096).bfloat16() for _ in range(2))
    y = torch.zeros_like(a)
    run(
        "bfloat16_t* y, const bfloat16_t* a, const bfloat16_t* b",
        f"for (int i = tid; i < 4096; i += 32) y[i] = a[i] {operator} b[i];",
        [y, a, b],
        checked=False,
    )
    want = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator]
    assert torch.equal(bits(y), bits(want))


def test_pairs_and_wide_vectors_lay_out_in_order():
    y = torch.zeros(8, dtype=torch.float32)
    run(
        "float* y",
        """
        uint2 packed;
        ((__nv_bfloat162*)&packed)[0] = __float22bfloat162_rn(make_float2(1.f, 2.f));
        ((__nv_bfloat162*)&packed)[1] = __float22bfloat162_rn(make_float2(3.f, 4.f));
        *(float2*)y = __bfloat1622float2(((__nv_bfloat162*)&packed)[0]);
        *(float2*)(y + 2) = tl::add2(__bfloat1622float2(((__nv_bfloat162*)&packed)[1]),
                                     make_float2(10.f, 20.f));
        int bytes = make_int((signed char)-1, (signed char)2, (signed char)-3, (signed char)4);
        for (int i = 0; i < 4; ++i) y[4 + i] = ((signed char*)&bytes)[i];
        """,
        [y],
        block=(1,),
    )
    assert y.tolist() == [1, 2, 13, 24, -1, 2, -3, 4]
