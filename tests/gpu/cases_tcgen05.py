"""Cases of sm_100a's tensor memory and its matrix instructions, by the manual's tables."""

# ruff: noqa: E501 (a statement of a kernel is a line)
from __future__ import annotations

import itertools

import torch

from ..runtime.virtual.tcgen05_tables import (
    ELEMENTS,
    FRAGMENTS,
    d_place,
    encode,
    idesc,
    image_of,
    numbers_of,
    operands,
    pair_image_of,
    pair_place,
)
from .text import Text

COLUMNS = 128
ORDER = "tl::tcgen05_before_thread_sync(); {sync} tl::tcgen05_after_thread_sync();"
BARRIER, CLUSTER = ORDER.format(sync="__syncthreads();"), ORDER.format(sync="tl::cluster_sync();")


def _body(words: int, work: str, registers: int, *, pair: bool = False, keep: str = "true") -> str:
    """128 threads (of each of two blocks) take the operands' image to shared memory, do `work` with
    tensor memory at `base[0]` and write `registers` words of their lane, from column 0 on."""
    suffix, meet = ("<true>", CLUSTER) if pair else ("", BARRIER)
    rank = "tl::block_rank_in_cluster()" if pair else "0"
    return f"""
  __shared__ unsigned base[1];
  __shared__ __align__(16) uint64_t memory[1];
  auto bar = reinterpret_cast<Barrier*>(memory);
  unsigned* s = (unsigned*)shared;
  const int rank = {rank};
  using D = tl::DataType;
  for (int i = tid; i < {words}; i += 128) s[i] = x[rank * {words} + i];
  if (tid == 0) bar[0].init(1);
  tl::fence_barrier_init();
  tl::fence_proxy_async();
  if (tid < 32) tl::tmem_allocate{suffix}(base, {COLUMNS});
  {meet}
  unsigned r[{max(registers, 32)}];
  {work}
  tl::tcgen05_after_thread_sync();
  tl::tcgen05_ld_32dp32bNx<{registers}, false>(base[0], 0, r);
  if ({keep}) for (int i = 0; i < {registers}; ++i) y[(rank * 128 + tid) * {registers} + i] = r[i];
  {meet}
  if (tid < 32) tl::tmem_deallocate{suffix}(base, {COLUMNS});
"""


def _descriptors(numbers: dict[str, int]) -> str:
    return "tl::Tcgen05SMemDescriptor a, b;" + "".join(
        f"tl::initialize_tcgen05_descriptor({w}, s + {at // 4}, {numbers[f'{w}_leading']},"
        f" {numbers[f'{w}_stride']}, 0, 0, {numbers[f'{w}_swizzle']});"
        for w, at in (("a", 0), ("b", 65536))
    )


KINDS = {"f16": "kFloat16", "bf16": "kBFloat16", "tf32": "kTensorFloat32", "e4m3": "kFloat8_e4m3",
         "e5m2": "kFloat8_e5m2", "s8": "kInt8", "u8": "kUInt8"}  # fmt: skip


def _filled(place, values: torch.Tensor, shape: tuple[int, ...], element: str) -> torch.Tensor:
    """Words of y: -7, and the values' bits in int32 or float32 where they belong."""
    y = torch.full(shape, -7, dtype=torch.int32)
    words = values.int() if element in ("s8", "u8") else values.float().view(torch.int32)
    for i, j in itertools.product(*map(range, values.shape)):
        y[place(i, j)] = words[i, j]
    return y.flatten()


def _draw(m: int, n: int, element: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return operands(m, n, ELEMENTS[element][2], element)


def _mma(element: str, m: int, n: int, path: str, a_mode, b_mode, *, ws=False, ts=False) -> Text:
    """D = A B^T of one instruction; A from tensor memory at column 64 with `ts`."""
    _, code, k, d_type = ELEMENTS[element]
    numbers = numbers_of((m, k), (n, k), element, a_mode, b_mode)
    descriptor = idesc(m, n, d_type, code, code, mn_a=a_mode[1], mn_b=b_mode[1])
    name = "tcgen05mma_ws_ss" if ws else "tcgen05mma_ts" if ts else "tcgen05mma_ss"
    first = "base[0] + 64" if ts else "uint64_t(a)"
    store = ""
    if ts:  # lane r holds row r of A, 8 words
        store = (
            "for (int i = 0; i < 8; ++i) r[i] = x[32768 + tid * 8 + i];"
            f"tl::tcgen05_st_32dp32bNx<8, false>(base[0], 64, r); {BARRIER}"
        )
    work = (
        f"{store} if (tid < 32) {{ {_descriptors(numbers)}"
        f"tl::{name}<D::{KINDS[element]}>({first}, uint64_t(b), base[0], 0, {descriptor}u, 0, 0, 0, 0);"
        "tl::tcgen05_mma_arrive(bar); } bar[0].wait(0);"
    )
    # Columns that D folds into idle lanes; lanes without a row are not read.
    width = {"E": n // 2, "G": n // 4}.get(path, n)
    keep = "tid % 32 < 16" if path == "F" else "true"

    def inputs():
        a, b = _draw(m, n, element)
        image, _ = image_of(a, b, element, a_mode, b_mode)
        rows = encode(a, element).contiguous().view(torch.int32).flatten()
        return torch.cat([image, rows]) if ts else image

    def want(_):
        a, b = _draw(m, n, element)
        return _filled(lambda i, j: d_place(i, j, (m, n), path), a @ b.T, (128, width), element)

    return Text(
        _body(32768, work, width, keep=keep),
        128 * width,
        128,
        ("sm_100a",),
        inputs,
        want,
        smem=131072,
    )


def _block_scaled(n: int = 64, id_a: int = 1, id_b: int = 2) -> Text:
    """Scales by cp: row m's is in lane m % 32, column m / 32, byte `id`."""
    modes = (("128B", False), ("128B", False))
    numbers = numbers_of((128, 32), (n, 32), "e4m3", *modes)
    descriptor = n >> 3 << 17 | 128 >> 4 << 24 | 1 << 23 | id_b << 4 | id_a << 29
    work = (
        f"if (tid < 32) {{ {_descriptors(numbers)} tl::tcgen05_cp(tl::make_sf_smem_desc(s + 30720), base[0] + 96);"
        "tl::tcgen05_cp(tl::make_sf_smem_desc(s + 30848), base[0] + 112);"
        f"tl::tcgen05mma_blockscaled_ss<D::kFloat8_e4m3>(uint64_t(a), uint64_t(b), base[0], 0, {descriptor}u,"
        " base[0] + 96, base[0] + 112); tl::tcgen05_mma_arrive(bar); } bar[0].wait(0);"
    )

    def draw():
        a, b = _draw(128, n, "e4m3")
        return a, b, torch.randint(120, 135, (128,)), torch.randint(120, 135, (n,))

    def inputs():
        a, b, *scales = draw()
        image, _ = image_of(a, b, "e4m3", *modes)
        words = torch.full((2, 32, 4, 4), 0x7F, dtype=torch.uint8)
        for which, (scale, byte) in enumerate(zip(scales, (id_a, id_b), strict=True)):
            for i, exponent in enumerate(scale):
                words[which, i % 32, i // 32, byte] = int(exponent)
        image[30720:30976] = words.flatten().view(torch.int32)  # unused by the operands
        return image

    def want(_):
        a, b, scale_a, scale_b = draw()
        product = torch.ldexp((a @ b.T).double(), scale_a[:, None] + scale_b[None, :] - 254)
        return product.float().view(torch.int32).flatten()

    return Text(_body(32768, work, n), 128 * n, 128, ("sm_100a",), inputs, want, smem=131072)


def _pair(element: str, m: int, n: int, a_mode, b_mode) -> Text:
    """Two blocks, each with half of the rows of A and half of the columns of B."""
    _, code, k, d_type = ELEMENTS[element]
    numbers = numbers_of((m // 2, k), (n // 2, k), element, a_mode, b_mode)
    descriptor = idesc(m, n, d_type, code, code, mn_a=a_mode[1], mn_b=b_mode[1])
    work = (
        f"if (rank == 0 && tid < 32) {{ {_descriptors(numbers)}"
        f"tl::tcgen05mma_ss<D::{KINDS[element]}, true>(uint64_t(a), uint64_t(b), base[0], 0, {descriptor}u, 0, 0, 0, 0);"
        "tl::tcgen05_mma_arrive<true>(bar); } bar[0].wait(0);"
    )
    width = n if m == 256 else n // 2

    def inputs():
        images, _ = pair_image_of(*_draw(m, n, element), element, a_mode, b_mode)
        return torch.cat(images)

    def want(_):
        a, b = _draw(m, n, element)
        return _filled(lambda i, j: pair_place(i, j, (m, n)), a @ b.T, (2, 128, width), element)

    return Text(
        _body(32768, work, width, pair=True), 256 * width, 128, ("sm_100a",), inputs, want,
        smem=131072, grid=2, cluster=2,
    )  # fmt: skip


def _move(shape: str, store: bool) -> Text:
    """One of 32dp32b and `shape` (x4) writes, the other reads: lanes meet each other's registers.
    Shapes of 16 lanes use the lower half of each warp's quarter."""
    count, place = FRAGMENTS[shape]
    count *= 4
    columns = 1 + max(place(t, r)[1] for t in range(32) for r in range(count))
    first, second = ("32dp32b", shape) if not store else (shape, "32dp32b")
    sizes = {"32dp32b": (columns, columns), shape: (count, 4)}

    def move(verb: str, which: str) -> str:
        return f"tl::tcgen05_{verb}_{which}Nx<{sizes[which][1]}, false>(base[0], 0, r);"

    seen, read = sizes[first][0], sizes[second][0]
    keep = "tid % 32 < 16" if store and shape.startswith("16") else "true"
    work = (
        f"for (int i = 0; i < {seen}; ++i) r[i] = x[tid * {seen} + i]; {move('st', first)}"
        f"tl::fence_view_async_tmem_store(); {BARRIER} {move('ld', second)}"
        f"if ({keep}) for (int i = 0; i < {read}; ++i) y[tid * {read} + i] = r[i];"
    )

    def want(x):
        y = torch.full((128, read), -7, dtype=torch.int32)
        x = x[: 128 * seen].view(128, seen)
        for thread, r in itertools.product(range(128), range(count)):
            lane, column = place(thread % 32, r)
            lane += thread // 32 * 32
            if store:
                y[lane, column] = x[thread, r]
            else:
                y[thread, r] = x[lane, column]
        return y.flatten()

    return Text(
        f"__shared__ unsigned base[1]; if (tid < 32) tl::tmem_allocate(base, {COLUMNS}); {BARRIER} unsigned r[32];"
        f"{work} {BARRIER} if (tid < 32) tl::tmem_deallocate(base, {COLUMNS});", 128 * read, 128, ("sm_100a",),
        lambda: torch.arange(4096, dtype=torch.int32), want,
    )  # fmt: skip


def _byte_stmatrix(count: int) -> Text:
    """stmatrix .m16n8 .b8 .trans: thread t holds rows t / 4 and t / 4 + 8, columns 2 (t % 4), + 1 of
    matrix i; what lies in shared memory is the transpose."""
    values = ", ".join(f"r[{i}]" for i in range(count))

    def want(x):
        fragments = x[:128].contiguous().view(torch.uint8).view(32, 4, 4)[:, :count]
        shared = torch.zeros(count, 8, 16, dtype=torch.uint8)
        for t, i, e in itertools.product(range(32), range(count), range(4)):
            shared[i, t % 4 * 2 + e % 2, t // 4 + 8 * (e // 2)] = fragments[t, i, e]
        return shared.flatten().view(torch.int32)

    return Text(
        "int r[4]; for (int i = 0; i < 4; ++i) r[i] = x[tid * 4 + i];"
        f"tl::ptx_stmatrix_m16n8_x{count}_trans(shared + tid % {8 * count} * 16, {values}); __syncthreads();"
        f"for (int i = tid; i < {32 * count}; i += 32) y[i] = ((int*)shared)[i];", 32 * count,
        archs=("sm_100a",), inputs=lambda: torch.arange(128, dtype=torch.int32) * 0x3010507, want=want,
    )  # fmt: skip


K128, K64, K32, KN = (("128B", False), ("64B", False), ("32B", False), ("none", False))
M128, M64, M32, MN = (("128B", True), ("64B", True), ("32B", True), ("none", True))
# fmt: off
TEXTS = {
    "tcgen05_f16": _mma("f16", 128, 64, "D", K128, K64),
    "tcgen05_bf16_mn_major": _mma("bf16", 128, 64, "D", M128, M64),
    "tcgen05_f16_64_rows": _mma("f16", 64, 24, "F", KN, K128),
    "tcgen05_f16_no_swizzle": _mma("f16", 128, 32, "D", MN, KN),
    "tcgen05_tf32": _mma("tf32", 128, 32, "D", K64, K32),
    "tcgen05_tf32_mn_major": _mma("tf32", 128, 32, "D", ("128B base 32B", True), K128),
    "tcgen05_e4m3": _mma("e4m3", 128, 32, "D", K64, K128),
    "tcgen05_e5m2_mn_major": _mma("e5m2", 128, 128, "D", M128, M32),
    "tcgen05_s8": _mma("s8", 128, 32, "D", K32, K64),
    "tcgen05_u8_64_rows": _mma("u8", 64, 24, "F", M64, KN),
    "tcgen05_ws_64_rows": _mma("f16", 64, 64, "E", K128, K128, ws=True),
    "tcgen05_ws_32_rows": _mma("f16", 32, 128, "G", K128, K128, ws=True),
    "tcgen05_ts_bf16": _mma("bf16", 128, 32, "D", KN, K64, ts=True),
    "tcgen05_ts_s8": _mma("s8", 128, 32, "D", KN, K64, ts=True),
    "tcgen05_block_scaled_and_cp": _block_scaled(),
    "tcgen05_pair_f16": _pair("f16", 256, 64, K128, K64),
    "tcgen05_pair_bf16_128_rows": _pair("bf16", 128, 64, M64, M32),
    "tcgen05_pair_e4m3": _pair("e4m3", 256, 64, K128, K32),
    **{f"tcgen05_{verb}_{shape}": _move(shape, verb == "st")
       for shape in FRAGMENTS if shape != "32dp32b" for verb in ("ld", "st")},
    **{f"stmatrix_bytes_x{count}": _byte_stmatrix(count) for count in (1, 2, 4)},
}
# fmt: on
