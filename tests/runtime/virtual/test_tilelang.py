"""What TileLang generates, executed as it stands, for every architecture."""

import functools

import pytest
import torch

from tileproof.runtime import virtual

from .support import bits

tilelang = pytest.importorskip("tilelang")
import tilelang.language as T  # noqa: E402
from tilelang import tvm  # noqa: E402

ARCHS = ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"]
M, N, K, D = 70, 64, 96, 512
PASSES = {"tl.disable_tma_lower": True, "tl.disable_warp_specialized": True}


def gemm():
    M = T.dynamic("M")

    @T.prim_func
    def gemm(
        a: T.Tensor((M, K), "bfloat16"),
        b: T.Tensor((N, K), "bfloat16"),
        c: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, 32), N // 32, threads=64) as (bx, by):
            a_tile = T.alloc_shared((32, 32), "bfloat16")
            b_tile = T.alloc_shared((32, 32), "bfloat16")
            acc = T.alloc_fragment((32, 32), "float32")
            T.clear(acc)
            for k in T.Pipelined(K // 32, num_stages=2):
                T.copy(a[bx * 32, k * 32], a_tile)
                T.copy(b[by * 32, k * 32], b_tile)
                T.gemm(a_tile, b_tile, acc, transpose_B=True)
            T.copy(acc, c[bx * 32, by * 32])

    return gemm


def square_gemm(dtype, transposed, accumulator="float32"):
    @T.prim_func
    def gemm(
        a: T.Tensor((128, 128), dtype),
        b: T.Tensor((128, 128), dtype),
        c: T.Tensor((128, 128), accumulator),
    ):
        with T.Kernel(2, 1, threads=128) as (bx, _):
            a_tile = T.alloc_shared((64, 64), dtype)
            b_tile = T.alloc_shared((128, 64) if transposed else (64, 128), dtype)
            acc = T.alloc_fragment((64, 128), accumulator)
            T.clear(acc)
            for k in T.Pipelined(2, num_stages=2):
                T.copy(a[bx * 64, k * 64], a_tile)
                if transposed:
                    T.copy(b[0, k * 64], b_tile)
                else:
                    T.copy(b[k * 64, 0], b_tile)
                T.gemm(a_tile, b_tile, acc, transpose_B=transposed)
            T.copy(acc, c[bx * 64, 0])

    return gemm


# Makers are cached by identity, so each variant is one object.
VARIANTS = {
    (dtype, transposed): functools.partial(
        square_gemm, dtype, transposed, "int32" if dtype == "int8" else "float32"
    )
    for dtype, transposed in [
        ("float16", True),
        ("float16", False),
        ("float8_e4m3", True),
        ("int8", True),
    ]
}


def quantize():
    M = T.dynamic("M")

    @T.prim_func
    def quantize(
        x: T.Tensor((M, D), "bfloat16"),
        y: T.Tensor((M, D), "float8_e4m3"),
        s: T.Tensor((M,), "float32"),
    ):
        with T.Kernel(M, threads=128) as row:
            v = T.alloc_fragment((D,), "float32")
            most = T.alloc_fragment((1,), "float32")
            for d in T.Parallel(D):
                v[d] = T.cast(x[row, d], "float32")
            T.reduce_absmax(v, most)
            scale = T.exp2(T.ceil(T.log2(T.max(most[0], 1e-4) / 448.0)))
            for d in T.Parallel(D):
                y[row, d] = T.cast(T.clamp(v[d] / scale, -448.0, 448.0), "float8_e4m3")
            s[row] = scale

    return quantize


@functools.cache
def lowered(make, arch: str) -> str:
    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    with target, tvm.transform.PassContext(opt_level=3, config=PASSES):
        return tilelang.lower(make(), target=target).kernel_source


def launch(make, arch, grid, block, smem, tensors, **options):
    module = virtual.VirtualModule(lowered(make, arch), checked=True)
    (name,) = module.kernels
    args = [tensors.get(parameter, M) for _, parameter in module.kernels[name].parameters]
    module.launch(name, grid, block, smem, args, options=virtual.VirtualOptions(**options))


@pytest.mark.parametrize("arch", ARCHS)
def test_gemm_with_a_ragged_tail(arch):
    torch.manual_seed(0)
    a, b = torch.randn(M, K).bfloat16(), torch.randn(N, K).bfloat16()
    want = a.double() @ b.double().T
    outputs = []
    for options in ({}, {"late": False}, {"seed": 1}, {"seed": 2, "late": False, "threads": 1}):
        c = torch.full((M, N), torch.nan)
        launch(gemm, arch, (3, 2), (64,), 8192, {"a": a, "b": b, "c": c}, **options)
        outputs.append(bits(c))
    assert ((c.double() - want).norm() / want.norm()) < 1e-6
    assert all(torch.equal(outputs[0], other) for other in outputs)


@pytest.mark.parametrize("arch", ARCHS)
def test_row_reduction_and_fp8_quantisation_are_exact(arch):
    torch.manual_seed(0)
    x = torch.randn(M, D).bfloat16()
    y = torch.zeros(M, D, dtype=torch.float8_e4m3fn)
    s = torch.full((M,), torch.nan)
    launch(quantize, arch, (M,), (128,), 512, {"x": x, "y": y, "s": s})
    scale = torch.exp2(torch.ceil(torch.log2(x.float().abs().amax(1).clamp_min(1e-4) / 448)))
    assert torch.equal(s, scale)
    want = (x.float() / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(bits(y), bits(want))


def run_square_gemm(text: str, dtype: str, transposed: bool, **options) -> bool:
    torch.manual_seed(0)
    a, b = torch.randint(-4, 5, (2, 128, 128)).to(
        {"float16": torch.half, "float8_e4m3": torch.float8_e4m3fn, "int8": torch.int8}[dtype]
    )
    c = torch.full((128, 128), -1, dtype=torch.int32 if dtype == "int8" else torch.float32)
    module = virtual.VirtualModule(text, checked=True)
    (name,) = module.kernels
    tensors = {"a": a, "b": b, "c": c}
    args = [tensors[parameter] for _, parameter in module.kernels[name].parameters]
    chosen = virtual.VirtualOptions(**options)
    module.launch(name, (2, 1), (128,), 65536, args, options=chosen)
    other = b.double().T if transposed else b.double()
    return torch.equal(c.double(), a.double() @ other)


@pytest.mark.parametrize(("dtype", "transposed"), VARIANTS)
@pytest.mark.parametrize("options", [{}, {"late": False, "seed": 1}])
def test_wgmma_reads_its_operands_through_descriptors(dtype, transposed, options):
    text = lowered(VARIANTS[dtype, transposed], "sm_90a")
    assert "wgmma_ss" in text
    assert run_square_gemm(text, dtype, transposed, **options)


def test_a_dropped_wgmma_wait_shows_when_it_is_late():
    text = lowered(VARIANTS["float16", True], "sm_90a").replace("tl::warpgroup_wait<0>();", "")
    assert run_square_gemm(text, "float16", True, late=False)
    assert not run_square_gemm(text, "float16", True, late=True)


def test_a_dropped_barrier_in_generated_code_is_found():
    text = lowered(gemm, "sm_80")
    cut = text.rindex("__syncthreads();", 0, text.index("ptx_ldmatrix"))
    broken = text[:cut] + text[cut + len("__syncthreads();") :]
    module = virtual.VirtualModule(broken)
    torch.manual_seed(0)
    a, b = torch.randn(M, K).bfloat16(), torch.randn(N, K).bfloat16()
    (name,) = module.kernels
    wrong = []
    for seed in range(4):
        c = torch.full((M, N), torch.nan)
        tensors = {"a": a, "b": b, "c": c}
        args = [tensors.get(parameter, M) for _, parameter in module.kernels[name].parameters]
        options = virtual.VirtualOptions(seed=seed)
        module.launch(name, (3, 2), (64,), 8192, args, options=options)
        wrong.append(not torch.allclose(c.double(), a.double() @ b.double().T, atol=1e-3))
    assert any(wrong)
