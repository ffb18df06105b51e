"""Resource tables say what the compilers said, and a kernel beyond a limit fails the build."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tileproof.codegen.build import build, compile_unit
from tileproof.codegen.device import compile_cuda
from tileproof.codegen.resources import MATRIX, Resources, from_ptxas, gate
from tileproof.codegen.sass import code, disassemble, listed, opcodes
from tileproof.codegen.toolchain import cuda_tool, run
from tileproof.dsl import ALL, ContractError, In, Op, Out, arch, dim, registry, static

FINE = Resources("k", 64, 0, 0, 0, 1024, 4096, 128, 100, {"HMMA": 8, "LDG": 4}, 9000)


@pytest.mark.parametrize("name", ALL)
def test_a_kernel_within_limits_passes(name):
    full = arch(name).smem - FINE.static_smem
    gate(replace(FINE, dynamic_smem=full, threads=1024), arch(name), op="a/b", matrix=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spill_loads": 4}, "a/b on sm_90a: spilled bytes: got 4, expected 0"),
        ({"spill_stores": 8}, "a/b on sm_90a: spilled bytes: got 8, expected 0"),
        (
            {"dynamic_smem": 227 * 1024 - 1023},
            "a/b on sm_90a: shared memory: got 232449, expected at most 232448 bytes a block",
        ),
        ({"threads": 1056}, "a/b on sm_90a: threads: got 1056, expected at most 1024"),
        (
            {"registers": 65, "threads": 1024},
            "a/b on sm_90a: registers: got 73728, expected at most 65536 a block",
        ),
        (
            {"sass": {"LDG": 4}},
            "a/b on sm_90a: matrix instructions: got none, expected at least one of "
            "HGMMA, QGMMA, IGMMA, HMMA, IMMA, QMMA, OMMA",
        ),
    ],
)
def test_a_kernel_beyond_a_limit_fails(change, words):
    with pytest.raises(ContractError) as raised:
        gate(replace(FINE, **change), arch("sm_90a"), op="a/b", matrix=True)
    assert str(raised.value) == words


def test_matrix_instructions_are_asked_for_only_where_declared():
    gate(replace(FINE, sass={}), arch("sm_80"), op="a/b", matrix=False)


SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) spilling_kernel(float* p, int n) {
  float v[64];
  #pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = p[i * n + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 64; ++i) p[i * n + threadIdx.x] = v[i] * v[63 - i] + v[(i * 7) % 64];
}
"""


def test_a_spilling_kernel_is_reported():
    used = compile_cuda(SPILLING, "sm_80", contract_fma=True).kernels["spilling_kernel"]
    assert used["registers"] <= 32
    assert used["spill_stores"] > 0
    assert used["spill_loads"] > 0
    assert used["sass"]["STL"] > 0
    assert used["sass"]["BAR"] == 1


def test_contraction_is_stated_per_kernel():
    text = 'extern "C" __global__ void f(float* p) { p[0] = p[1] * p[2] + p[3]; }'
    fused, separate = (
        compile_cuda(text, "sm_80", contract_fma=flag).kernels["f"]["sass"]
        for flag in (True, False)
    )
    assert fused.get("FFMA") == 1
    assert "FFMA" not in separate


@pytest.fixture
def test_op():
    """An op whose kernel each test supplies; it does not stay in the registry."""

    def make(stem, factory, **options):
        op = Op(
            f"test/{stem}",
            args=(In("x", "M D", "f32"), Out("y", "M D", "f32")),
            dims={"M": dim(0, 4096), "D": static(64, 64)},
            doc="for a test",
            reference=lambda x: x,
            shapes={},
        )
        made.append(op.name)
        op.kernel(**options)(factory)
        return op

    made: list[str] = []
    yield make
    for name in made:
        del registry._OPS[name]


def copy(T, M, D):
    @T.prim_func
    def kernel(x: T.Tensor((M, D), "float32"), y: T.Tensor((M, D), "float32")):
        with T.Kernel(M, threads=64) as m:
            for d in T.Parallel(D):
                y[m, d] = x[m, d]

    return kernel


def spilling(T, M, D):
    @T.prim_func
    def kernel(x: T.Tensor((M, D), "float32"), y: T.Tensor((M, D), "float32")):
        with T.Kernel(M, threads=1024) as m:
            thread = T.get_thread_binding()
            held = T.alloc_local((D,), "float32")
            held[0] = T.cast(thread, "float32")
            # Each value needs the one before it, so none can be computed again instead of kept.
            for d in T.unroll(1, D):
                held[d] = T.sin(held[d - 1] + x[m, d])
            T.sync_threads()
            for d in T.unroll(D):
                y[m, d] = held[d] * held[D - 1 - d]

    return kernel


def test_a_build_with_a_spilling_kernel_fails(test_op, tmp_path):
    spec = test_op("spilling", spilling).specialize(D=64)
    with pytest.raises(ContractError, match=r"test_spilling__D64 on sm_80: spilled bytes: got \d+"):
        build([spec], ["sm_80"], tmp_path / "out", jobs=1)
    assert not list(tmp_path.iterdir())


def test_a_matrix_kernel_without_matrix_instructions_fails(test_op):
    spec = test_op("matrix", copy, matrix=True).specialize(D=64)
    with pytest.raises(ContractError, match="matrix instructions: got none, expected at least"):
        compile_unit(spec, "sm_80")


def test_a_kernel_whose_signature_is_not_the_ops_fails(test_op):
    def narrow(T, M, D):
        @T.prim_func
        def kernel(x: T.Tensor((M, D), "float16"), y: T.Tensor((M, D), "float32")):
            with T.Kernel(M, threads=64) as m:
                for d in T.Parallel(D):
                    y[m, d] = x[m, d]

        return kernel

    spec = test_op("signature", narrow).specialize(D=64)
    words = (
        r"test/signature on sm_80: kernel parameter x: got float16\[M, 64\], "
        r"expected float32\[M, 64\] as the op's x"
    )
    with pytest.raises(ContractError, match=words):
        compile_unit(spec, "sm_80")


def test_tables_are_read_from_compiler_output():
    log = (
        "ptxas info    : Compiling entry function 'a_kernel' for 'sm_90a'\n"
        "ptxas info    : Function properties for a_kernel\n"
        "    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 376 bytes cmem[0]\n"
        "ptxas info    : Compiling entry function 'b_kernel' for 'sm_90a'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 12 registers, 376 bytes cmem[0]\n"
    )
    assert from_ptxas(log) == {
        "a_kernel": {
            "static_smem": 2048,
            "stack": 16,
            "spill_stores": 8,
            "spill_loads": 12,
            "registers": 40,
        },
        "b_kernel": {
            "static_smem": 0,
            "stack": 0,
            "spill_stores": 0,
            "spill_loads": 0,
            "registers": 12,
        },
    }
    sass = (
        '\t.section\t.text.a_kernel,"ax",@progbits\n'
        "        /*0000*/                   MOV R1, c[0x0][0x28] ;\n"
        "        /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;\n"
        "        /*0020*/             @UP1 UTMALDG.2D [UR8], [UR4] ;\n"
        "        /*0030*/                   HMMA.16816.F32 R4, R8, R10, R4 ;\n"
        "        /*0040*/                   LDG.E R4, [R2.64] ;\n"
    )
    names = [name for kernel, name, _ in listed(sass) if kernel == "a_kernel"]
    assert opcodes(names) == {"MOV": 1, "LDG": 2, "UTMALDG": 1, "HMMA": 1}


@pytest.mark.parametrize("name", ["sm_80", "sm_120a"])
def test_code_disassembled_in_one_call_is_what_the_cubins_hold(name, tmp_path):
    printing = """extern "C" __global__ void a(int* p) { printf("%d", p[0]); }
    extern "C" __global__ void b(float4* p) { p[1] = p[0]; }"""
    cubins = [compile_cuda(text, name, contract_fma=True).cubin for text in (printing, SPILLING)]
    expected = []
    for cubin in cubins:
        (tmp_path / "cubin").write_bytes(cubin)
        listing = run([cuda_tool("nvdisasm"), "-c", tmp_path / "cubin"], "nvdisasm")
        expected += [(kernel, found) for kernel, found, _ in listed(listing) if found]
    pieces = [piece for cubin in cubins for piece in code(cubin).items()]
    assert {kernel for kernel, _ in pieces} == {"a", "b", "spilling_kernel"}
    found = disassemble([data for _, data in pieces], name)
    pairs = zip(pieces, found, strict=True)
    assert [(kernel, one) for (kernel, _), names in pairs for one in names] == expected


def test_every_architecture_has_its_matrix_instructions():
    assert set(MATRIX) == set(ALL)
