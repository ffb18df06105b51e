"""Warp and block functions beyond shuffles, and TileLang's reductions and scans."""

import numpy as np
import pytest
import torch

from .support import run


def test_redux_over_a_part_of_the_warp():
    x = torch.randint(-1000, 1000, (32,), dtype=torch.int32, generator=torch.manual_seed(0))
    y = torch.zeros(8, 32, dtype=torch.int32)
    run(
        "int* y, const int* x",
        """
        unsigned m = tid & 1 ? 0xaaaaaaaau : 0x55555555u;
        int v = x[tid];
        y[tid] = __reduce_add_sync(m, v);
        y[32 + tid] = __reduce_max_sync(m, v);
        y[64 + tid] = __reduce_min_sync(m, v);
        y[96 + tid] = __reduce_and_sync(m, v);
        y[128 + tid] = __reduce_or_sync(m, v);
        y[160 + tid] = __reduce_xor_sync(m, v);
        y[192 + tid] = (int)__reduce_max_sync(m, (unsigned)v);
        y[224 + tid] = (int)__reduce_min_sync(m, (unsigned)v);
        """,
        [y, x],
        seed=1,
    )
    for parity in range(2):
        v = x.numpy()[parity::2]
        u = v.view(np.uint32)
        want = [v.sum(), v.max(), v.min(), np.bitwise_and.reduce(v), np.bitwise_or.reduce(v)]
        want += [np.bitwise_xor.reduce(v), u.max().astype(np.int32), u.min().astype(np.int32)]
        for row, value in zip(y.numpy(), want, strict=True):
            assert (row[parity::2] == value).all()


def test_match_any_all_and_the_active_mask():
    y = torch.zeros(6, 32, dtype=torch.int32)
    run(
        "int* y",
        """
        y[tid] = (int)__match_any_sync(0xffffffffu, tid % 3);
        y[32 + tid] = (int)__match_any_sync(0xffffffffu, (long long)(tid & 16) << 40);
        int all = 7;
        y[64 + tid] = (int)__match_all_sync(0xffffffffu, tid / 32, &all) + 0 * all;
        y[96 + tid] = all;
        y[128 + tid] = (int)__match_all_sync(0xffffffffu, tid == 5, &all) | all;
        y[160 + tid] = (int)__activemask();
        """,
        [y],
    )
    same = [sum(1 << j for j in range(32) if j % 3 == i % 3) for i in range(32)]
    assert [v & 0xFFFFFFFF for v in y[0].tolist()] == same
    assert [v & 0xFFFFFFFF for v in y[1].tolist()] == [0xFFFF] * 16 + [0xFFFF0000] * 16
    assert y[2:].tolist() == [[-1] * 32, [1] * 32, [0] * 32, [-1] * 32]


@pytest.mark.parametrize("seed", range(3))
def test_barriers_that_count(seed):
    y = torch.zeros(96, 4, dtype=torch.int32)
    run(
        "int* y",
        """
        if (tid >= 90) return;
        int* row = y + tid * 4;
        row[0] = __syncthreads_count(tid % 3 == 0);
        row[1] = __syncthreads_and(tid < 90);
        row[2] = __syncthreads_and(tid != 50);
        row[3] = __syncthreads_or(tid == 89) * 10 + __syncthreads_or(tid == 90);
        """,
        [y],
        block=(96,),
        seed=seed,
    )
    assert y[:90].tolist() == [[30, 1, 0, 10]] * 90


def test_lane_and_warp_numbers_in_a_flattened_block():
    y = torch.zeros(128, 5, dtype=torch.int32)
    run(
        "int* y",
        """
        int i = (int)(threadIdx.x + 8 * threadIdx.y);
        int* row = y + i * 5;
        row[0] = tl::get_lane_idx();
        row[1] = tl::get_warp_idx();
        row[2] = tl::get_warp_group_idx(16, 2);
        row[3] = tl::tl_shuffle_elect<64>();
        row[4] = tl::tl_shuffle_elect<0>() + 2 * tl::tl_shuffle_elect<48>();
        row[4] += tl::get_warp_idx_sync(0);
        """,
        [y],
        block=(8, 16),
    )
    i = torch.arange(128)
    first = (i % 64 == 0).int()
    want = [i % 32, i // 32, i // 32, first, (i == 0).int() + 2 * first + i // 32]
    assert torch.equal(y, torch.stack([w.int() for w in want], 1))


OPERATIONS = {"SumOp": torch.add, "MaxOp": torch.fmax, "MinOp": torch.fmin}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float", torch.float32), ("half_t", torch.float16), ("bfloat16_t", torch.bfloat16)],
)
def test_all_reduce_with_every_template_argument(name, dtype):
    """Batches, an offset into the block, a stride between partners, all three operations."""
    torch.manual_seed(0)
    x = torch.randn(192, 3).to(dtype)
    y = torch.zeros(3, 192, 3, dtype=dtype)
    calls = "\n".join(
        f"""
        {{
          {name} v[3] = {{x[tid * 3], x[tid * 3 + 1], x[tid * 3 + 2]}};
          if (tid >= 64) {{
            tl::AllReduce<tl::{op}, 128, 8, 64, tl::NamedBarrier<128>, 3, 128>::run_batch(
                v, workspace);
          }}
          for (int i = 0; i < 3; ++i) y[{k} * 576 + tid * 3 + i] = v[i];
        }}
        __syncthreads();
        """
        for k, op in enumerate(OPERATIONS)
    )
    run(
        f"{name}* y, const {name}* x",
        f"extern __shared__ __align__(1024) {name} workspace[];{calls}",
        [y, x],
        block=(192,),
        smem=3 * 128 * 4,
        seed=1,
    )
    for got, operation in zip(y, OPERATIONS.values(), strict=True):
        want = x.clone()
        group, lane = want[64:], torch.arange(128)
        for offset in (64, 32, 16, 8):
            group[:] = operation(group, group[lane ^ offset])
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["half_t", "bfloat16_t"])
def test_nan_keeping_extremes_and_pairs(name):
    pair, word = ("__half2", "fp16x2") if name == "half_t" else ("__nv_bfloat162", "bf16x2")
    dtype = torch.float16 if name == "half_t" else torch.bfloat16
    x = torch.arange(64).to(dtype)
    x[3] = torch.nan
    y = torch.zeros(10, 2, dtype=dtype)
    run(
        f"{name}* y, const {name}* x",
        f"""
        uint1 v = ((const uint1*)x)[tid], r[5];
        r[0] = tl::AllReduce<tl::MaxOp_{word}, 32, 1>::run(v);
        r[1] = tl::AllReduce<tl::MinOp_{word}, 32, 1>::run(v);
        r[2] = tl::AllReduce<tl::MaxOpNan_{word}, 32, 1>::run(v);
        r[3] = tl::AllReduce<tl::MinOpNan_{word}, 32, 1>::run(v);
        r[4] = tl::AllReduce<tl::SumOp_{word}, 32, 1>::run(v);
        {name} s[5] = {{tl::AllReduce<tl::MaxOp, 32, 1>::run(x[2 * tid + 1]),
                        tl::AllReduce<tl::MinOp, 32, 1>::run(x[2 * tid + 1]),
                        tl::AllReduce<tl::MaxOpNan, 32, 1>::run(x[2 * tid + 1]),
                        tl::AllReduce<tl::MinOpNan, 32, 1>::run(x[2 * tid + 1]),
                        tl::warp_reduce_max(x[2 * tid])}};
        if (tid == 0)
          for (int i = 0; i < 5; ++i) {{
            ((uint1*)y)[i] = r[i];
            y[10 + 2 * i] = y[11 + 2 * i] = s[i];
          }}
        static_assert(sizeof({pair}) == 4, "");
        """,
        [y, x],
    )
    nan = float("nan")
    even_sum = float(sum(range(0, 64, 2)))
    want = [[62, 63], [0, 1], [62, nan], [0, nan], [even_sum, nan]]
    want += [[63, 63], [1, 1], [nan, nan], [nan, nan], [62, 62]]
    np.testing.assert_array_equal(y.float().numpy(), np.array(want, np.float32))


def test_warp_reductions():
    y = torch.zeros(8, dtype=torch.int32)
    run(
        "int* y",
        """
        int v = (tid * 37) % 101 - 50;
        int r[] = {tl::warp_reduce_sum(v), tl::warp_reduce_max(v), tl::warp_reduce_min(v),
                   tl::warp_reduce_bitand(v | 4), tl::warp_reduce_bitor(v & 24),
                   (int)tl::warp_reduce_sum((float)v), tl::warp_reduce(v, tl::BitXorOp()),
                   (int)tl::warp_reduce_max((int64_t)v << 33 >> 32)};
        if (tid == 0) for (int i = 0; i < 8; ++i) y[i] = r[i];
        """,
        [y],
    )
    v = np.array([(i * 37) % 101 - 50 for i in range(32)])
    fold = (np.bitwise_and.reduce(v | 4), np.bitwise_or.reduce(v & 24), v.sum())
    want = [v.sum(), v.max(), v.min(), *fold, np.bitwise_xor.reduce(v), 2 * v.max()]
    assert y.tolist() == [int(w) for w in want]


@pytest.mark.parametrize("scan", ["CumSum", "CumMax"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_scans_of_lines(scan, axis, reverse):
    height, width = 9, 70
    x = torch.randint(-50, 50, (height, width), generator=torch.manual_seed(0)).float()
    y = torch.zeros(height, width)
    flag = str(reverse).lower()
    run(
        "float* y, const float* x",
        f"tl::{scan}2D<128, {axis}, {flag}>::run(x, y, {height}, {width}, {width}, {width});",
        [y, x],
        block=(128,),
    )
    line = x.flip(axis) if reverse else x
    want = line.cumsum(axis) if scan == "CumSum" else line.cummax(axis).values
    assert torch.equal(y, want.flip(axis) if reverse else want)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int32, "int"), (torch.float16, "half_t"), (torch.float64, "double")]
)
def test_running_maximum_of_types(dtype, name):
    x = (torch.randperm(100, generator=torch.manual_seed(0)) - 120).to(dtype)
    y = torch.zeros(100, dtype=dtype)
    run(f"{name}* y, const {name}* x", "tl::CumMax1D<64>::run(x, y, 100);", [y, x], block=(64,))
    assert torch.equal(y, x.double().cummax(0).values.to(dtype))
