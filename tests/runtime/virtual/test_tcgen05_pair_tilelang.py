"""TileLang programs in which two blocks of a cluster multiply together, as they are generated."""

import pytest
import torch

from tileproof.codegen.virtual import compile
from tileproof.runtime import virtual

tilelang = pytest.importorskip("tilelang")
import tilelang.cuda.language as T  # noqa: E402

SCHEDULES = [{}, {"late": False}, {"seed": 1}, {"seed": 2, "late": False}]
TORCH = {
    "float16": torch.half,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "float8_e4m3fn": torch.float8_e4m3fn,
}


def gemm(shape, tile, dtype, accumulator):
    """Each block has half of the tile's rows of A and half of its rows of B."""
    (M, N, K), (BM, BN, BK) = shape, tile
    HM, HN = BM // 2, BN // 2

    @T.prim_func
    def gemm(
        a: T.Tensor((M, K), dtype),
        b: T.Tensor((N, K), dtype),
        c: T.Tensor((M, N), accumulator),
    ):
        with T.Kernel(M // HM, N // BN, threads=128, cluster_dims=(2, 1, 1)) as (bx, by):
            a_tile = T.alloc_shared((HM, BK), dtype)
            b_tile = T.alloc_shared((HN, BK), dtype)
            acc = T.alloc_tmem([HM, BN], accumulator)
            done = T.alloc_cluster_barrier([1])
            out = T.alloc_fragment((HM, BN), accumulator)
            for k in T.serial(K // BK):
                T.copy(a[bx * HM, k * BK], a_tile)
                T.copy(b[by * BN + T.block_rank_in_cluster() * HN, k * BK], b_tile)
                T.cluster_sync()
                T.tcgen05_gemm(
                    a_tile,
                    b_tile,
                    acc,
                    transpose_B=True,
                    mbar=done,
                    clear_accum=k == 0,
                    use_2cta=True,
                )
                T.mbarrier_wait_parity(done, k % 2)
            T.copy(acc, out)
            T.copy(out, c[bx * HM, by * BN])

    return gemm


@pytest.mark.parametrize(
    ("shape", "tile", "dtype"),
    [
        ((512, 256, 128), (256, 128, 64), "float16"),
        ((256, 128, 64), (128, 64, 64), "bfloat16"),
        ((256, 128, 256), (256, 128, 128), "int8"),
        ((256, 256, 128), (256, 256, 128), "float8_e4m3fn"),
    ],
)
def test_gemm_of_two_blocks(shape, tile, dtype):
    M, N, K = shape
    accumulator = "int32" if dtype == "int8" else "float32"
    run = compile(gemm(shape, tile, dtype, accumulator), "sm_100a", checked=True)
    assert ", true>(" in run.lowered.cuda and "tl::tmem_allocate<true>(" in run.lowered.cuda
    torch.manual_seed(0)
    a, b = (torch.randint(-4, 5, (n, K)).to(TORCH[dtype]) for n in (M, N))
    for schedule in SCHEDULES:
        c = torch.full((M, N), -1, dtype=getattr(torch, accumulator))
        with virtual.options(**schedule):
            run(a, b, c)
        assert torch.equal(c.double(), a.double() @ b.double().T), schedule


def test_block_scaled_gemm_of_two_blocks():
    M, N, K = 256, 128, 128

    @T.prim_func
    def gemm(
        a: T.Tensor((M, K), "float8_e4m3fn"),
        b: T.Tensor((N, K), "float8_e4m3fn"),
        s: T.Tensor((M,), "uint32"),
        t: T.Tensor((N,), "uint32"),
        c: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(2, threads=128, cluster_dims=(2, 1, 1)) as bx:
            a_tile = T.alloc_shared((M // 2, K), "float8_e4m3fn")
            b_tile = T.alloc_shared((N // 2, K), "float8_e4m3fn")
            s_tile = T.alloc_shared((M // 2,), "uint32")
            t_tile = T.alloc_shared((N,), "uint32")
            s_scales = T.alloc_tmem([M // 2, 4], "uint32")
            t_scales = T.alloc_tmem([M // 2, 4], "uint32")
            acc = T.alloc_tmem([M // 2, N], "float32")
            done = T.alloc_cluster_barrier([1])
            out = T.alloc_fragment((M // 2, N), "float32")
            T.copy(a[bx * (M // 2), 0], a_tile)
            T.copy(b[bx * (N // 2), 0], b_tile)
            T.copy(s[bx * (M // 2)], s_tile)
            T.copy(t, t_tile)
            T.sync_threads()
            if T.get_thread_binding() < 32:
                T.tcgen05_sf_warp_transpose(s_tile)
                T.tcgen05_sf_warp_transpose(t_tile)
                T.fence_proxy_async()
            T.cluster_sync()
            if bx == 0 and T.get_thread_binding() < 32:
                T.tcgen05_cp_warpx4(s_tile, s_scales, use_2cta=True)
                T.tcgen05_cp_warpx4(t_tile, t_scales, use_2cta=True)
            T.tcgen05_gemm_blockscaled(
                a_tile,
                b_tile,
                acc,
                s_scales,
                t_scales,
                transpose_B=True,
                mbar=done,
                clear_accum=True,
                k_start=0,
                sf_a_granularity_k=32,
                sf_b_granularity_k=32,
                use_2cta=True,
            )
            T.mbarrier_wait_parity(done, 0)
            T.copy(acc, out)
            T.copy(out, c[bx * (M // 2), 0])

    run = compile(gemm, "sm_100a", checked=True)
    assert "tcgen05mma_blockscaled_ss<tl::DataType::kFloat8_e4m3, true>" in run.lowered.cuda
    assert "tl::tcgen05_cp<true>" in run.lowered.cuda
    torch.manual_seed(0)
    a, b = (torch.randint(-4, 5, (n, K)).to(torch.float8_e4m3fn) for n in (M, N))
    # four exponents to a word, one for each 32 of K
    s, t = (torch.randint(124, 131, (n, 4), dtype=torch.uint8) for n in (M, N))
    scaled = [
        x.double() * torch.exp2(e.double() - 127).repeat_interleave(32, 1)
        for x, e in ((a, s), (b, t))
    ]
    for schedule in SCHEDULES:
        c = torch.full((M, N), torch.nan)
        with virtual.options(**schedule):
            run(a, b, s.view(torch.uint32)[:, 0], t.view(torch.uint32)[:, 0], c)
        assert torch.equal(c.double(), scaled[0] @ scaled[1].T), schedule
