"""mma.sync by the fragment tables of the PTX manual ("Matrix Fragments for mma.m…"), per lane and
register: every instruction TileLang can emit, what its lanes hold and what they must get."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch

Place = Callable[[int, int], tuple[int, int]]


# D and C: rows of 8, and of 16.
def c8(lane: int, i: int) -> tuple[int, int]:
    return lane // 4, lane % 4 * 2 + i


def c16(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)


# (m, k, bits of an element): places of A (row, k), of B (k, column), and how many a lane has.
FRAGMENTS: dict[tuple[int, int, int], tuple[Place, Place, int, int]] = {
    (8, 4, 64): (
        lambda lane, i: (lane // 4, lane % 4),
        lambda lane, i: (lane % 4, lane // 4), 1, 1,
    ),
    (16, 4, 32): (
        lambda lane, i: (lane // 4 + 8 * i, lane % 4),
        lambda lane, i: (lane % 4, lane // 4), 2, 1,
    ),
    (16, 8, 32): (
        lambda lane, i: (lane // 4 + (8 if i in (1, 3) else 0), lane % 4 + (4 if i >= 2 else 0)),
        lambda lane, i: (lane % 4 + (4 if i >= 1 else 0), lane // 4), 4, 2,
    ),
    (16, 8, 16): (
        lambda lane, i: (lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)),
        lambda lane, i: (lane % 4 * 2 + i, lane // 4), 4, 2,
    ),
    (16, 16, 16): (
        lambda lane, i: (lane // 4 + (8 if i in (2, 3, 6, 7) else 0),
                         lane % 4 * 2 + (i & 1) + (8 if i >= 4 else 0)),
        lambda lane, i: (lane % 4 * 2 + (i & 1) + (8 if i >= 2 else 0), lane // 4), 8, 4,
    ),
    (8, 16, 8): (
        lambda lane, i: (lane // 4, lane % 4 * 4 + i),
        lambda lane, i: (lane % 4 * 4 + i, lane // 4), 4, 4,
    ),
    (16, 32, 8): (
        lambda lane, i: (lane // 4 + (0 if i < 4 or 8 <= i < 12 else 8),
                         lane % 4 * 4 + (i & 3) + (16 if i >= 8 else 0)),
        lambda lane, i: (lane % 4 * 4 + (i & 3) + (16 if i >= 4 else 0), lane // 4), 16, 8,
    ),
    (8, 32, 4): (
        lambda lane, i: (lane // 4, lane % 4 * 8 + i),
        lambda lane, i: (lane % 4 * 8 + i, lane // 4), 8, 8,
    ),
    (16, 32, 4): (
        lambda lane, i: (lane // 4 + (8 if i >= 8 else 0), lane % 4 * 8 + (i & 7)),
        lambda lane, i: (lane % 4 * 8 + (i & 7), lane // 4), 16, 8,
    ),
    (16, 64, 4): (
        lambda lane, i: (lane // 4 + (0 if i < 8 or 16 <= i < 24 else 8),
                         lane % 4 * 8 + (i & 7) + (32 if i >= 16 else 0)),
        lambda lane, i: (lane % 4 * 8 + (i & 7) + (32 if i >= 8 else 0), lane // 4), 32, 16,
    ),
}  # fmt: skip
# TileLang's name: (torch's type, bits, smallest and largest value drawn)
TYPES = {
    "kFloat64": (torch.float64, 64, -9, 9),
    "kTensorFloat32": (torch.float32, 32, -3, 3),
    "kFloat32": (torch.float32, 32, -3, 3),
    "kFloat16": (torch.half, 16, -3, 3),
    "kBFloat16": (torch.bfloat16, 16, -3, 3),
    "kFloat8_e4m3": (torch.float8_e4m3fn, 8, -3, 3),
    "kFloat8_e5m2": (torch.float8_e5m2, 8, -3, 3),
    "kInt8": (torch.int8, 8, -128, 127),
    "kUInt8": (torch.uint8, 8, 0, 255),
    "kInt4": (None, 4, -8, 7),
    "kUInt4": (None, 4, 0, 15),
    "kInt32": (torch.int32, 32, -8, 7),
}


def places(place: Place, count: int) -> tuple[list[int], list[int]]:
    """Rows and columns of all lanes' elements, lane after lane."""
    found = [place(lane, i) for lane, i in itertools.product(range(32), range(count))]
    rows, columns = zip(*found, strict=True)
    return list(rows), list(columns)


def pack(values: torch.Tensor, type_: str) -> torch.Tensor:
    """Lanes' elements as 32-bit words, the first element lowest."""
    dtype, bits, *_ = TYPES[type_]
    if bits == 4:
        low, high = values.view(-1, 2).unbind(1)
        values, dtype = (low & 15) | (high & 15) << 4, torch.uint8
    return values.to(dtype).view(torch.int32)


@dataclass(frozen=True)
class Case:
    """C += A B for small integers, of one warp; the types are TileLang's."""

    a: str
    b: str
    c: str
    m: int
    k: int

    @property
    def name(self) -> str:
        return f"mma_{self.a[1:]}_{self.b[1:]}_{self.c[1:]}_m{self.m}n8k{self.k}".lower()

    @property
    def layout(self) -> tuple[Place, Place, int, int]:
        return FRAGMENTS[self.m, self.k, TYPES[self.a][1]]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Words of A, of B and of C of one lane."""
        _, _, a, b = self.layout
        elements = ((a, self.a), (b, self.b), (self.m // 4, self.c))
        sizes = [count * TYPES[type_][1] // 32 for count, type_ in elements]
        return sizes[0], sizes[1], sizes[2]

    @property
    def words(self) -> int:
        return 32 * self.counts[2]

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        shapes = ((self.m, self.k), (self.k, 8), (self.m, 8))
        return tuple(  # type: ignore[return-value]
            torch.randint(low, high + 1, shape)
            for shape, (_, _, low, high) in zip(
                shapes, (TYPES[self.a], TYPES[self.b], TYPES[self.c]), strict=True
            )
        )

    def inputs(self) -> torch.Tensor:
        """Words of A, B and C, lane after lane."""
        a_place, b_place, a_count, b_count = self.layout
        c_place = c8 if self.m == 8 else c16
        parts = zip(
            self.draw(),
            ((a_place, a_count), (b_place, b_count), (c_place, self.m // 4)),
            (self.a, self.b, self.c),
            strict=True,
        )
        return torch.cat([pack(matrix[places(*where)], type_) for matrix, where, type_ in parts])

    def want(self) -> torch.Tensor:
        a, b, c = self.draw()
        return pack((c + a @ b)[places(c8 if self.m == 8 else c16, self.m // 4)], self.c)

    def body(self) -> str:
        """Of 32 threads: `x` is the input, `y` the output."""
        a, b, c = self.counts
        word = "double" if self.a == "kFloat64" else "unsigned"
        d = {"kFloat64": "double", "kFloat32": "float"}.get(self.c, "unsigned")
        a, b, c = (n // 2 if word == "double" else n for n in (a, b, c))
        types = ", ".join(f"tl::DataType::{t}" for t in (self.a, self.b, self.c))
        return f"""
    {word} a[{a}], b[{b}];
    {d} c[{c}];
    for (int i = 0; i < {a}; ++i) a[i] = ((const {word}*)x)[tid * {a} + i];
    for (int i = 0; i < {b}; ++i) b[i] = ((const {word}*)x)[{32 * a} + tid * {b} + i];
    for (int i = 0; i < {c}; ++i) c[i] = ((const {d}*)x)[{32 * (a + b)} + tid * {c} + i];
    tl::mma_sync<{types}, {self.m}, 8, {self.k}, false, true>(c, a, b);
    for (int i = 0; i < {c}; ++i) (({d}*)y)[tid * {c} + i] = c[i];
"""


FP8 = ("kFloat8_e4m3", "kFloat8_e5m2")
CASES = [
    *(Case("kFloat16", "kFloat16", c, 16, k) for c in ("kFloat16", "kFloat32") for k in (8, 16)),
    Case("kBFloat16", "kBFloat16", "kFloat32", 16, 16),
    *(Case("kTensorFloat32", "kTensorFloat32", "kFloat32", 16, k) for k in (4, 8)),
    *(Case(t, t, "kInt32", *mk) for t in ("kInt8", "kUInt8") for mk in ((8, 16), (16, 32))),
    *(
        Case(t, t, "kInt32", *mk)
        for t in ("kInt4", "kUInt4")
        for mk in ((8, 32), (16, 32), (16, 64))
    ),
    *(Case(a, b, c, 16, 32) for a in FP8 for b in FP8 for c in ("kFloat16", "kFloat32")),
    Case("kFloat64", "kFloat64", "kFloat64", 8, 4),
]


@dataclass(frozen=True)
class Scaled:
    """D = A B + C of fp4 with a ue4m3 scale to 16 elements along k (mxf4nvf4, scale_vec::4X), which
    lanes `thread_a` and `thread_b` of each quarter give; the others hold NaN."""

    thread_a: int
    thread_b: int
    words = 128

    @property
    def name(self) -> str:
        return f"mma_nvf4_scales_of_lanes_{self.thread_a}_{self.thread_b}"

    def draw(self) -> tuple[np.ndarray, ...]:
        """Codes of A [16, 64] and B [64, 8], C, codes of their scales [16, 4] and [8, 4]."""
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 16, (16, 64)), rng.integers(0, 16, (64, 8))
        scales = rng.integers(0x30, 0x41, (16, 4)), rng.integers(0x30, 0x41, (8, 4))
        return a, b, rng.integers(-8, 8, (16, 8)), *scales

    def inputs(self) -> torch.Tensor:
        """Words of A, B, C and both scales, lane after lane. The scales of row m are in the lane
        m % 8 * 4 + 2 thread_a + m / 8, those of column n in n * 4 + thread_b."""
        a, b, c, scales_a, scales_b = self.draw()
        a_place, b_place, a_count, b_count = FRAGMENTS[16, 64, 4]
        registers = np.full((2, 32, 4), 0x7F, np.uint8)
        for row in range(16):
            registers[0, row % 8 * 4 + 2 * self.thread_a + row // 8] = scales_a[row]
        for column in range(8):
            registers[1, column * 4 + self.thread_b] = scales_b[column]
        operands = ((a, a_place, a_count, "kInt4"), (b, b_place, b_count, "kInt4"),
                    (c, c16, 4, "kFloat32"))  # fmt: skip
        return torch.cat(
            [pack(torch.from_numpy(v)[places(p, count)], type_) for v, p, count, type_ in operands]
            + [torch.from_numpy(registers).view(torch.int32).flatten()]
        )

    def want(self) -> torch.Tensor:
        def values(codes: np.ndarray, dtype: type) -> np.ndarray:
            return codes.astype(np.uint8).view(dtype).astype(np.float64)

        a, b, c, scales_a, scales_b = self.draw()
        fp4, fp8 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
        scaled_a = values(a, fp4) * values(scales_a, fp8).repeat(16, axis=1)
        scaled_b = values(b, fp4) * values(scales_b, fp8).repeat(16, axis=1).T
        # Few bits: every sum is exact.
        return pack(torch.from_numpy(c + scaled_a @ scaled_b)[places(c16, 4)], "kFloat32")

    def body(self) -> str:
        """Of 32 threads: `x` is the input, `y` the output."""
        return f"""
    const unsigned* w = (const unsigned*)x;
    float d[4], c[4];
    unsigned a[4], b[2];
    for (int i = 0; i < 4; ++i) a[i] = w[tid * 4 + i];
    for (int i = 0; i < 2; ++i) b[i] = w[128 + tid * 2 + i];
    for (int i = 0; i < 4; ++i) c[i] = ((const float*)x)[192 + tid * 4 + i];
    tl::sm120_mma_sync_blockscaled<tl::SM120MmaBlockScaledKind::kMxf4nvf4, 4,
        tl::SM120MmaScaleType::kUE4M3>(d, a, b, c, w[320 + tid], w[352 + tid], 0, {self.thread_a},
                                       0, {self.thread_b});
    for (int i = 0; i < 4; ++i) ((float*)y)[tid * 4 + i] = d[i];
"""


SCALED = [Scaled(0, 0), Scaled(1, 2), Scaled(0, 3)]
