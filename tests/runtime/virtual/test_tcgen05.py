"""tcgen05 of sm_100a, against tables written from the PTX manual: operand layouts in shared memory,
data paths of D, shapes of ld and st, scales; and what the manual forbids."""

import functools
import itertools

import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel
from .tcgen05_tables import (
    ELEMENTS,
    FRAGMENTS,
    d_place,
    encode,
    idesc,
    image_of,
    lay_out,
    operands,
    read_d,
    signed,
)

LANES, COLUMNS = 128, 512
KINDS = ["f16", "tf32", "f8f6f4", "i8", "mxf8f6f4", "f16 ts", "i8 ts", "f16 ws", "i8 ws"]

# Everything one thread block can do to tensor memory in one step: its cells come from global memory
# and go back there. `kind` names the step.
STEP = """
    extern __shared__ __align__(1024) unsigned s[];
    __shared__ unsigned base[1];
    __shared__ __align__(8) uint64_t memory[1];
    auto bar = reinterpret_cast<Barrier*>(memory);
    for (int i = tid; i < words; i += 128) s[i] = image[i];
    if (tid == 0) bar[0].init(1);
    if (tid < 32) tl::tmem_allocate(base, 512);
    __syncthreads();
    for (int c = 0; c < 512; c += 128)
      tl::tcgen05_st_32dp32bNx<128, false>(base[0], c, cells + tid * 512 + c);
    __syncthreads();
    if (tid < 32) {
      tl::Tcgen05SMemDescriptor a, b;
      tl::initialize_tcgen05_descriptor(a, s, a_leading, a_stride, 0, 0, a_swizzle);
      tl::initialize_tcgen05_descriptor(b, s + b_start / 4, b_leading, b_stride, 0, 0, b_swizzle);
      const unsigned d = base[0] + d_at, at = base[0] + a_at;
      using D = tl::DataType;
      if (kind == 0) tl::tcgen05mma_ss<D::kFloat16>(a, b, d, accumulate, idesc, m0, m1, 0, 0);
      if (kind == 1) tl::tcgen05mma_ss<D::kTensorFloat32>(a, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 2) tl::tcgen05mma_ss<D::kFloat8_e4m3>(a, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 3) tl::tcgen05mma_ss<D::kInt8>(a, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 4)
        tl::tcgen05mma_blockscaled_ss<D::kFloat8_e4m3>(a, b, d, accumulate, idesc, at, at + 16);
      if (kind == 5) tl::tcgen05mma_ts<D::kFloat16>(at, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 6) tl::tcgen05mma_ts<D::kInt8>(at, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 7) tl::tcgen05mma_ws_ss<D::kFloat16>(a, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 8) tl::tcgen05mma_ws_ss<D::kInt8>(a, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 9) tl::tcgen05_cp(tl::make_sf_smem_desc(s), d);
      if (commit) tl::tcgen05_mma_arrive(bar);
    }
    if (commit) bar[0].wait(0); else __syncthreads();
    for (int c = 0; c < 512; c += 128)
      tl::tcgen05_ld_32dp32bNx<128, false>(base[0], c, cells + tid * 512 + c);
    if (!commit) { if (tid < 32) tl::tcgen05_mma_arrive(bar); bar[0].wait(0); }
    __syncthreads();
    if (tid < 32) tl::tmem_deallocate(base, 512);
"""
NUMBERS = (  # noqa: SIM905
    "words kind a_leading a_stride a_swizzle b_start b_leading b_stride b_swizzle"
    " d_at a_at accumulate idesc m0 m1 commit"
).split()


@functools.cache
def module(body: str, parameters: str) -> virtual.VirtualModule:
    return virtual.VirtualModule(kernel(parameters, body), checked=True)


def step(cells, image=None, *, options=None, **numbers) -> None:
    """One step on `cells` (int32, lanes by columns), in place, under several schedules."""
    image = torch.zeros(1, dtype=torch.int32) if image is None else image
    numbers = {"words": image.numel(), "commit": 1, **numbers}
    values = [numbers.get(name, 0) for name in NUMBERS]
    declared = "unsigned* cells, const unsigned* image, " + ", ".join(f"int {n}" for n in NUMBERS)
    results = []
    for each in [{}, {"late": False}, {"seed": 1}] if options is None else [options]:
        mine = cells.clone()
        chosen = virtual.VirtualOptions(**each)
        module(STEP, declared).launch(
            "k", (1,), (128,), 200000, [mine, image, *values], options=chosen
        )
        results.append(mine)
    assert all(torch.equal(results[0], other) for other in results)
    cells.copy_(results[0])


# --- tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "m", "n", "path", "a_mode", "b_mode"),
    [
        ("f16", 128, 32, "D", ("128B", False), ("64B", False)),
        ("bf16", 128, 16, "D", ("32B", False), ("none", False)),
        ("f16", 64, 24, "F", ("none", False), ("128B", False)),
        ("bf16", 128, 64, "D", ("128B", True), ("64B", True)),
        ("f16", 64, 32, "F", ("32B", True), ("none", True)),
        ("f16", 128, 128, "D", ("none", True), ("128B", True)),
        ("tf32", 128, 32, "D", ("128B base 32B", True), ("128B", False)),
        ("tf32", 64, 64, "F", ("64B", False), ("128B base 32B", True)),
        ("e4m3", 128, 32, "D", ("64B", False), ("128B", False)),
        ("e5m2", 128, 128, "D", ("128B", True), ("32B", True)),
        ("s8", 128, 32, "D", ("32B", False), ("64B", False)),
        ("u8", 64, 24, "F", ("64B", True), ("none", False)),
    ],
)
def test_operands_lie_where_their_descriptors_say(element, m, n, path, a_mode, b_mode):
    torch.manual_seed(0)
    kind, code, k, d_type = ELEMENTS[element]
    a, b = operands(m, n, k, element)
    image, numbers = image_of(a, b, element, a_mode, b_mode)
    before = torch.randint(-9, 9, (LANES, COLUMNS))
    integer = kind == "i8"
    cells = before.int() if integer else before.float().view(torch.int32)
    untouched = cells.clone()
    descriptor = idesc(m, n, d_type, code, code, mn_a=a_mode[1], mn_b=b_mode[1])
    step(cells, image, kind=KINDS.index(kind), idesc=descriptor, accumulate=1, d_at=40, **numbers)
    lanes = [d_place(i, 0, (m, n), path)[0] for i in range(m)]
    want = before[lanes, 40 : 40 + n] + a @ b.T
    assert torch.equal(read_d(cells, m, n, path, column=40, integer=integer), want.double())
    untouched[lanes, 40 : 40 + n] = cells[lanes, 40 : 40 + n]
    assert torch.equal(cells, untouched)


@pytest.mark.parametrize(
    ("kind", "m", "n", "path"),
    [
        ("f16 ws", 64, 64, "E"),
        ("f16 ws", 32, 128, "G"),
        ("i8 ws", 32, 64, "G"),
        ("f16 ws", 128, 64, "D"),
    ],
)
def test_weight_stationary_results_fold_columns_into_idle_lanes(kind, m, n, path):
    torch.manual_seed(1)
    element = "s8" if kind == "i8 ws" else "f16"
    _, code, k, d_type = ELEMENTS[element]
    a, b = operands(m, n, k, element)
    image, numbers = image_of(a, b, element, ("128B", False), ("128B", False))
    cells = torch.full((LANES, COLUMNS), -1, dtype=torch.int32)
    step(cells, image, kind=KINDS.index(kind), idesc=idesc(m, n, d_type, code, code), **numbers)
    got = read_d(cells, m, n, path, integer=element == "s8")
    assert torch.equal(got, (a @ b.T).double())


def test_masks_signs_and_float16_results():
    torch.manual_seed(2)
    a, b = operands(64, 16, 16, "f16")
    image, numbers = image_of(a, b, "f16", ("128B", False), ("128B", False))
    cells = torch.full((LANES, COLUMNS), 7 | 0x3C00 << 16, dtype=torch.int32)
    # D from lane 16 on is the other half of each warp's lanes; lanes 17, 31 and 48 stay untouched
    step(
        cells, image, kind=0, idesc=idesc(64, 16, 0, 0, 0, negate_a=1), d_at=16 << 16 | 3,
        m0=signed(1 << 17 | 1 << 31), m1=1 << 16, **numbers,
    )  # fmt: skip
    want = -(a @ b.T).double()
    got = read_d(cells, 64, 16, "F", lane=16, column=3, half=True)
    kept = [r for r in range(64) if 16 + d_place(r, 0, (64, 16), "F")[0] not in (17, 31, 48)]
    assert len(kept) == 61 and torch.equal(got[kept], want[kept])
    for lane in (17, 31, 48, 0, 15):
        assert (cells[lane] == (7 | 0x3C00 << 16)).all()


@pytest.mark.parametrize(("kind", "m"), [("f16 ts", 128), ("f16 ts", 64), ("i8 ts", 128)])
def test_a_from_tensor_memory_is_packed_into_columns(kind, m):
    torch.manual_seed(3)
    element = "u8" if kind == "i8 ts" else "bf16"
    _, code, k, d_type = ELEMENTS[element]
    a, b = operands(m, 32, k, element)
    image, numbers = image_of(a, b, element, ("none", False), ("64B", False))
    cells = torch.full((LANES, COLUMNS), -1, dtype=torch.int32)
    path = "D" if m == 128 else "F"
    for row, words in enumerate(encode(a, element).view(torch.int32)):
        cells[d_place(row, 0, (m, k), path)[0], 100:108] = words
    step(
        cells, image, kind=KINDS.index(kind), idesc=idesc(m, 32, d_type, code, code), a_at=100,
        **numbers,
    )  # fmt: skip
    got = read_d(cells, m, 32, path, integer=element == "u8")
    assert torch.equal(got, (a @ b.T).double())


# Values of the narrow formats by code, sign aside: 1 sign bit, then exponent and mantissa.
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M3 = [i / 8 for i in range(16)] + [2 + i / 4 for i in range(8)] + [4 + i / 2 for i in range(8)]
E3M2 = [i / 16 for i in range(4)] + [2.0**e * (1 + i / 4) for e in range(-2, 5) for i in range(4)]


def narrow(element, rows, k):
    """Random codes of a format, their values, and 16-element groups padded to 16 bytes."""
    table, bits = {"e2m1": (E2M1, 4), "e2m3": (E2M3, 6), "e3m2": (E3M2, 6)}[element]
    size = len(table)
    codes = torch.randint(0, 2 * size, (rows, k))
    values = torch.tensor(table)[codes % size] * (1 - 2 * (codes // size))
    packed = torch.full((rows, k), 0xEE, dtype=torch.uint8)
    for row, group in itertools.product(range(rows), range(k // 16)):
        word = sum(
            int(c) << bits * i for i, c in enumerate(codes[row, 16 * group : 16 * group + 16])
        )
        whole = list(word.to_bytes(2 * bits, "little"))
        packed[row, 16 * group : 16 * group + len(whole)] = torch.tensor(whole, dtype=torch.uint8)
    return values.double(), packed


@pytest.mark.parametrize(
    ("a_type", "b_type"), [("e2m1", "e2m3"), ("e3m2", "e2m1"), ("e2m3", "e3m2")]
)
def test_elements_of_4_and_6_bits_take_a_byte_each_in_shared_memory(a_type, b_type):
    torch.manual_seed(4)
    codes = {"e2m3": 3, "e3m2": 4, "e2m1": 5}
    (a, a_raw), (b, b_raw) = narrow(a_type, 128, 32), narrow(b_type, 32, 32)
    image = torch.full((131072,), 0xFF, dtype=torch.uint8)
    lay_out(a_raw, "32B", False, 16, 256, 0, image)
    lay_out(b_raw, "32B", False, 16, 256, 65536, image)
    cells = torch.zeros(LANES, COLUMNS, dtype=torch.int32)
    step(
        cells, image.view(torch.int32), kind=2, a_swizzle=6, b_swizzle=6, b_start=65536,
        a_stride=16, b_stride=16, idesc=idesc(128, 32, 1, codes[a_type], codes[b_type]),
    )  # fmt: skip
    assert torch.equal(read_d(cells, 128, 32, "D"), a @ b.T)


@pytest.mark.parametrize(("id_a", "id_b", "n"), [(0, 3, 128), (2, 1, 40)])
def test_scales_are_bytes_of_cells_by_row_and_column(id_a, id_b, n):
    torch.manual_seed(5)
    a, b = operands(128, n, 32, "e4m3")
    image, numbers = image_of(a, b, "e4m3", ("128B", False), ("128B", False))
    cells = torch.randint(-(2**31), 2**31 - 1, (LANES, COLUMNS), dtype=torch.int64).int()
    # Scale factor layouts, scale_vec::1X: row m is in lane m % 32 of every quarter, column m / 32,
    # and the byte that the scale factor id names.
    scale_a, scale_b = torch.randint(120, 135, (128,)), torch.randint(120, 135, (n,))
    raw = cells.view(torch.uint8).reshape(LANES, COLUMNS, 4)
    for scales, column, index in ((scale_a, 200, id_a), (scale_b, 216, id_b)):
        for i, exponent in enumerate(scales):
            raw[i % 32 :: 32, column + i // 32, index] = int(exponent)
    cells[:, :128] = torch.full((LANES, 128), 0.5).view(torch.int32)
    descriptor = n >> 3 << 17 | 128 >> 4 << 24 | 1 << 23 | id_b << 4 | id_a << 29
    step(
        cells, image, kind=4, idesc=descriptor, accumulate=1, a_at=200, **numbers
    )  # fmt: skip
    exponent = scale_a[:, None] + scale_b[None, :] - 254
    want = 0.5 + torch.ldexp((a @ b.T).double(), exponent)
    assert torch.equal(read_d(cells, 128, n, "D"), want)


def test_cp_copies_rows_of_16_bytes_to_every_quarter_of_the_lanes():
    image = torch.arange(128, dtype=torch.int32)
    cells = torch.full((LANES, COLUMNS), -1, dtype=torch.int32)
    step(cells, image, kind=9, d_at=12)
    assert torch.equal(cells[:, 12:16], image.reshape(32, 4).repeat(4, 1))
    assert (cells[:, :12] == -1).all() and (cells[:, 16:] == -1).all()


SHAPES = ["32dp32b", "16dp64b", "16dp128b", "16dp256b", "32dp64b", "32dp128b", "32dp256b"]
REPEATS = 4
MOVE = """
    __shared__ unsigned base[1];
    if (tid < 32) tl::tmem_allocate(base, 512);
    __syncthreads();
    for (int c = 0; c < 512; c += 128)
      tl::tcgen05_st_32dp32bNx<128, false>(base[0], c, cells + tid * 512 + c);
    __syncthreads();
    unsigned r[32];
    for (int i = 0; i < 32; ++i) r[i] = 1000 * tid + i;
    const unsigned at = base[0] + start;
#define MOVE(INDEX, NAME, P) \\
    if (which == INDEX) { \\
      if (store) tl::tcgen05_st_##NAME##Nx<REPEATS, P>(at, 8, r); \\
      else tl::tcgen05_ld_##NAME##Nx<REPEATS, P>(at, 8, r); \\
    }
    MOVES
    for (int i = 0; i < 32; ++i) y[tid * 32 + i] = r[i];
    __syncthreads();
    for (int c = 0; c < 512; c += 128)
      tl::tcgen05_ld_32dp32bNx<128, false>(base[0], c, cells + tid * 512 + c);
    __syncthreads();
    if (tid < 32) tl::tmem_deallocate(base, 512);
""".replace("REPEATS", str(REPEATS)).replace(
    "MOVES",
    "\n".join(
        f"MOVE({2 * i + packed}, {name}, {str(bool(packed)).lower()})"
        for i, name in enumerate(SHAPES)
        for packed in (0, 1)
    ),
)


@pytest.mark.parametrize("packed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_ld_and_st_shapes(shape, packed):
    # the 32-lane forms of the wide shapes are two of 16 lanes, registers one after the other
    half = shape.replace("32dp", "16dp") if shape != "32dp32b" else shape
    count, place = FRAGMENTS[half]
    count *= REPEATS
    halves = 2 if half != shape else 1
    start = 16 << 16 if shape.startswith("16") else 0
    mover = module(MOVE, "int* y, unsigned* cells, int which, int store, int start")
    before = torch.arange(LANES * COLUMNS, dtype=torch.int32).reshape(LANES, COLUMNS)
    for store, late in itertools.product((0, 1), (False, True)):
        y, cells = torch.zeros(128, 32, dtype=torch.int32), before.clone()
        which = 2 * SHAPES.index(shape) + packed
        options = virtual.VirtualOptions(late=late)
        mover.launch("k", (1,), (128,), 0, [y, cells, which, store, start], options=options)
        want_y = 1000 * torch.arange(128)[:, None] + torch.arange(32)
        want = before.clone()
        for tid, h, r in itertools.product(range(128), range(halves), range(count)):
            lane, column = place(tid % 32, r)
            lane += tid // 32 * 32 + 16 * h + (start >> 16)
            register = int(want_y[tid, h * count + r])
            if packed:  # a register holds the low halves of two neighbouring columns
                low, high = 8 + 2 * column, 9 + 2 * column
                if store:
                    want[lane, low] = signed(0xFFFF0000 | register & 0xFFFF)
                    want[lane, high] = signed(0xFFFF0000 | register >> 16)
                else:
                    pair = [int(v) & 0xFFFF for v in before[lane, [low, high]]]
                    want_y[tid, h * count + r] = signed(pair[0] | pair[1] << 16)
            elif store:
                want[lane, 8 + column] = register
            else:
                want_y[tid, h * count + r] = before[lane, 8 + column]
        assert torch.equal(cells, want)
        assert torch.equal(y, want_y.int())


# Each broken in one way, by `which`.
BROKEN = [
    ("if (w == 0) tl::tmem_allocate(base, 48);", "32, 64, 128, 256 or 512 columns, got 48"),
    ("if (w == 0) tl::tmem_allocate(base, 16);", "32, 64, 128, 256 or 512 columns, got 16"),
    ("if (w == 0) { tl::tmem_allocate(base, 64); }", "leak: tensor memory columns 0 to 63"),
    ("if (tid < 16) tl::tmem_allocate(base, 64);", "needs all 32 lanes of a warp"),
    (
        "if (w == 0) { tl::tmem_allocate(base, 512); tl::tmem_allocate(base, 32); }",
        "waits for ever: the block already holds 512",
    ),
    ("ALLOC tl::tcgen05_ld_32dp32bNx<32, false>(base[0], 40, r);", "columns 40 to 71 of tensor"),
    ("ALLOC tl::tcgen05_ld_32dp32bNx<32, false>(base[0] + (64 << 16), 0, r);", "reaches lanes"),
    ("ALLOC tl::tcgen05_ld_16dp64bNx<2, false>(base[0] + (8 << 16), 0, r);", "start at a multiple"),
    ("ALLOC FREE __syncthreads(); tl::tcgen05_ld_32dp32bNx<1, false>(base[0], 0, r);",
     "use after free: tcgen05.ld, columns 0 to 0 of tensor memory were freed by warp 0"),
    ("ALLOC if (w == 0) tl::tmem_deallocate(base, 32);", "no allocation has that address and size"),
    ("ALLOC FREE if (w == 0) tl::tmem_deallocate(base, 64);", "no allocation has that address"),
    ("ALLOC MMA(128 >> 4 << 24 | 72 >> 3 << 17)", "no shape M=128, N=72"),
    ("ALLOC MMA(128 >> 4 << 24 | 128 >> 3 << 17)", "columns 0 to 127 of tensor memory are not in"),
    ("ALLOC MMA(192 >> 4 << 24 | 64 >> 3 << 17)", "no shape M=192, N=64"),
    ("ALLOC MMA(128 >> 4 << 24 | 64 >> 3 << 17 | 4)", "sparse"),
    ("ALLOC MMA(128 >> 4 << 24 | 64 >> 3 << 17 | 3 << 7)", "A the type code 3"),
    ("ALLOC MMA(128 >> 4 << 24 | 64 >> 3 << 17 | 1 << 10)", "A and B must have one type"),
    ("ALLOC MMA(128 >> 4 << 24 | 64 >> 3 << 17 | 1 << 23)", "must be zero"),
    ("ALLOC MMA(128 >> 4 << 24 | 64 >> 3 << 17 | 2 << 4)", "D cannot have the type code"),
    ("ALLOC DESC(0, 3) MMA(128 >> 4 << 24 | 64 >> 3 << 17)", "swizzle mode 3 does not exist"),
    ("ALLOC DESC(0, 1) MMA(128 >> 4 << 24 | 64 >> 3 << 17)", "MN-major tf32"),
    ("ALLOC DESC(2, 2) MMA(128 >> 4 << 24 | 64 >> 3 << 17)", "base offset, got 2"),
    ("ALLOC a.bits = 0; MMA(128 >> 4 << 24 | 64 >> 3 << 17)", "bits 46-47"),
    ("ALLOC at = 8 << 16; MMA(64 >> 4 << 24 | 64 >> 3 << 17)", "lane 0 or 16, got lane 8"),
    ("ALLOC MMA(128 >> 4 << 24 | 64 >> 3 << 17) FREE", "warp 0 on tensor memory are not known"),
    ("ALLOC MMA(128 >> 4 << 24 | 64 >> 3 << 17)", "tcgen05.mma still in flight"),
    ("if (w == 0) tl::tmem_allocate<true>(base, 64);", "needs pairs of blocks"),
    ("ALLOC if (w == 0) tl::tmem_deallocate<true>(base, 64);", "must all have the same"),
]  # fmt: skip


def broken(which: int, **options) -> None:
    cases = "\n".join(f"if (which == {i}) {{ {text} }}" for i, (text, _) in enumerate(BROKEN))
    body = f"""
    extern __shared__ __align__(1024) unsigned s[];
    __shared__ unsigned base[1];
    const int w = tid / 32;
    unsigned r[128], at = 0;
    tl::Tcgen05SMemDescriptor a;
    tl::initialize_tcgen05_descriptor(a, s, 1, 64, 0, 0, 2);
#define ALLOC if (w == 0) tl::tmem_allocate(base, 64); __syncthreads();
#define FREE __syncthreads(); if (w == 0) tl::tmem_deallocate(base, 64);
#define DESC(OFFSET, SWIZZLE) \\
    tl::initialize_tcgen05_descriptor(a, s, 1, 64, OFFSET, 0, SWIZZLE);
#define MMA(IDESC) \\
    if (w == 0) \\
      tl::tcgen05mma_ss<tl::DataType::kFloat16>(a, a, base[0] + at, 0, IDESC, 0, 0, 0, 0);
    {cases}
    y[0] = r[0];
    """
    chosen = virtual.VirtualOptions(**options)
    y = torch.zeros(1, dtype=torch.int32)
    module(body, "int* y, int which").launch("k", (1,), (128,), 65536, [y, which], options=chosen)


@pytest.mark.parametrize("which", range(len(BROKEN)), ids=[words for _, words in BROKEN])
def test_broken_rules_are_errors(which):
    with pytest.raises(virtual.VirtualError) as error:
        broken(which)
    assert BROKEN[which][1] in str(error.value)


def test_a_result_read_before_its_commit_is_poison_when_late():
    torch.manual_seed(6)
    a, b = operands(128, 16, 16, "f16")
    image, numbers = image_of(a, b, "f16", ("128B", False), ("128B", False))
    numbers |= {"kind": 0, "idesc": idesc(128, 16, 1, 0, 0), "commit": 0}
    cells = torch.full((LANES, COLUMNS), -1, dtype=torch.int32)
    late, early = cells.clone(), cells.clone()
    step(late, image, options={}, **numbers)
    step(early, image, options={"late": False}, **numbers)
    assert torch.equal(read_d(early, 128, 16, "D"), (a @ b.T).double())
    assert torch.equal(late, cells)


def test_a_load_is_poison_until_it_is_waited_for():
    body = """
    __shared__ unsigned base[1];
    if (tid < 32) tl::tmem_allocate(base, 32);
    __syncthreads();
    unsigned r[2] = {7u, 7u};
    vgpu::tensor_access<true, 32, 32, 1, false>(base[0], r);
    y[tid] = 0;
    tl::fence_view_async_tmem_store();
    vgpu::tensor_access<false, 32, 32, 1, false>(base[0], r + 1);
    y[tid] = r[1];
    tl::fence_view_async_tmem_load();
    y[128 + tid] = r[1];
    __syncthreads();
    if (tid < 32) tl::tmem_deallocate(base, 32);
    """
    for late, seen in ((True, -1), (False, 7)):
        y = torch.zeros(256, dtype=torch.int32)
        options = virtual.VirtualOptions(late=late)
        module(body, "int* y").launch("k", (1,), (128,), 0, [y], options=options)
        assert y.tolist() == [seen] * 128 + [7] * 128
