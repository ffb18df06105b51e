"""Counters of the virtual GPU against counts made by hand."""

import pytest
import torch

import tileproof
from tileproof.dsl import get
from tileproof.runtime import virtual

from ...kernels.support import draw
from ...kernels.support import kernel as library_kernel
from .support import kernel

tilelang = pytest.importorskip("tilelang")
import tilelang.language as T  # noqa: E402

X = torch.arange(4096, dtype=torch.float32)


# What one warp reads: (expression of the element, accesses, bytes, sectors, lines, unique bytes).
GLOBAL = {
    "coalesced": ("x[tid]", 1, 128, 4, 1, 128),
    "strided by 2": ("x[2 * tid]", 1, 128, 8, 2, 128),
    "strided by 32": ("x[32 * tid]", 1, 128, 32, 32, 128),
    "broadcast": ("x[7]", 1, 128, 1, 1, 4),
    "misaligned": ("x[tid + 1]", 1, 128, 5, 2, 128),
    "misaligned by a sector": ("x[tid + 8]", 1, 128, 4, 2, 128),
    "descending": ("x[31 - tid]", 1, 128, 4, 1, 128),
    "4 floats": ("((float4*)x)[tid].y", 1, 128, 16, 4, 128),
    "vector": ("vector(((float4*)x)[tid])", 1, 512, 16, 4, 512),
    "half a warp": ("tid < 16 ? x[tid] : 0.f", 1, 64, 2, 1, 64),
    "a row twice": ("x[tid] + x[tid + 32 * (tid < 0)]", 2, 256, 8, 2, 128),
}
VECTOR = "auto vector = [](float4 v) { return v.x + v.y + v.z + v.w; };"
# The same for shared memory: (element, accesses, bytes, wavefronts, conflicts).
SHARED = {
    "one word a bank": ("s[tid]", 1, 128, 1, 0),
    "broadcast": ("s[3]", 1, 128, 1, 0),
    "2-way": ("s[2 * tid]", 1, 128, 2, 1),
    "4-way": ("s[4 * tid]", 1, 128, 4, 3),
    "32-way": ("s[32 * tid]", 1, 128, 32, 31),
    "padded": ("s[33 * tid]", 1, 128, 1, 0),
    "bytes of one word": ("((char*)s)[tid]", 1, 32, 1, 0),
    "8 bytes": ("pair(((float2*)s)[tid])", 1, 256, 2, 0),
    "16 bytes": ("vector(((float4*)s)[tid])", 1, 512, 4, 0),
    "16 bytes, strided": ("vector(((float4*)s)[2 * tid])", 1, 512, 8, 4),
    "16 bytes, one word a row": ("vector(((float4*)s)[8 * tid])", 1, 512, 32, 28),
    "16 bytes, broadcast": ("vector(((float4*)s)[0])", 1, 512, 4, 0),
}
PAIR = VECTOR + "auto pair = [](float2 v) { return v.x + v.y; };"


@pytest.fixture(scope="module")
def patterns() -> virtual.VirtualModule:
    """One kernel for every pattern, in one translation unit."""
    text = kernel("float* y, const float* x", f"{PAIR} y[tid] = 0;", "none")
    head = text.index('extern "C"')
    body = "{}\n extern __shared__ __align__(1024) float s[];\n y[tid] = {};"
    parts = [text]
    for i, (element, *_) in enumerate(GLOBAL.values()):
        one = kernel("float* y, const float* x", f"{PAIR} y[tid] = {element};", f"g{i}")
        parts.append(one[head:])
    for i, (element, *_) in enumerate(SHARED.values()):
        one = kernel("float* y", body.format(PAIR, element), f"s{i}")
        parts.append(one[head:])
    return virtual.VirtualModule("".join(parts), checked=True)


def of_pattern(patterns, name: str, args: list, smem: int = 0, **options) -> virtual.Counters:
    with virtual.counting() as counted:
        chosen = virtual.VirtualOptions(**options)
        patterns.launch(name, (1,), (32,), smem, args, options=chosen)
    return counted.launches[0]


@pytest.mark.parametrize("name", GLOBAL)
def test_global_reads(patterns, name):
    _, accesses, size, sectors, lines, unique = GLOBAL[name]
    y = torch.zeros(32)
    for seed in (0, 3, 4):
        got = of_pattern(patterns, f"g{list(GLOBAL).index(name)}", [y, X], seed=seed)
        assert got.global_read == virtual.GlobalTraffic(accesses, size, sectors, lines, unique)
        assert got.global_written == virtual.GlobalTraffic(1, 128, 4, 1, 128)


@pytest.mark.parametrize("name", SHARED)
def test_shared_reads_and_bank_conflicts(patterns, name):
    _, accesses, size, wavefronts, conflicts = SHARED[name]
    y = torch.zeros(32)
    for seed in (0, 3, 4):
        got = of_pattern(patterns, f"s{list(SHARED).index(name)}", [y], 8192, seed=seed)
        assert got.shared_read == virtual.SharedTraffic(accesses, size, wavefronts, conflicts)
        assert got.shared_written == virtual.SharedTraffic()


SHARED_ARRAY = "extern __shared__ __align__(1024) char s[];"
# Rows of 128 bytes: as they come, every row begins in bank 0; XORed, the 8 of a matrix cover all.
ROWS = {"plain": "tid % 8 * 128", "swizzled": "tid % 8 * 128 + ((tid % 8) ^ (tid / 8)) * 16"}


@pytest.fixture(scope="module")
def matrices() -> virtual.VirtualModule:
    """ldmatrix and stmatrix of rows that conflict or not, every mma.sync of 16-bit to 8-bit types,
    everything that is counted by events."""
    text = "#include <tl_templates/cuda/instruction/mma.h>\n"
    for name, row in ROWS.items():
        body = f"""{SHARED_ARRAY} int r[4];
        tl::ptx_ldmatrix_x4(s + {row}, r);
        tl::ptx_stmatrix_x2(s + {row}, r[0], r[1]);
        y[tid] = r[0] + r[1] + r[2] + r[3];"""
        text += kernel("int* y", body, name)
    text += kernel(
        "float* y",
        """
        unsigned a[4] = {}, b[2] = {}; float c[4] = {}; int d[4] = {};
        using T = tl::DataType;
        for (int i = 0; i < 3; ++i)
          tl::mma_sync<T::kFloat16, T::kFloat16, T::kFloat32, 16, 8, 16, false, true>(c, a, b);
        tl::mma_sync<T::kBFloat16, T::kBFloat16, T::kFloat32, 16, 8, 16, false, true>(c, a, b);
        tl::mma_sync<T::kFloat8_e4m3, T::kFloat8_e5m2, T::kFloat32, 16, 8, 32, false, true>(
            c, a, b);
        tl::mma_sync<T::kTensorFloat32, T::kTensorFloat32, T::kFloat32, 16, 8, 8, false, true>(
            c, a, b);
        tl::mma_sync<T::kInt8, T::kInt8, T::kInt32, 16, 8, 32, false, true>(d, a, b);
        y[tid] = c[0] + d[0];
        """,
        "mma",
    )
    text += kernel(
        "int* y, int* total",
        """
        __shared__ int partial[2];
        int x = __shfl_xor_sync(0xffffffffu, tid, 1);
        if (tid < 32) x += __shfl_down_sync(0xffffffffu, x, 2);
        x += __reduce_add_sync(0xffffffffu, x);
        if (tid % 32 == 0) partial[tid / 32] = x;
        __syncthreads();
        int any = __syncthreads_or(tid == 3);
        atomicAdd(total, partial[tid / 32] * any);
        for (int i = tid / 32; i < 2; ++i) y[tid] += 1;
        """,
        "events",
    )
    return virtual.VirtualModule(text, checked=True)


@pytest.mark.parametrize(("name", "wavefronts"), [("plain", 8), ("swizzled", 1)])
def test_rows_of_ldmatrix_and_stmatrix(matrices, name, wavefronts):
    got = of_pattern(matrices, name, [torch.zeros(32, dtype=torch.int32)], 1024)
    # The four matrices of plain rows are the same one. Each is eight rows of 16 bytes.
    assert got.shared_read == virtual.SharedTraffic(4, 512, 4 * wavefronts, 4 * (wavefronts - 1))
    assert got.shared_written == virtual.SharedTraffic(2, 256, 2 * wavefronts, 2 * (wavefronts - 1))


def test_matrix_operations_by_type(matrices):
    got = of_pattern(matrices, "mma", [torch.zeros(32)])
    assert got.matrix == {
        "mma.sync f16": 3 * 2 * 16 * 8 * 16,
        "mma.sync bf16": 2 * 16 * 8 * 16,
        "mma.sync fp8": 2 * 16 * 8 * 32,
        "mma.sync tf32": 2 * 16 * 8 * 8,
        "mma.sync int8": 2 * 16 * 8 * 32,
    }


def test_events_of_several_blocks_on_any_schedule_and_number_of_threads(matrices):
    blocks, y, total = 6, torch.zeros(64, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    seen = []
    for options in ({}, {"threads": 3}, {"seed": 1}, {"seed": 2, "threads": 2}):
        with virtual.counting() as counted:
            chosen = virtual.VirtualOptions(**options)
            matrices.launch("events", (blocks,), (64,), 0, [y, total], options=chosen)
        seen += counted.launches
    got = seen[0]
    assert all(other == got for other in seen)
    assert (got.grid, got.block, got.kernel) == ((6, 1, 1), (64, 1, 1), "events")
    assert (got.shuffles, got.reductions, got.barriers) == (3 * blocks, 2 * blocks, 2 * blocks)
    assert got.atomics == 64 * blocks
    # Of each block: warps read `y` 2 and 1 times, 4 sectors each, and the atomic's sector twice.
    traffic = {"accesses": 5, "bytes": 2 * 128 + 128 + 256, "sectors": 3 * 4 + 2, "lines": 3 + 2}
    expected = virtual.GlobalTraffic(
        **{name: n * blocks for name, n in traffic.items()}, unique_bytes=64 * 4 + 4
    )
    assert got.global_read == expected
    assert got.global_written == expected
    # Elected lanes write one word each; everybody reads their warp's.
    assert got.shared_written == virtual.SharedTraffic(2 * blocks, 8 * blocks, 2 * blocks, 0)
    assert got.shared_read == virtual.SharedTraffic(2 * blocks, 256 * blocks, 2 * blocks, 0)


def test_asynchronous_copies_count_as_what_they_move():
    text = kernel(
        "float* y, const float* x",
        f"""{SHARED_ARRAY}
        tl::cp_async_gs<16>(s + tid * 16, x + tid * 4);
        tl::cp_async_gs_conditional<16>(s + 512 + tid * 16, x + tid * 4, tid < 8);
        tl::cp_async_commit(); tl::cp_async_wait<0>();
        y[tid] = ((float*)s)[tid];
        """,
        "copy",
    )
    text += kernel(
        "float* y, __grid_constant__ const CUtensorMap x, __grid_constant__ const CUtensorMap z",
        f"""{SHARED_ARRAY}
        __shared__ __align__(16) uint64_t memory[1];
        if (tid == 0) {{
          tl::mbarrier_init(memory[0], 1); tl::fence_barrier_init();
          tl::mbarrier_arrive_expect_tx(memory[0], 8 * 64);
          tl::tma_load(x, memory[0], s, 8, 60);
        }}
        __syncthreads();
        tl::mbarrier_wait(memory[0], 0);
        y[tid] = ((float*)s)[tid];
        tl::fence_proxy_async(); __syncthreads();
        if (tid == 0) {{
          tl::tma_store(z, s, 8, 0); tl::tma_store_arrive(); tl::tma_store_wait<0>();
          tl::tma_store_add(z, s, 8, 0); tl::tma_store_arrive(); tl::tma_store_wait<0>();
        }}
        """,
        "bulk",
    )
    module = virtual.VirtualModule(text, checked=True)
    y = torch.zeros(32)
    for late in (True, False):
        got = of_pattern(module, "copy", [y, X], 1024, late=late)
        assert got.copied_bytes == 2 * 512
        assert got.global_read == virtual.GlobalTraffic(2, 512 + 128, 16 + 4, 4 + 1, 512)
        assert got.shared_written == virtual.SharedTraffic(2, 1024, 8, 0)
        assert got.shared_read == virtual.SharedTraffic(1, 128, 1, 0)

        # A box of 16 x 8 floats at (8, 60) of 64 x 64: the last 4 rows do not exist.
        x, z = X.view(64, 64), torch.zeros(64, 64)
        maps = [virtual.TensorMap(t, 7, (64, 64), (256,), (16, 8)) for t in (x, z)]
        got = of_pattern(module, "bulk", [y, *maps], 1024, late=late)
        row = 16 * 4
        assert got.bulk_bytes == 3 * 8 * row
        assert got.global_read == virtual.GlobalTraffic(2, 12 * row, 24, 12, 12 * row)
        stored = virtual.GlobalTraffic(3, 16 * row + 128, 2 * 16 + 4, 16 + 1, 8 * row + 128)
        assert got.global_written == stored
        # 512 bytes by the copy, and 8 of the mbarrier when it is initialised.
        assert got.shared_written == virtual.SharedTraffic(2, 512 + 8, 4 + 1, 0)
        assert got.shared_read == virtual.SharedTraffic(3, 2 * 512 + 128, 8 + 1, 0)
        assert (got.barriers, got.mbarrier_waits) == (2, 32)


def test_nested_blocks_count_apart_and_results_stay(patterns):
    def pattern() -> torch.Tensor:
        y = torch.zeros(32)
        patterns.launch("g0", (1,), (32,), 0, [y, X])
        return y

    with virtual.counting() as outer:
        counted = pattern()
        with virtual.counting() as inner:
            pattern()
        pattern()
    assert torch.equal(counted, pattern())
    assert (len(outer.launches), len(inner.launches)) == (2, 1)


def test_only_checked_builds_are_counted():
    unchecked = virtual.VirtualModule(kernel("float* y", "y[tid] = 0;"), checked=False)
    with virtual.counting() as counted, pytest.raises(virtual.VirtualError, match="not a checked"):
        unchecked.launch("k", (1,), (32,), 0, [torch.zeros(32)])
    assert counted.launches == []
    unchecked.launch("k", (1,), (32,), 0, [torch.zeros(32)])  # and nothing stays counted
    assert counted.launches == []


def test_sectors_of_a_view_are_those_of_its_allocation(patterns):
    y = torch.zeros(32)
    (index,) = (i for i, name in enumerate(GLOBAL) if name == "coalesced")
    got = of_pattern(patterns, f"g{index}", [y, X[1:]])
    assert (got.global_read.sectors, got.global_read.lines) == (5, 2)


def product(size: int):
    @T.prim_func
    def product(
        a: T.Tensor((size, size), "float16"),
        b: T.Tensor((size, size), "float16"),
        c: T.Tensor((size, size), "float16"),
    ):
        with T.Kernel(1, threads=128):
            a_tile = T.alloc_shared((size, size), "float16")
            b_tile = T.alloc_shared((size, size), "float16")
            acc = T.alloc_fragment((size, size), "float32")
            T.copy(a, a_tile)
            T.copy(b, b_tile)
            T.clear(acc)
            T.gemm(a_tile, b_tile, acc)
            T.copy(acc, c)

    return product


# One block computes 64 x 64 of a product; operands of warpgroup and tensor memory instructions
# come from shared memory, those of mma.sync through ldmatrix.
@pytest.mark.parametrize(("arch", "unit"), [("sm_80", "mma.sync"), ("sm_90a", "wgmma")])
def test_operations_of_a_generated_product(arch, unit):
    size = 64
    a, b = torch.ones(size, size).half(), torch.ones(size, size).half()
    c = torch.zeros(size, size).half()
    with virtual.counting() as counted:
        tileproof.virtual.compile(product(size), arch)(a, b, c)
    (got,) = counted.launches
    assert got.matrix == {f"{unit} f16": 2 * size**3}
    assert got.unique_bytes == 3 * size * size * 2
    # Four k-steps of 16: the whole of A and B, 32 bytes to a row, once.
    assert got.operand_bytes == (4 * (64 + 64) * 32 if arch == "sm_90a" else 0)
    # Swizzled tiles: no read conflicts.
    assert got.shared_read.conflicts == 0


# Bytes of the arguments, each read or written by one launch at least: no kernel can move less.
# Sectors asked for are 1.1 times that at most, but for what is shared between rows: the weight of
# rmsnorm. It is read for every row, and 8 floats of a thread by two accesses that touch the same
# sectors: beside 2 bytes read and 2 written of an element, 8.
LIBRARY = {
    "norm/rmsnorm": (17 * 4096 * (2 + 2 + 8), {}),
    "norm/rmsnorm_unweighted": (17 * 4096 * 4, {}),
    "mhc/post": (None, {"N": 4}),
    "mhc/collapse": (None, {"N": 4}),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_library_kernels_move_little_more_than_they_must(name):
    sectors, sizes = LIBRARY[name]
    op = get(name)
    spec, call = library_kernel(op, checked=True, D=4096, act="bf16", **sizes)
    inputs = draw(spec, 17, 0)
    shapes = spec.bind(M=17)
    outputs = [
        torch.zeros(shapes[a.name], dtype=getattr(torch, a.dtype.torch))
        for a in spec.args
        if a.role == "out"
    ]
    with virtual.counting() as counted:
        call(*inputs, *outputs)
    (got,) = counted.launches
    least = sum(t.numel() * t.element_size() for t in [*inputs, *outputs])
    assert got.unique_bytes == least
    assert got.sector_bytes <= (1.1 * least if sectors is None else sectors)


def test_the_model_takes_the_slowest_resource():
    chip = virtual.Chip("C", "sm_0", 1e12, 10, 1e9, {"f16": 1e13}, "made up")
    traffic = virtual.GlobalTraffic(unique_bytes=10**6)
    work = virtual.Counters(grid=(20, 1, 1), global_read=traffic, matrix={"wgmma f16": 10**6})
    got = virtual.bound(work, chip)
    assert got.seconds == {"global memory": 1e-6, "shared memory": 0, "matrix units": 1e-7}
    assert str(got) == "model: at least 1 µs on C, limited by global memory"
    # A single block keeps one SM of ten busy: 2000 of its wavefronts of 128 bytes, one a cycle.
    shared = virtual.SharedTraffic(wavefronts=1000)
    work = virtual.Counters(
        grid=(1, 1, 1), shared_read=shared, operand_bytes=128000, matrix={"mma.sync f16": 10**6}
    )
    got = virtual.bound(work, chip)
    assert got.seconds["shared memory"] == pytest.approx(2e-6)
    assert got.seconds["matrix units"] == pytest.approx(1e-6)
    assert got.limit == "shared memory"
    with pytest.raises(ValueError, match="matrix type on C: got fp4, expected one of f16"):
        virtual.bound(virtual.Counters(grid=(1,), matrix={"mma.sync fp4": 1}), chip)


def test_every_architecture_has_a_chip_whose_rates_are_those_of_its_tensor_cores():
    # Dense f16 operations of an SM per cycle at the clock the rates are published for: A100 2048,
    # Ada and RTX Blackwell 512 with float32 sums, H100 4096 (below boost), B200 8192.
    per_cycle = {"sm_80": 2048, "sm_89": 512, "sm_90a": 4096, "sm_100a": 8192, "sm_120a": 512}
    assert set(virtual.CHIPS) == set(per_cycle)
    for arch, chip in virtual.CHIPS.items():
        rate = chip.matrix["f16"] / chip.sms / chip.clock
        assert 0.92 * per_cycle[arch] < rate < 1.01 * per_cycle[arch]
        assert chip.source and chip.matrix["bf16"] == chip.matrix["f16"]
