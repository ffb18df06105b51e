"""Warp collectives, ldmatrix and stmatrix, against tables written from the PTX manual."""

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
