"""Warp collectives and matrix fragments, against tables written from the PTX manual."""

import pytest
import torch

from .support import run

LANES = torch.arange(32)


@pytest.mark.parametrize(
    ("call", "source"),
    [
        ("__shfl_sync(0xffffffffu, x, 5)", lambda i: 5),
        ("__shfl_sync(0xffffffffu, x, 9, 8)", lambda i: i // 8 * 8 + 1),
        ("__shfl_up_sync(0xffffffffu, x, 3)", lambda i: i - 3 if i >= 3 else i),
        ("__shfl_up_sync(0xffffffffu, x, 3, 8)", lambda i: i - 3 if i % 8 >= 3 else i),
        ("__shfl_down_sync(0xffffffffu, x, 4)", lambda i: i + 4 if i + 4 < 32 else i),
        ("__shfl_down_sync(0xffffffffu, x, 4, 8)", lambda i: i + 4 if i % 8 < 4 else i),
        ("__shfl_xor_sync(0xffffffffu, x, 17)", lambda i: i ^ 17),
        ("__shfl_xor_sync(0xffffffffu, x, 8, 8)", lambda i: i if i & 8 == 0 else i ^ 8),
    ],
)
def test_shuffles_read_the_lane_of_the_manual(call, source):
    y = torch.zeros(32, dtype=torch.int32)
    run("int* y", f"int x = 100 + tid; y[tid] = {call};", [y], seed=1)
    assert y.tolist() == [100 + source(i) for i in range(32)]


def test_disjoint_masks_of_one_warp_work_at_once():
    y = torch.zeros(32, dtype=torch.int32)
    run(
        "int* y",
        "unsigned m = tid < 16 ? 0xffffu : 0xffff0000u; y[tid] = __reduce_add_sync(m, tid);",
        [y],
        seed=2,
    )
    assert y.tolist() == [sum(range(16))] * 16 + [sum(range(16, 32))] * 16


@pytest.mark.parametrize("seed", range(6))
def test_a_partial_mask_may_come_before_the_full_one(seed):
    # lanes 8..31 already wait for all when lanes 0..7 first talk among themselves, in two groups
    y = torch.zeros(32, dtype=torch.int32)
    run(
        "int* y",
        """
        int sum = 0;
        if (tid < 3) for (int i = 0; i < 4; ++i) sum += __reduce_add_sync(7u, tid);
        else if (tid < 8) for (int i = 0; i < 9; ++i) sum += __reduce_add_sync(0xf8u, tid);
        y[tid] = __reduce_max_sync(0xffffffffu, sum);
        """,
        [y],
        seed=seed,
    )
    assert y.tolist() == [9 * (3 + 4 + 5 + 6 + 7)] * 32


def test_ballot_and_votes():
    y = torch.zeros(3, dtype=torch.int32)
    run(
        "int* y",
        """
        int b = (int)__ballot_sync(0xffffffffu, tid % 3 == 0);
        int any = __any_sync(0xffffffffu, tid == 7), all = __all_sync(0xffffffffu, tid < 31);
        if (tid == 0) { y[0] = b; y[1] = any; y[2] = all; }
        """,
        [y],
    )
    ballot = sum(1 << i for i in range(0, 32, 3))
    assert y.tolist() == [ballot, 1, 0]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_fragment_layout(count, transposed):
    # PTX ISA, "ldmatrix": thread l of register i holds elements (row l/4, columns 2(l%4), +1)
    matrices = torch.arange(count * 64, dtype=torch.int16)
    y = torch.full((32, count, 2), -1, dtype=torch.int16)
    suffix = "_trans" if transposed else ""
    run(
        "short* y, const short* x",
        f"""
        extern __shared__ __align__(1024) short s[];
        for (int i = tid; i < {count * 64}; i += 32) s[i] = x[i];
        __syncthreads();
        int registers[{count}];
        tl::ptx_ldmatrix_x{count}{suffix}(s + (tid % {count * 8}) * 8, registers);
        for (int i = 0; i < {count}; ++i) ((int*)y)[tid * {count} + i] = registers[i];
        """,
        [y, matrices],
        smem=count * 128,
    )
    for lane in range(32):
        for i in range(count):
            for e in range(2):
                row, column = lane // 4, 2 * (lane % 4) + e
                if transposed:
                    row, column = column, row
                assert y[lane, i, e] == i * 64 + row * 8 + column


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix_undoes_ldmatrix(transposed):
    x = torch.arange(256, dtype=torch.int16)
    y = torch.zeros_like(x)
    suffix = "_trans" if transposed else ""
    run(
        "short* y, const short* x",
        f"""
        extern __shared__ __align__(1024) short s[];
        for (int i = tid; i < 256; i += 32) s[i] = x[i];
        __syncthreads();
        int r[4];
        tl::ptx_ldmatrix_x4{suffix}(s + tid * 8, r);
        tl::ptx_stmatrix_x4{suffix}(s + 256 + tid * 8, r[0], r[1], r[2], r[3]);
        __syncthreads();
        for (int i = tid; i < 256; i += 32) y[i] = s[256 + i];
        """,
        [y, x],
        smem=1024,
    )
    assert torch.equal(y, x)


# Fragment tables of the PTX manual, "Matrix Fragments for mma.m16n8kK": element i of lane l.
def a16(lane, i):  # .f16/.bf16 m16n8k16
    row = lane // 4 + (8 if i in (2, 3, 6, 7) else 0)
    return row, lane % 4 * 2 + i % 2 + (8 if i >= 4 else 0)


def b16(lane, i):
    return lane % 4 * 2 + i % 2 + (8 if i >= 2 else 0), lane // 4


def a8(lane, i):  # .u8/.s8/.e4m3/.e5m2 m16n8k32
    row = lane // 4 + (0 if i < 4 or 8 <= i < 12 else 8)
    return row, lane % 4 * 4 + i % 4 + (16 if i >= 8 else 0)


def b8(lane, i):
    return lane % 4 * 4 + i % 4 + (16 if i >= 4 else 0), lane // 4


def a32(lane, i):  # .tf32 m16n8k8
    return lane // 4 + (8 if i in (1, 3) else 0), lane % 4 + (4 if i >= 2 else 0)


def b32(lane, i):
    return lane % 4 + (4 if i >= 1 else 0), lane // 4


def c32(lane, i):
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2


@pytest.mark.parametrize(
    ("ctype", "a_type", "b_type", "k", "a_map", "b_map", "dtype"),
    [
        ("kFloat32", "kFloat16", "kFloat16", 16, a16, b16, torch.float16),
        ("kFloat32", "kBFloat16", "kBFloat16", 16, a16, b16, torch.bfloat16),
        ("kFloat32", "kTensorFloat32", "kTensorFloat32", 8, a32, b32, torch.float32),
        ("kFloat32", "kFloat8_e4m3", "kFloat8_e4m3", 32, a8, b8, torch.float8_e4m3fn),
        ("kFloat32", "kFloat8_e5m2", "kFloat8_e5m2", 32, a8, b8, torch.float8_e5m2),
        ("kInt32", "kInt8", "kInt8", 32, a8, b8, torch.int8),
    ],
)
def test_mma_fragments(ctype, a_type, b_type, k, a_map, b_map, dtype):
    torch.manual_seed(0)
    # small integers: every format holds them and every sum is exact, so layouts alone decide
    a, b = (torch.randint(-3, 4, shape).to(dtype) for shape in ((16, k), (k, 8)))
    n_a, n_b = 16 * k // 32, 8 * k // 32
    storage = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    fragments_a = torch.zeros(32, n_a, dtype=storage)
    fragments_b = torch.zeros(32, n_b, dtype=storage)
    for lane in range(32):
        for i in range(n_a):
            fragments_a[lane, i] = a.view(storage)[a_map(lane, i)]
        for i in range(n_b):
            fragments_b[lane, i] = b.view(storage)[b_map(lane, i)]
    accumulator = torch.int32 if ctype == "kInt32" else torch.float32
    c = torch.randint(-3, 4, (16, 8)).to(accumulator)
    fragments_c = torch.stack(
        [torch.stack([c[c32(lane, i)] for i in range(4)]) for lane in range(32)]
    )
    name = "int" if ctype == "kInt32" else "float"
    bytes_a, bytes_b = n_a * a.element_size(), n_b * b.element_size()
    run(
        f"{name}* c, const unsigned* a, const unsigned* b",
        f"using D = tl::DataType; tl::mma_sync<D::{a_type}, D::{b_type}, D::{ctype}, 16, 8, {k},"
        f" false, true>(c + tid * 4, a + tid * {bytes_a // 4}, b + tid * {bytes_b // 4});",
        [fragments_c, fragments_a.view(torch.int32), fragments_b.view(torch.int32)],
    )
    want = c.double() + a.double() @ b.double()
    got = torch.zeros(16, 8, dtype=torch.float64)
    for lane in range(32):
        for i in range(4):
            got[c32(lane, i)] = fragments_c[lane, i].double()
    assert torch.equal(got, want)


@pytest.mark.parametrize("threads", [32, 128])
def test_all_reduce_folds_the_farthest_first(threads):
    torch.manual_seed(0)
    x = torch.randn(threads) * torch.logspace(-3, 3, threads)
    y = torch.zeros(threads)
    run(
        "float* y, const float* x",
        f"""
        extern __shared__ __align__(1024) float workspace[];
        y[tid] = tl::AllReduce<tl::SumOp, {threads}, 1, 0, tl::NamedBarrier<{threads}>>::run(
            x[tid], workspace);
        """,
        [y, x],
        block=(threads,),
        smem=threads * 4,
        seed=1,
    )
    want = x.clone()
    offset = threads // 2
    while offset:
        want = want + want[torch.arange(threads) ^ offset]
        offset //= 2
    assert torch.equal(y, want)


def test_strided_all_reduce_keeps_groups_apart():
    y = torch.zeros(32, dtype=torch.int32)
    run("int* y", "y[tid] = tl::AllReduce<tl::MaxOp, 32, 4>::run(tid);", [y])
    assert y.tolist() == [28 + i % 4 for i in range(32)]


@pytest.mark.parametrize("reverse", [False, True])
def test_inclusive_scan_carries_across_segments(reverse):
    x = torch.arange(1, 71).float()
    y = torch.zeros(70)
    run(
        "float* y, const float* x",
        f"tl::CumSum1D<32, {str(reverse).lower()}>::run(x, y, 70);",
        [y, x],
    )
    want = x.flip(0).cumsum(0).flip(0) if reverse else x.cumsum(0)
    assert torch.equal(y, want)


def test_atomics_of_concurrent_blocks_lose_nothing():
    y = torch.zeros(2)
    run("float* y", "atomicAdd(y, 1.f); atomicMax(y + 1, (float)tid);", [y], grid=(64,), threads=4)
    assert y.tolist() == [64 * 32, 31]
