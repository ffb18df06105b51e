"""TileLang programs for the matrix units of sm_100a, as they are generated."""

import functools
import re

import pytest
import torch

from tileproof.codegen.virtual import compile
from tileproof.runtime import virtual

tilelang = pytest.importorskip("tilelang")
import tilelang.cuda.language as T  # noqa: E402
from tilelang import tvm  # noqa: E402

WITHOUT_TMA = {"tl.disable_tma_lower": True, "tl.disable_warp_specialized": True}
SCHEDULES = [{}, {"late": False}, {"seed": 1}, {"seed": 2, "late": False}]
TORCH = {
    "float16": torch.half,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


def lowered(program, configs=WITHOUT_TMA) -> str:
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_100a"})
    with target, tvm.transform.PassContext(opt_level=3, config=configs):
        return tilelang.lower(program, target=target).kernel_source


@functools.cache
def gemm(
    shape,
    tile,
    dtype,
    accumulator,
    trans_a=False,
    trans_b=True,
    threads=128,
    synced=False,
    stages=0,
):
    """`synced`: a barrier before the program ends, and with it its tensor memory."""
    (M, N, K), (BM, BN, BK) = shape, tile

    @T.prim_func
    def gemm(
        a: T.Tensor((K, M) if trans_a else (M, K), dtype),
        b: T.Tensor((N, K) if trans_b else (K, N), dtype),
        c: T.Tensor((M, N), accumulator),
    ):
        with T.Kernel(N // BN, M // BM, threads=threads) as (bx, by):
            a_tile = T.alloc_shared((BK, BM) if trans_a else (BM, BK), dtype)
            b_tile = T.alloc_shared((BN, BK) if trans_b else (BK, BN), dtype)
            acc = T.alloc_tmem([BM, BN], accumulator)
            done = T.alloc_barrier(1)
            out = T.alloc_fragment((BM, BN), accumulator)
            for k in T.Pipelined(K // BK, num_stages=stages):
                if trans_a:
                    T.copy(a[k * BK, by * BM], a_tile)
                else:
                    T.copy(a[by * BM, k * BK], a_tile)
                if trans_b:
                    T.copy(b[bx * BN, k * BK], b_tile)
                else:
                    T.copy(b[k * BK, bx * BN], b_tile)
                T.gemm(
                    a_tile,
                    b_tile,
                    acc,
                    transpose_A=trans_a,
                    transpose_B=trans_b,
                    mbar=done,
                    clear_accum=k == 0,
                )
            T.copy(acc, out)
            T.copy(out, c[by * BM, bx * BN])
            if synced:
                T.sync_threads()

    return gemm


def check_gemm(text, shape, tile, dtype, trans_a=False, trans_b=True, threads=128, checked=False):
    torch.manual_seed(0)
    M, N, K = shape
    low = 0 if dtype == "uint8" else -4
    a = torch.randint(low, 5, (M, K)).to(TORCH[dtype])
    b = torch.randint(low, 5, (N, K)).to(TORCH[dtype])
    want = a.double() @ b.double().T
    a, b = (a.T.contiguous() if trans_a else a), (b if trans_b else b.T.contiguous())
    module = virtual.VirtualModule(text, checked=checked)
    (name,) = module.kernels
    for schedule in SCHEDULES:
        c = torch.full((M, N), -1, dtype=torch.int32 if "int" in dtype else torch.float32)
        options = virtual.VirtualOptions(**schedule)
        grid = (N // tile[1], M // tile[0])
        module.launch(name, grid, (threads,), 200000, [a, b, c], options=options)
        assert torch.equal(c.double(), want), schedule


@pytest.mark.parametrize(
    ("shape", "tile", "dtype", "variant", "instruction"),
    [
        ((256, 256, 128), (128, 128, 64), "float16", {}, "ss<tl::DataType::kFloat16"),
        ((128, 256, 64), (128, 256, 64), "float16", {"trans_a": True, "trans_b": False}, "ss"),
        ((256, 256, 64), (256, 256, 32), "bfloat16", {"threads": 256}, "ss"),
        ((128, 96, 64), (128, 96, 16), "bfloat16", {}, "ss"),
        ((64, 128, 64), (64, 128, 64), "bfloat16", {}, "ws_ss"),
        ((64, 128, 64), (32, 128, 64), "float16", {}, "ws_ss"),
        (
            (128, 128, 128),
            (128, 128, 64),
            "int8",
            {"trans_a": True, "trans_b": False},
            "ws_ss<tl::DataType::kInt8",
        ),
        ((128, 128, 64), (128, 128, 64), "uint8", {}, "ws_ss<tl::DataType::kUInt8"),
        ((128, 128, 128), (128, 128, 128), "float8_e4m3fn", {}, "ws_ss<tl::DataType::kFloat8_e4m3"),
        (
            (128, 128, 64),
            (128, 64, 64),
            "float8_e5m2",
            {"trans_a": True},
            "ws_ss<tl::DataType::kFloat8_e5m2",
        ),
    ],
)
def test_gemm_in_tensor_memory(shape, tile, dtype, variant, instruction):
    accumulator = "int32" if "int" in dtype else "float32"
    text = lowered(gemm(shape, tile, dtype, accumulator, **variant))
    assert f"tl::tcgen05mma_{instruction}" in text
    check_gemm(text, shape, tile, dtype, **variant)


def test_freeing_without_a_barrier_is_found_in_checked_builds():
    # TileLang 0.1.15 itself frees tensor memory from one warp while others may still load from it
    shape, tile = (128, 128, 64), (128, 128, 64)
    with pytest.raises(virtual.VirtualError, match=r"use after free: tcgen05.ld, columns 0 to 127"):
        check_gemm(
            lowered(gemm(shape, tile, "float16", "float32")), shape, tile, "float16", checked=True
        )
    text = lowered(gemm(shape, tile, "float16", "float32", synced=True))
    check_gemm(text, shape, tile, "float16", checked=True)


def test_a_dropped_wait_shows_when_late():
    shape = tile = (128, 128, 64)
    text = lowered(gemm(shape, tile, "float16", "float32", synced=True))
    broken, waits = re.subn(r"done\[0\]\.wait\(\w+\);", "", text)
    assert waits == 1
    with pytest.raises(
        virtual.VirtualError, match=r"dealloc while operations of warp 0 .* not known"
    ):
        check_gemm(broken, shape, tile, "float16")


def launch(text: str, args: list, threads: int = 128, **options) -> None:
    module = virtual.VirtualModule(text, checked=True)
    (name,) = module.kernels
    order = [parameter for _, parameter in module.kernels[name].parameters]
    tensors = dict(zip(sorted(order), args, strict=True))
    module.launch(
        name,
        (1,),
        (threads,),
        200000,
        [tensors[parameter] for parameter in order],
        options=virtual.VirtualOptions(**options),
    )


def from_tensor_memory(M, N, K=64):
    """A comes through tensor memory."""

    @T.prim_func
    def gemm(
        a: T.Tensor((M, K), "bfloat16"),
        b: T.Tensor((N, K), "bfloat16"),
        c: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(1, threads=128) as _:
            a_local = T.alloc_fragment((M, K), "bfloat16")
            a_tile = T.alloc_tmem([M, K], "bfloat16")
            b_tile = T.alloc_shared((N, K), "bfloat16")
            acc = T.alloc_tmem([M, N], "float32")
            done = T.alloc_barrier(1)
            out = T.alloc_fragment((M, N), "float32")
            T.copy(a, a_local)
            T.copy(a_local, a_tile)
            T.copy(b, b_tile)
            T.tcgen05_gemm(a_tile, b_tile, acc, transpose_B=True, mbar=done, clear_accum=True)
            T.mbarrier_wait_parity(done, 0)
            T.copy(acc, out)
            T.copy(out, c)
            T.sync_threads()

    return gemm


@pytest.mark.parametrize(("M", "N"), [(128, 64), (64, 128)])
def test_a_from_tensor_memory(M, N):
    K = 64
    text = lowered(from_tensor_memory(M, N, K))
    assert "tcgen05mma_ts<" in text and "tcgen05_st_" in text
    a, b = torch.randint(-4, 5, (M, K)).bfloat16(), torch.randint(-4, 5, (N, K)).bfloat16()
    for schedule in SCHEDULES:
        c = torch.full((M, N), torch.nan)
        launch(text, [a, b, c], **schedule)
        assert torch.equal(c, a.float() @ b.float().T), schedule


def block_scaled(M, N, K):
    """Operands of 8 bits with a scale for each 32 of K, four exponents to a word."""

    @T.prim_func
    def gemm(
        a: T.Tensor((M, K), "float8_e4m3fn"),
        b: T.Tensor((N, K), "float8_e4m3fn"),
        c: T.Tensor((M, N), "float32"),
        s: T.Tensor((M,), "uint32"),
        t: T.Tensor((N,), "uint32"),
    ):
        with T.Kernel(1, threads=128) as _:
            a_tile = T.alloc_shared((M, K), "float8_e4m3fn")
            b_tile = T.alloc_shared((N, K), "float8_e4m3fn")
            s_tile = T.alloc_shared((M,), "uint32")
            t_tile = T.alloc_shared((N,), "uint32")
            s_scales = T.alloc_tmem([M, M // 128 * 4], "uint32")
            t_scales = T.alloc_tmem([M, N // 128 * 4], "uint32")
            acc = T.alloc_tmem([M, N], "float32")
            done = T.alloc_barrier(1)
            out = T.alloc_fragment((M, N), "float32")
            T.copy(a, a_tile)
            T.copy(b, b_tile)
            T.copy(s, s_tile)
            T.copy(t, t_tile)
            T.sync_threads()
            if T.get_thread_binding() < 32:
                T.tcgen05_sf_warp_transpose(s_tile)
                T.tcgen05_sf_warp_transpose(t_tile)
                T.fence_proxy_async()
                T.tcgen05_cp_warpx4(s_tile, s_scales)
                T.tcgen05_cp_warpx4(t_tile, t_scales)
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
            )
            T.mbarrier_wait_parity(done, 0)
            T.copy(acc, out)
            T.copy(out, c)
            T.sync_threads()

    return gemm


@pytest.mark.parametrize("N", [128, 256])
def test_block_scaled_gemm(N):
    M, K = 128, 128
    text = lowered(block_scaled(M, N, K))
    assert "tcgen05mma_blockscaled_ss<" in text
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
        launch(text, [a, b, c, s.view(torch.int32)[:, 0], t.view(torch.int32)[:, 0]], **schedule)
        assert torch.equal(c.double(), scaled[0] @ scaled[1].T), schedule


def test_default_lowering_with_tma_and_warp_specialisation():
    program = gemm((256, 128, 256), (128, 128, 64), "bfloat16", "float32", stages=2)
    run = compile(program, "sm_100a", checked=False)
    torch.manual_seed(0)
    a, b = torch.randint(-4, 5, (256, 256)).bfloat16(), torch.randint(-4, 5, (128, 256)).bfloat16()
    for schedule in SCHEDULES:
        c = torch.full((256, 128), torch.nan)
        with virtual.options(**schedule):
            run(a, b, c)
        assert torch.equal(c, a.float() @ b.float().T), schedule
