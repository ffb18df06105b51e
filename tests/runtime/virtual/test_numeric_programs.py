"""TileLang programs over the whole range of number types, generated for every architecture that
takes them and executed as they stand."""

import pytest
import torch

import tileproof
from tileproof.codegen.lower import lower

tilelang = pytest.importorskip("tilelang")
import tilelang.language as T  # noqa: E402

# dtype -> (accumulator, architectures whose T.gemm is a mma.sync of it)
TYPES = {
    "float16": ("float16", ["sm_80", "sm_120a"]),
    "float32": ("float32", ["sm_80", "sm_120a"]),  # multiplied as tf32
    "float64": ("float64", ["sm_80", "sm_90a"]),
    "int8": ("int32", ["sm_80", "sm_120a"]),
    "float8_e4m3fn": ("float32", ["sm_89", "sm_120a"]),
    "float8_e5m2": ("float32", ["sm_89", "sm_120a"]),
}


def gemm(dtype, accumulator, m=32, n=32, k=64):
    @T.prim_func
    def gemm(
        a: T.Tensor((m, k), dtype), b: T.Tensor((n, k), dtype), c: T.Tensor((m, n), accumulator)
    ):
        with T.Kernel(1, threads=32) as _:
            a_tile = T.alloc_shared((m, 32), dtype)
            b_tile = T.alloc_shared((n, 32), dtype)
            acc = T.alloc_fragment((m, n), accumulator)
            T.clear(acc)
            for i in T.serial(k // 32):
                T.copy(a[0, i * 32], a_tile)
                T.copy(b[0, i * 32], b_tile)
                T.gemm(a_tile, b_tile, acc, transpose_B=True)
            T.copy(acc, c)

    return gemm


@pytest.mark.parametrize(
    ("dtype", "arch"), [(dtype, arch) for dtype, (_, archs) in TYPES.items() for arch in archs]
)
def test_gemm_of_every_type(dtype, arch):
    accumulator, _ = TYPES[dtype]
    lowered = lower(gemm(dtype, accumulator), arch)
    assert "mma_sync" in lowered.cuda
    torch.manual_seed(0)
    a, b = torch.randint(-3, 4, (2, 32, 64)).to(getattr(torch, dtype))
    c = torch.full((32, 32), -1).to(getattr(torch, accumulator))
    tileproof.virtual.compile(lowered, checked=True)(a, b, c)
    assert torch.equal(c.double(), a.double() @ b.double().T)  # small integers: exact


def casts(narrow, n=64):
    """From float32, back to it and to bf16, in vectors as TileLang chooses."""

    @T.prim_func
    def casts(
        x: T.Tensor((n,), "float32"),
        code: T.Tensor((n,), narrow),
        wide: T.Tensor((n,), "float32"),
        half: T.Tensor((n,), "bfloat16"),
    ):
        with T.Kernel(1, threads=16) as _:
            for i in T.Parallel(n):
                code[i] = T.cast(x[i], narrow)
            for i in T.Parallel(n):
                wide[i] = T.cast(code[i], "float32")
            for i in T.Parallel(n):
                half[i] = T.cast(code[i], "bfloat16")

    return casts


@pytest.mark.parametrize("arch", ["sm_89", "sm_120a"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"])
def test_casts_there_and_back(dtype, arch):
    x = torch.linspace(-300, 300, 64) * torch.logspace(-3, 0, 64)
    code = torch.zeros(64, dtype=getattr(torch, dtype))
    wide, half = torch.zeros(64), torch.zeros(64, dtype=torch.bfloat16)
    tileproof.virtual.compile(lower(casts(dtype), arch), checked=True)(x, code, wide, half)
    assert torch.equal(code.float(), x.to(getattr(torch, dtype)).float())
    assert torch.equal(wide, code.float())
    assert torch.equal(half, code.float().bfloat16())


def reductions(n=128):
    @T.prim_func
    def reductions(
        x: T.Tensor((8, n), "float16"),
        most: T.Tensor((8,), "float16"),
        total: T.Tensor((8,), "float32"),
        running: T.Tensor((8, n), "float32"),
        count: T.Tensor((4,), "int32"),
        pairs: T.Tensor((n,), "float32"),
    ):
        with T.Kernel(2, threads=64) as block:
            part = T.alloc_fragment((8, n), "float16")
            wide = T.alloc_fragment((8, n), "float32")
            tile = T.alloc_shared((8, n), "float32")
            maximum = T.alloc_fragment((8,), "float16")
            summed = T.alloc_fragment((8,), "float32")
            T.copy(x, part)
            T.reduce_max(part, maximum, dim=1)
            T.copy(x, wide)
            T.reduce_sum(wide, summed, dim=1)
            T.copy(x, tile)
            T.cumsum(tile, dim=1)
            if block == 0:
                T.copy(maximum, most)
                T.copy(summed, total)
                for i, j in T.Parallel(8, n):
                    running[i, j] = tile[i, j]
            for i, j in T.Parallel(8, n):
                T.atomic_add(count[(i + j) % 4], 1)
            for i, j in T.Parallel(8, n):
                T.atomic_add(pairs[j], T.cast(x[i, j], "float32"))

    return reductions


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_reduce_scan_and_atomics(arch):
    torch.manual_seed(0)
    x = torch.randint(-8, 9, (8, 128)).half()
    most, total = torch.zeros(8, dtype=torch.float16), torch.zeros(8)
    running, pairs = torch.zeros(8, 128), torch.zeros(128)
    count = torch.zeros(4, dtype=torch.int32)
    call = tileproof.virtual.compile(lower(reductions(), arch), checked=True)
    call(x, most, total, running, count, pairs)
    assert torch.equal(most, x.amax(1))
    assert torch.equal(total, x.float().sum(1))
    assert torch.equal(running, x.float().cumsum(1))
    assert count.tolist() == [2 * 8 * 32] * 4
    assert torch.equal(pairs, 2 * x.float().sum(0))
