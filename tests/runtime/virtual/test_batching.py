"""Runs of ldmatrix and mma.sync: run builds do them at one meeting, checked builds one by one."""

import pytest
import tilelang.language as T
import torch

from tileproof.codegen import virtual
from tileproof.runtime.virtual import VirtualError
from tileproof.runtime.virtual.batching import batched

from .support import bits, run

MMA = (
    "tl::mma_sync<tl::DataType::kFloat16, tl::DataType::kFloat16, tl::DataType::kFloat32, 16, 8,"
    " 16, false, true>(reinterpret_cast<float*>(acc + ((i * 4) + 0)), reinterpret_cast<const"
    " unsigned*>(a_local + 0), reinterpret_cast<const unsigned*>(b_local + (i * 4)));"
)
LOAD = "tl::ptx_ldmatrix_x4((&(((half_t*)tile)[(((int)threadIdx.x) * 8)])), (&(a_local[0])));"


def text(*statements: str, declared: str = "float acc[16];") -> str:
    arrays = f"  {declared}\n  half_t a_local[8];\n  half_t b_local[16];\n"
    return arrays + "  for (int i = 0; i < 4; ++i) {\n" + "\n".join(statements) + "\n  }\n}\n"


def test_a_loop_of_calls_is_one_batch():
    got = batched(text(LOAD, MMA))
    assert "vgpu::Batch<8, 4>" in got and "tl::mma_sync" not in got and "tl::ptx" not in got
    assert got.count("\n") == text(LOAD, MMA).count("\n")


@pytest.mark.parametrize(
    "statements, declared",
    [
        (("acc[0] = 1;", MMA), "float acc[16];"),  # something between two calls
        ((MMA.replace("i * 4", "next(i) * 4"),), "float acc[16];"),  # a call in an operand
        ((MMA.replace("(i * 4)", "(at[i] * 4)"),), "float acc[16];"),  # a load in an operand
        ((MMA,), "__shared__ float acc[16];"),  # not registers
        ((MMA,), "float* acc = sums;"),
        ((MMA.replace("b_local", "acc"),), "float acc[16];"),  # reads what it writes
        ((LOAD.replace("* 8)]", "* a_local[0])]"),), "float acc[16];"),
        ((LOAD.replace("* 8)]", "* (k = i))]"),), "float acc[16];"),
    ],
)
def test_whatever_an_operand_may_depend_on_ends_a_run(statements, declared):
    assert batched(text(*statements, declared=declared)) == text(*statements, declared=declared)


@pytest.mark.parametrize("before", ["if (x)", "k = 1; // then;", "#define THEN {"])
def test_a_line_that_cannot_be_added_to_starts_no_batch(before):
    two = f"float acc[4];\nhalf_t a_local[8];\nhalf_t b_local[4];\n{before}\n{LOAD}\n{LOAD}"
    assert batched(two) == two
    assert batched(two.replace(before, "k = 1;")) != two.replace(before, "k = 1;")


def test_a_run_ends_where_its_list_would_be_too_long():
    loops = "".join(f"for (int i = 0; i < {n}; ++i) {{\n{MMA}\n}}\n" for n in (257, 200, 56, 2))
    got = batched("float acc[16];\nhalf_t a_local[8];\nhalf_t b_local[16];\n" + loops)
    assert "vgpu::Batch<256, 0>" in got and "vgpu::Batch<2, 0>" in got
    assert got.count("vgpu::Batch<") == 2 and got.count("tl::mma_sync") == 1


def gemm(dtype: str, out: str, transposed: bool):
    M, N, K = 64, 64, 64

    @T.prim_func
    def gemm(
        a: T.Tensor((M, K), dtype),
        b: T.Tensor((N, K) if transposed else (K, N), dtype),
        c: T.Tensor((M, N), out),
    ):
        with T.Kernel(1, threads=128) as _:
            a_tile = T.alloc_shared((M, K), dtype)
            b_tile = T.alloc_shared((N, K) if transposed else (K, N), dtype)
            acc = T.alloc_fragment((M, N), out)
            T.copy(a, a_tile)
            T.copy(b, b_tile)
            T.clear(acc)
            T.gemm(a_tile, b_tile, acc, transpose_B=transposed)
            T.gemm(a_tile, b_tile, acc, transpose_B=transposed)
            T.copy(acc, c)

    return gemm


@pytest.mark.parametrize(
    "dtype, out, transposed",
    [
        ("float16", "float32", False),
        ("bfloat16", "float32", True),
        ("int8", "int32", True),
        ("float16", "float16", True),
    ],
)
def test_both_builds_give_the_same_bits(dtype, out, transposed):
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.randn(64, 64, generator=draw).mul(9).to(getattr(torch, dtype)) for _ in "ab")
    results = []
    for checked in (False, True):
        f = virtual.compile(gemm(dtype, out, transposed), "sm_80", checked=checked)
        assert checked or "vgpu::Batch<" in batched(f.lowered.cuda)
        results.append(torch.empty(64, 64, dtype=getattr(torch, out)))
        f(a, b, results[-1])
    exact = 2 * (a.double() @ (b.double().T if transposed else b.double()))
    assert torch.allclose(results[0].double(), exact, rtol=2**-7, atol=exact.abs().max() * 2**-7)
    assert torch.equal(bits(results[0]), bits(results[1]))


def test_a_batch_needs_the_whole_warp():
    body = "  float acc[16];\n  half_t a_local[8];\n  half_t b_local[16];\n  if (tid < 31) {\n"
    body += f"  for (int i = 0; i < 4; ++i) {{\n  {MMA}\n  }}\n  }}\n  x[0] = acc[0];"
    with pytest.raises(VirtualError, match=r"mma_sync after line \d+ needs all 32 lanes"):
        run("float* x", body, [torch.zeros(1)], checked=False)
