"""wgmma of sm_90a by tables of the PTX manual: fragments of D and of A in registers, descriptors of
operands in shared memory. A case is a kernel's body, its input and what it must write."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from .tcgen05_tables import SWIZZLES, encode, image_of, numbers_of, operands

# "Matrix Descriptor Format": bits 62-63. The layouts themselves are those of tcgen05_tables.
MODES = {"none": 0, "128B": 1, "64B": 2, "32B": 3}
# element: (types of the helper, K of one instruction, accumulator, tcgen05_tables' name)
ELEMENTS = {
    "f16": ("kFloat16", "kFloat16", 16, "f32"),
    "f16 into f16": ("kFloat16", "kFloat16", 16, "f16"),
    "bf16": ("kBFloat16", "kBFloat16", 16, "f32"),
    "tf32": ("kTensorFloat32", "kTensorFloat32", 8, "f32"),
    "e4m3": ("kFloat8_e4m3", "kFloat8_e4m3", 32, "f32"),
    "e5m2": ("kFloat8_e5m2", "kFloat8_e5m2", 32, "f32"),
    "e4m3 into f16": ("kFloat8_e4m3", "kFloat8_e4m3", 32, "f16"),
    "s8": ("kInt8", "kInt8", 32, "s32"),
    "u8": ("kUInt8", "kUInt8", 32, "s32"),
}
DATA = {"f32": ("kFloat32", torch.float32), "f16": ("kFloat16", torch.half),
        "s32": ("kInt32", torch.int32)}  # fmt: skip
A_WORDS = 131072 // 4  # where register fragments begin in the input, after image_of's bytes


def d_place(thread: int, i: int) -> tuple[int, int]:
    """Row and column of element i of D: "Register Fragments", Accumulator D of .m64nNk*."""
    warp, lane = divmod(thread, 32)
    return 16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + lane % 4 * 2 + i % 2


def a_place(thread: int, i: int, size: int) -> tuple[int, int]:
    """Row and k of element i of A in registers; `size` bytes to an element, so 4 / size to a
    register. Registers: rows lane/4, the same + 8, then the same two at the upper half of K."""
    warp, lane = divmod(thread, 32)
    per = 4 // size
    register, within = divmod(i, per)
    return (
        16 * warp + lane // 4 + 8 * (register % 2),
        (lane % 4 + 4 * (register // 2)) * per + within,
    )


@dataclass(frozen=True)
class Case:
    """D = A B^T (or its negative) of one instruction; modes as in ``image_of``, A's None: from
    registers."""

    element: str
    n: int
    a_mode: tuple[str, bool] | None
    b_mode: tuple[str, bool]
    negate: bool = False

    @property
    def name(self) -> str:
        def word(mode: tuple[str, bool] | None) -> str:
            return "registers" if mode is None else mode[0] + ("_mn" if mode[1] else "")

        sign = "_minus" if self.negate else ""
        return (
            f"wgmma_{self.element.replace(' ', '_')}_n{self.n}_{word(self.a_mode)}"
            f"_{word(self.b_mode)}{sign}"
        )

    @property
    def words(self) -> int:
        """Of the output: each thread's registers in turn."""
        return 128 * self.n // 2 // (2 if ELEMENTS[self.element][3] == "f16" else 1)

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B, small integers: every sum is exact."""
        torch.manual_seed(0)
        return operands(64, self.n, ELEMENTS[self.element][2], self._stored)

    @property
    def _stored(self) -> str:
        return self.element.split()[0]

    @property
    def _modes(self) -> tuple[tuple[str, bool], tuple[str, bool]]:
        return self.a_mode or ("none", False), self.b_mode

    def inputs(self) -> torch.Tensor:
        """Both operands as they lie in shared memory, then A's fragments."""
        a, b = self.draw()
        image, _ = image_of(a, b, self._stored, *self._modes)
        raw = encode(a, self._stored)
        count = raw.numel() // 128
        fragments = torch.stack(
            [
                torch.stack([raw[a_place(t, i, raw.element_size())] for i in range(count)])
                for t in range(128)
            ]
        )
        return torch.cat([image, fragments.contiguous().view(torch.int32).flatten()])

    def want(self) -> torch.Tensor:
        """The output's words."""
        a, b = self.draw()
        product = (a @ b.T) * (-1 if self.negate else 1)
        places = [d_place(t, i) for t, i in itertools.product(range(128), range(self.n // 2))]
        rows, columns = zip(*places, strict=True)
        dtype = DATA[ELEMENTS[self.element][3]][1]
        return product[list(rows), list(columns)].to(dtype).view(torch.int32)

    def body(self) -> str:
        """Of a block of 128 threads: `x` is the input, `y` the output, `shared` 128 KiB."""
        a_type, b_type, k, data = ELEMENTS[self.element]
        number = numbers_of((64, k), (self.n, k), self._stored, *self._modes)
        registers = self.words // 128
        descriptors = "".join(
            f"tl::GmmaDescriptor {which}; tl::initialize_wgmma_descriptor<{MODES[mode[0]]}, "
            f"{number[f'{which}_leading']}, {number[f'{which}_stride']}>({which}, shared + {at});\n"
            for which, mode, at in (("a", self.a_mode or ("none", False), 0),
                                    ("b", self.b_mode, 65536))
        )  # fmt: skip
        types = f"tl::DataType::{a_type}, tl::DataType::{b_type}, tl::DataType::{DATA[data][0]}"
        major = (
            f"{str(bool(self.a_mode and self.a_mode[1])).lower()}, {str(self.b_mode[1]).lower()}"
        )
        sign = ", -1, 1" if self.negate else ""
        source, first = ("rs", "f") if self.a_mode is None else ("ss", "uint64_t(a)")
        return f"""
    for (int i = tid; i < {A_WORDS}; i += 128) ((int*)shared)[i] = x[i];
    tl::fence_proxy_async();
    __syncthreads();
    {descriptors}
    uint32_t c[{registers}], f[4];
    for (int i = 0; i < {registers}; ++i) c[i] = 0;
    for (int i = 0; i < 4; ++i) f[i] = x[{A_WORDS} + tid * 4 + i];
    tl::warpgroup_fence_operand(c, {registers});
    tl::warpgroup_arrive();
    tl::wgmma_{source}<{types}, 64, {self.n}, {k}, {major}{sign}>({first}, uint64_t(b), c, false);
    tl::warpgroup_commit_batch();
    tl::warpgroup_wait<0>();
    tl::warpgroup_fence_operand(c, {registers});
    for (int i = 0; i < {registers}; ++i) y[tid * {registers} + i] = c[i];
"""


K128, K64, K32, KN = (("128B", False), ("64B", False), ("32B", False), ("none", False))
M128, M64, M32, MN = (("128B", True), ("64B", True), ("32B", True), ("none", True))
CASES = [
    Case("f16", 64, K128, K64),
    Case("f16", 16, K32, KN),
    Case("f16", 64, M128, M64),
    Case("f16", 128, M64, M128),
    Case("f16", 64, M32, MN),
    Case("f16", 64, MN, M32),
    Case("bf16", 256, KN, K128),
    Case("bf16", 8, None, K32),
    Case("bf16", 64, None, M128, negate=True),
    Case("f16 into f16", 24, K128, K128),
    Case("f16 into f16", 64, None, K64),
    Case("tf32", 40, K64, K128),
    Case("tf32", 16, None, K32),
    Case("e4m3", 32, K128, K32),
    Case("e5m2", 72, None, K64),
    Case("e4m3 into f16", 16, K32, K128),
    Case("s8", 32, K64, KN),
    Case("u8", 96, KN, K64),
    Case("s8", 8, None, K128),
]
assert set(SWIZZLES) > set(MODES)
