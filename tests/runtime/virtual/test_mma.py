"""mma.sync with the fragment tables of the PTX manual, written down here per lane and register."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel, run


def one_hot(m: int, n: int, k: int, a_of, b_of, c_of, a_count: int, b_count: int, c_count: int):
    """Places of every lane's elements: (row, k), (k, column) and (row, column)."""
    a = [[a_of(lane, i) for i in range(a_count)] for lane in range(32)]
    b = [[b_of(lane, i) for i in range(b_count)] for lane in range(32)]
    c = [[c_of(lane, i) for i in range(c_count)] for lane in range(32)]
    assert sorted(itertools.chain(*a)) == sorted(itertools.product(range(m), range(k)))
    assert sorted(itertools.chain(*b)) == sorted(itertools.product(range(k), range(n)))
    assert sorted(itertools.chain(*c)) == sorted(itertools.product(range(m), range(n)))
    return a, b, c


# PTX ISA, "Matrix Fragments for mma.m8n8k4 with .f64", "mma.m8n8k16" of .s8, "mma.m8n8k32" and
# "mma.m16n8k64" of .s4 (also .e2m1).
def c8(lane, i):
    return lane // 4, lane % 4 * 2 + i


def c16(lane, i):
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)


SHAPES = {
    "f64 m8n8k4": (
        (8, 8, 4),
        lambda lane, i: (lane // 4, lane % 4),
        lambda lane, i: (lane % 4, lane // 4),
        c8,
        (1, 1, 2),
    ),
    "s8 m8n8k16": (
        (8, 8, 16),
        lambda lane, i: (lane // 4, lane % 4 * 4 + i),
        lambda lane, i: (lane % 4 * 4 + i, lane // 4),
        c8,
        (4, 4, 2),
    ),
    "s4 m8n8k32": (
        (8, 8, 32),
        lambda lane, i: (lane // 4, lane % 4 * 8 + i),
        lambda lane, i: (lane % 4 * 8 + i, lane // 4),
        c8,
        (8, 8, 2),
    ),
    "s4 m16n8k32": (
        (16, 8, 32),
        lambda lane, i: (lane // 4 + (8 if i >= 8 else 0), lane % 4 * 8 + (i & 7)),
        lambda lane, i: (lane % 4 * 8 + (i & 7), lane // 4),
        c16,
        (16, 8, 4),
    ),
    "s4 m16n8k64": (
        (16, 8, 64),
        lambda lane, i: (
            lane // 4 + (0 if i < 8 or 16 <= i < 24 else 8),
            lane % 4 * 8 + (i & 7) + (32 if i >= 16 else 0),
        ),
        lambda lane, i: (lane % 4 * 8 + (i & 7) + (32 if i >= 8 else 0), lane // 4),
        c16,
        (32, 16, 4),
    ),
}
CASES = [
    ("f64 m8n8k4", "kFloat64", "kFloat64", "double"),
    ("s8 m8n8k16", "kInt8", "kInt32", "int"),
    ("s8 m8n8k16", "kUInt8", "kInt32", "int"),
    ("s4 m8n8k32", "kInt4", "kInt32", "int"),
    ("s4 m8n8k32", "kUInt4", "kInt32", "int"),
    ("s4 m16n8k32", "kInt4", "kInt32", "int"),
    ("s4 m16n8k32", "kUInt4", "kInt32", "int"),
    ("s4 m16n8k64", "kInt4", "kInt32", "int"),
    ("s4 m16n8k64", "kUInt4", "kInt32", "int"),
]


def nibbles(codes: np.ndarray) -> np.ndarray:
    codes = codes.astype(np.uint8) & 15
    return codes[:, 0::2] | codes[:, 1::2] << 4


def gather(matrix: np.ndarray, places) -> np.ndarray:
    return np.array([[matrix[place] for place in lane] for lane in places])


@pytest.fixture(scope="module")
def small_shapes():
    text = ""
    for i, (shape, kind, c_kind, c_type) in enumerate(CASES):
        (m, n, k), *_, (a_count, b_count, c_count) = SHAPES[shape]
        register, size = (
            ("double", 1) if kind == "kFloat64" else ("unsigned", 4 if "8 " in shape[:3] else 8)
        )
        text += kernel(
            f"{c_type}* c, const {register}* a, const {register}* b",
            f"using D = tl::DataType; tl::mma_sync<D::{kind}, D::{kind}, D::{c_kind}, {m}, {n},"
            f" {k}, false, true>(c + tid * {c_count}, a + tid * {a_count // size},"
            f" b + tid * {b_count // size});",
            f"case{i}",
        )
    return virtual.VirtualModule(text, checked=True)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{CASES[i][0]} {CASES[i][1]}")
def test_small_shapes(small_shapes, case):
    shape, kind, _, _ = CASES[case]
    sizes, a_of, b_of, c_of, counts = SHAPES[shape]
    m, n, k = sizes
    a_places, b_places, c_places = one_hot(m, n, k, a_of, b_of, c_of, *counts)
    rng = np.random.default_rng(0)
    low, high = {"kFloat64": (-9, 9), "kInt8": (-128, 128), "kUInt8": (0, 256)}.get(
        kind, (-8, 8) if kind == "kInt4" else (0, 16)
    )
    a, b, c = (rng.integers(low, high, s) for s in ((m, k), (k, n), (m, n)))
    a_bits, b_bits, c_bits = gather(a, a_places), gather(b, b_places), gather(c, c_places)
    if kind == "kFloat64":
        a_bits, b_bits, c_bits = (v.astype(np.float64) for v in (a_bits, b_bits, c_bits))
    else:
        pack = nibbles if "Int4" in kind else lambda v: v.astype(np.uint8)
        a_bits, b_bits = (np.ascontiguousarray(pack(v)).view(np.int32) for v in (a_bits, b_bits))
        c_bits = c_bits.astype(np.int32)
    out = torch.from_numpy(c_bits)
    args = [out, torch.from_numpy(a_bits), torch.from_numpy(b_bits)]
    small_shapes.launch(f"case{case}", (1,), (32,), 0, args)
    want = gather(c + a @ b, c_places)
    np.testing.assert_array_equal(out.numpy(), want.astype(c_bits.dtype))


@pytest.mark.parametrize(("thread_a", "thread_b"), [(0, 0), (1, 2), (0, 3)])
def test_block_scaled_nvf4_takes_the_scales_of_the_selected_lanes(thread_a, thread_b):
    sizes, a_of, b_of, c_of, counts = SHAPES["s4 m16n8k64"]
    a_places, b_places, c_places = one_hot(*sizes, a_of, b_of, c_of, *counts)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 16, (16, 64)), rng.integers(0, 16, (64, 8))
    scales_a, scales_b = rng.integers(0x30, 0x41, (16, 4)), rng.integers(0x30, 0x41, (8, 4))
    c = rng.integers(-8, 8, (16, 8)).astype(np.float32)
    # Lanes that are not selected hold NaN scales.
    registers_a, registers_b = (np.full((32, 4), 0x7F, np.uint8) for _ in range(2))
    for row in range(16):
        registers_a[row % 8 * 4 + 2 * thread_a + row // 8] = scales_a[row]
    for column in range(8):
        registers_b[column * 4 + thread_b] = scales_b[column]
    out = torch.zeros(32, 4)
    run(
        "float* d, const unsigned* a, const unsigned* b, const float* c, const unsigned* sa,"
        " const unsigned* sb",
        "tl::sm120_mma_sync_blockscaled<tl::SM120MmaBlockScaledKind::kMxf4nvf4, 4,"
        " tl::SM120MmaScaleType::kUE4M3>(d + tid * 4, a + tid * 4, b + tid * 2, c + tid * 4,"
        f" sa[tid], sb[tid], 0, {thread_a}, 0, {thread_b});",
        [
            out,
            torch.from_numpy(np.ascontiguousarray(nibbles(gather(a, a_places))).view(np.int32)),
            torch.from_numpy(np.ascontiguousarray(nibbles(gather(b, b_places))).view(np.int32)),
            torch.from_numpy(gather(c, c_places)),
            torch.from_numpy(registers_a.view(np.int32)[:, 0].copy()),
            torch.from_numpy(registers_b.view(np.int32)[:, 0].copy()),
        ],
    )

    def values(codes, dtype):
        return codes.astype(np.uint8).view(dtype).astype(np.float64)

    fp4, fp8 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
    scaled_a = values(a, fp4) * values(scales_a, fp8).repeat(16, axis=1)
    scaled_b = values(b, fp4) * values(scales_b, fp8).repeat(16, axis=1).T
    want = gather(c + scaled_a @ scaled_b, c_places)
    np.testing.assert_array_equal(out.numpy(), want)  # few bits: every sum is exact


@pytest.mark.parametrize("count", [1, 2, 4])
def test_byte_stmatrix_stores_the_transpose(count):
    # PTX ISA, "stmatrix" .m16n8: lane l holds rows l/4 and l/4 + 8, columns 2(l%4) and + 1
    fragments = np.zeros((32, count, 4), np.uint8)
    matrices = np.random.default_rng(0).integers(0, 256, (count, 16, 8)).astype(np.uint8)
    for lane, matrix, e in itertools.product(range(32), range(count), range(4)):
        row, column = lane // 4 + 8 * (e // 2), lane % 4 * 2 + e % 2
        fragments[lane, matrix, e] = matrices[matrix, row, column]
    y = torch.zeros(count * 128, dtype=torch.uint8)
    values = ", ".join(f"r[{i}]" for i in range(count))
    run(
        "unsigned char* y, const int* x",
        f"""
        extern __shared__ __align__(1024) unsigned char s[];
        int r[{count}];
        for (int i = 0; i < {count}; ++i) r[i] = x[tid * {count} + i];
        tl::ptx_stmatrix_m16n8_x{count}_trans(s + tid % {count * 8} * 16, {values});
        __syncthreads();
        for (int i = tid; i < {count * 128}; i += 32) y[i] = s[i];
        """,
        [y, torch.from_numpy(fragments.reshape(32, -1).view(np.int32))],
        smem=count * 128,
    )
    want = matrices.transpose(0, 2, 1)
    np.testing.assert_array_equal(y.numpy().reshape(count, 8, 16), want)


ROUNDED = {"kFloat8_e4m3": torch.float8_e4m3fn, "kFloat8_e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("b_kind", ROUNDED)
@pytest.mark.parametrize("a_kind", ROUNDED)
@pytest.mark.parametrize("c_kind", ["kFloat32", "kFloat16"])
def test_fp8_mixes(a_kind, b_kind, c_kind):
    def a_of(lane, i):
        row = lane // 4 + (0 if i < 4 or 8 <= i < 12 else 8)
        return row, lane % 4 * 4 + i % 4 + (16 if i >= 8 else 0)

    def b_of(lane, i):
        return lane % 4 * 4 + i % 4 + (16 if i >= 4 else 0), lane // 4

    places = one_hot(16, 8, 32, a_of, b_of, c16, 16, 8, 4)
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-3, 4, s) for s in ((16, 32), (32, 8), (16, 8)))
    c_type = torch.float16 if c_kind == "kFloat16" else torch.float32
    tensors = [
        torch.from_numpy(gather(matrix, place).astype(np.float32)).to(dtype).contiguous()
        for matrix, place, dtype in zip(
            (c, a, b),
            (places[2], *places[:2]),
            (c_type, ROUNDED[a_kind], ROUNDED[b_kind]),
            strict=True,
        )
    ]
    registers = 2 if c_kind == "kFloat16" else 4
    run(
        "unsigned* c, const unsigned* a, const unsigned* b",
        f"using D = tl::DataType; tl::mma_sync<D::{a_kind}, D::{b_kind}, D::{c_kind}, 16, 8, 32,"
        f" false, true>(c + tid * {registers}, a + tid * 4, b + tid * 2);",
        [t.view(torch.int32) for t in tensors],
    )
    want = torch.from_numpy(gather(c + a @ b, places[2]).astype(np.float32))
    assert torch.equal(tensors[0].float(), want)
