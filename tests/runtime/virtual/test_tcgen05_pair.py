"""tcgen05 with cta_group::2, against tables written from the PTX manual: two blocks allocate at
once, each holds half of the rows of A and D and half of the columns of B."""

import functools
import itertools

import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel
from .tcgen05_tables import ELEMENTS, encode, idesc, operands, pair_image_of, pair_place

LANES, COLUMNS = 128, 512
SCHEDULES = [{}, {"late": False}, {"seed": 1}, {"seed": 2, "late": False}]
HEAD = """
    extern __shared__ __align__(1024) unsigned s[];
    __shared__ unsigned base[1];
    __shared__ __align__(16) uint64_t memory[2];
    auto bar = reinterpret_cast<Barrier*>(memory);
    const int rank = tl::block_rank_in_cluster(), w = tid / 32;
    unsigned* mine = cells + rank * 128 * 512;
    using D = tl::DataType;
    for (int i = tid; i < words; i += 128) s[i] = image[rank * words + i];
    if (tid == 0) { bar[0].init(1); bar[1].init(1); }
    tl::fence_barrier_init();
    tl::cluster_sync();
"""
# One instruction of a pair on tensor memory that comes from global memory and goes back there. The
# commit signals the blocks in `mask`, the second one both.
STEP = """
    if (w == 0) tl::tmem_allocate<true>(base, 512);
    __syncthreads();
    for (int c = 0; c < 512; c += 128)
      tl::tcgen05_st_32dp32bNx<128, false>(base[0], c, mine + tid * 512 + c);
    tl::cluster_sync();
    if (rank == 0 && w == 0) {
      tl::Tcgen05SMemDescriptor a, b;
      tl::initialize_tcgen05_descriptor(a, s, a_leading, a_stride, 0, 0, a_swizzle);
      tl::initialize_tcgen05_descriptor(b, s + b_start / 4, b_leading, b_stride, 0, 0, b_swizzle);
      const unsigned d = base[0] + d_at, at = base[0] + a_at;
      if (kind == 0) tl::tcgen05mma_ss<D::kFloat16, true>(a, b, d, accumulate, idesc, -1, 0, 0, 0);
      if (kind == 1)
        tl::tcgen05mma_ss<D::kFloat8_e4m3, true>(a, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 2) tl::tcgen05mma_ss<D::kInt8, true>(a, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 3) tl::tcgen05mma_ts<D::kFloat16, true>(at, b, d, accumulate, idesc, 0, 0, 0, 0);
      if (kind == 4)
        tl::tcgen05mma_blockscaled_ss<D::kFloat8_e4m3, true>(
            a, b, d, accumulate, idesc, at, at + 16);
      if (kind == 5) tl::tcgen05_cp<true>(tl::make_sf_smem_desc(s), d);
      tl::tcgen05_mma_arrive<true>(bar, mask);
      tl::tcgen05_mma_arrive<true>(bar + 1);
    }
    if (mask >> rank & 1) bar[0].wait(0);
    bar[1].wait(0);
    for (int c = 0; c < 512; c += 128)
      tl::tcgen05_ld_32dp32bNx<128, false>(base[0], c, mine + tid * 512 + c);
    tl::cluster_sync();
    if (w == 0) tl::tmem_deallocate<true>(base, 512);
"""
NUMBERS = (  # noqa: SIM905
    "words kind a_leading a_stride a_swizzle b_start b_leading b_stride b_swizzle"
    " d_at a_at accumulate idesc mask"
).split()
KINDS = {"f16": 0, "f8f6f4": 1, "i8": 2, "f16 ts": 3, "mxf8f6f4": 4, "cp": 5}


@functools.cache
def module(body: str, parameters: str) -> virtual.VirtualModule:
    return virtual.VirtualModule(kernel(parameters, HEAD + body), checked=True)


def step(cells, images, schedules=SCHEDULES, **numbers) -> None:
    """One step on `cells` (int32, blocks by lanes by columns), in place, under each schedule."""
    image = torch.stack(list(images))
    numbers = {"words": image.shape[1], "mask": 3, **numbers}
    values = [numbers.get(name, 0) for name in NUMBERS]
    declared = "unsigned* cells, const unsigned* image, " + ", ".join(f"int {n}" for n in NUMBERS)
    results = []
    for each in schedules:
        mine = cells.clone()
        module(STEP, declared).launch(
            "k", (2,), (128,), 200000, [mine, image, *values], cluster=(2,),
            options=virtual.VirtualOptions(**each),
        )  # fmt: skip
        results.append(mine)
    assert all(torch.equal(results[0], other) for other in results)
    cells.copy_(results[0])


def read(cells, m, n, column, integer=False):
    got = torch.zeros(m, n, dtype=torch.float64)
    values = cells if integer else cells.view(torch.float32)
    for i, j in itertools.product(range(m), range(n)):
        block, lane, at = pair_place(i, j, (m, n))
        got[i, j] = values[block, lane, column + at].double()
    return got


@pytest.mark.parametrize(
    ("element", "m", "n", "a_mode", "b_mode"),
    [
        ("f16", 256, 64, ("128B", False), ("64B", False)),
        ("bf16", 128, 64, ("64B", True), ("32B", True)),
        ("f16", 128, 16, ("none", False), ("none", False)),
        ("e4m3", 256, 48, ("128B", False), ("32B", False)),
        ("e5m2", 128, 128, ("32B", True), ("64B", True)),
        ("s8", 128, 32, ("32B", False), ("128B", False)),
        ("u8", 256, 64, ("128B", True), ("32B", True)),
    ],
)
def test_each_block_holds_half_of_every_operand(element, m, n, a_mode, b_mode):
    torch.manual_seed(0)
    kind, code, k, d_type = ELEMENTS[element]
    a, b = operands(m, n, k, element)
    images, numbers = pair_image_of(a, b, element, a_mode, b_mode)
    integer = kind == "i8"
    before = torch.randint(-9, 9, (2, LANES, COLUMNS))
    cells = before.int() if integer else before.float().view(torch.int32)
    untouched = cells.clone()
    old = read(cells, m, n, 40, integer)
    descriptor = idesc(m, n, d_type, code, code, mn_a=a_mode[1], mn_b=b_mode[1])
    step(cells, images, kind=KINDS[kind], idesc=descriptor, accumulate=1, d_at=40, **numbers)
    assert torch.equal(read(cells, m, n, 40, integer), old + (a @ b.T))
    width = n if m == 256 else n // 2
    untouched[:, :, 40 : 40 + width] = cells[:, :, 40 : 40 + width]
    assert torch.equal(cells, untouched)


def test_a_from_tensor_memory_of_each_block():
    torch.manual_seed(1)
    a, b = operands(256, 64, 16, "bf16")
    images, numbers = pair_image_of(a, b, "bf16", ("none", False), ("64B", False))
    cells = torch.full((2, LANES, COLUMNS), -1, dtype=torch.int32)
    cells[:, :, 100:108] = encode(a, "bf16").view(torch.int32).reshape(2, 128, 8)
    step(cells, images, kind=KINDS["f16 ts"], idesc=idesc(256, 64, 1, 1, 1), a_at=100, **numbers)
    assert torch.equal(read(cells, 256, 64, 0), (a @ b.T).double())


@pytest.mark.parametrize(("m", "n", "id_a", "id_b"), [(256, 128, 1, 2), (128, 48, 3, 0)])
def test_scales_of_own_rows_and_of_all_columns(m, n, id_a, id_b):
    torch.manual_seed(2)
    a, b = operands(m, n, 32, "e4m3")
    images, numbers = pair_image_of(a, b, "e4m3", ("128B", False), ("128B", False))
    cells = torch.randint(-(2**31), 2**31 - 1, (2, LANES, COLUMNS), dtype=torch.int64).int()
    scale_a, scale_b = torch.randint(120, 135, (m,)), torch.randint(120, 135, (n,))
    raw = cells.view(torch.uint8).reshape(2, LANES, COLUMNS, 4)
    for block in range(2):
        rows = scale_a.chunk(2)[block]
        for scales, column, index in ((rows, 200, id_a), (scale_b, 216, id_b)):
            for i, exponent in enumerate(scales):
                raw[block, i % 32 :: 32, column + i // 32, index] = int(exponent)
    descriptor = n >> 3 << 17 | m >> 4 << 24 | 1 << 23 | id_b << 4 | id_a << 29
    step(cells, images, kind=KINDS["mxf8f6f4"], idesc=descriptor, a_at=200, **numbers)
    want = torch.ldexp((a @ b.T).double(), scale_a[:, None] + scale_b[None, :] - 254)
    assert torch.equal(read(cells, m, n, 0), want)


@pytest.mark.parametrize("mask", [1, 2, 3])
def test_cp_from_own_shared_memory_and_commit_to_the_blocks_in_the_mask(mask):
    images = torch.arange(256, dtype=torch.int32).reshape(2, 128)
    cells = torch.full((2, LANES, COLUMNS), -1, dtype=torch.int32)
    step(cells, images, kind=KINDS["cp"], d_at=12, mask=mask)
    for block in range(2):
        assert torch.equal(cells[block, :, 12:16], images[block].reshape(32, 4).repeat(4, 1))
    assert (cells[:, :, :12] == -1).all() and (cells[:, :, 16:] == -1).all()


# Each broken in one way, by `which`.
ALLOC = "if (w == 0) tl::tmem_allocate<true>(base, 64); __syncthreads();"
BROKEN = [
    ("if (w == 0 && rank == 0) tl::tmem_allocate<true>(base, 64);",
     "wait on the other block of the pair"),
    ("if (w == 0) tl::tmem_allocate<true>(base, 64 << rank);", "asks for tcgen05.alloc of"),
    (ALLOC, "leak: tensor memory columns 0 to 63"),
    (ALLOC + "if (w == 0) tl::tmem_deallocate<true>(base, 32);", "no allocation has that address"),
    (ALLOC + "if (w == 0) tl::tmem_deallocate(base, 64);", "must all have the same"),
    (ALLOC + "if (w == 0 && rank) MMA(256, 64)", "tcgen05.mma.cta_group::2 by the odd"),
    (ALLOC + "if (w == 0 && !rank) MMA(64, 64)", "cta_group::2.kind::f16 has no shape M=64"),
    (ALLOC + "if (w == 0 && !rank) MMA(256, 24)", "has no shape M=256, N=24"),
    (ALLOC + "if (w == 0 && !rank) MMA(256, 128)", "columns 0 to 127 of tensor memory are not in"),
    (ALLOC + "if (w == 0 && !rank) tl::tcgen05mma_ts<D::kFloat16, true>(8, a, 0, 0, IDESC(128, 64),"
     " 0, 0, 0, 0);", "where both halves of the lanes"),
    (ALLOC + "if (w == 0 && !rank) tl::tcgen05_mma_arrive<true>(bar, 4);", "mask 0x4 in a cluster"),
    (ALLOC + "if (w == 0 && !rank) tl::tcgen05_mma_arrive<true>(bar, 0);", "to no block"),
]  # fmt: skip


@pytest.mark.parametrize("which", range(len(BROKEN)), ids=[words for _, words in BROKEN])
def test_broken_rules_are_errors(which):
    cases = "\n".join(f"if (which == {i}) {{ {text} }}" for i, (text, _) in enumerate(BROKEN))
    body = f"""
    tl::Tcgen05SMemDescriptor a;
    tl::initialize_tcgen05_descriptor(a, s, 1, 64, 0, 0, 2);
#define IDESC(M, N) (M >> 4 << 24 | N >> 3 << 17 | 1 << 4)
#define MMA(M, N) \\
      tl::tcgen05mma_ss<D::kFloat16, true>(a, a, base[0], 0, IDESC(M, N), 0, 0, 0, 0);
    {cases}
    tl::cluster_sync();
    """
    cells = torch.zeros(2 * LANES * COLUMNS, dtype=torch.int32)
    image = torch.zeros(2, dtype=torch.int32)
    parameters = "unsigned* cells, const unsigned* image, int words, int which"
    with pytest.raises(virtual.VirtualError) as error:
        module(body, parameters).launch(
            "k", (2,), (128,), 65536, [cells, image, 1, which], cluster=(2,),
            options=virtual.VirtualOptions(),
        )  # fmt: skip
    assert BROKEN[which][1] in str(error.value)
