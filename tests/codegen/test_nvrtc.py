"""CUDA text to PTX in this process: the PTX is nvcc's, and headers are parsed once."""

from __future__ import annotations

import pytest

from tileproof.codegen import ircache, nvrtc, toolchain
from tileproof.codegen.device import to_ptx
from tileproof.codegen.toolchain import ToolchainError, cuda_tool
from tileproof.dsl import get

OPTIONS = ["-std=c++17", "-fmad=true"]
COPY = """#include <tl_templates/cuda/common.h>
extern "C" __global__ void copy(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x]; }
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch, own_cache):
    """A process that has compiled nothing yet."""
    found = nvrtc._Precompiled()
    monkeypatch.setattr(nvrtc, "_precompiled", found)
    yield
    found.give_up()


@pytest.fixture
def asked(monkeypatch):
    """What NVRTC is asked for about precompiled headers, once a call."""
    calls = []
    compiles = nvrtc._compile

    def record(source, options):
        calls.append([o.partition("=")[0] for o in options if "pch" in o])
        return compiles(source, options)

    monkeypatch.setattr(nvrtc, "_compile", record)
    return calls


@pytest.mark.parametrize(
    "op, sizes, arch",
    [
        ("mhc/pre", {"N": 4, "D": 256}, "sm_100a"),  # mma, cp.async, no contraction of FMAs
        ("attention/sparse", {"H": 64, "D": 512}, "sm_90a"),  # wgmma
        ("gemm/fp8", {"K": 256}, "sm_89"),
    ],
)
def test_the_ptx_is_nvccs(op, sizes, arch, monkeypatch):
    spec = get(op).specialize(**sizes)
    cuda, contract = ircache.lowered(spec, arch).cuda, spec.op.variant(arch).contract_fma
    monkeypatch.setenv("PATH", str(cuda_tool("nvcc").parent), prepend=":")
    expected = to_ptx(cuda, arch, contract_fma=contract, toolkit="system")
    found = to_ptx(cuda, arch, contract_fma=contract)
    assert found.split() == expected.split()
    assert to_ptx(cuda, arch, contract_fma=contract) == found  # with precompiled headers


def test_headers_are_parsed_once_where_kernels_follow_each_other(asked, own_cache):
    first = nvrtc.to_ptx(COPY, "sm_80", OPTIONS)
    assert [nvrtc.to_ptx(COPY, "sm_80", OPTIONS) for _ in range(3)] == [first] * 3
    assert asked == [[], ["--create-pch"], ["--use-pch"], ["--use-pch"]]
    (file,) = own_cache.rglob(".headers*")
    assert file.stat().st_size < 1 << 27  # every kernel reads it
    nvrtc.to_ptx(COPY, "sm_89", OPTIONS)
    assert asked[4:] == [[]] and not file.exists()


def test_without_room_for_headers_kernels_compile(asked, monkeypatch, tmp_path):
    first = nvrtc.to_ptx(COPY, "sm_80", OPTIONS)
    monkeypatch.setattr(nvrtc, "until_exit", lambda path: tmp_path / "none" / path.name)
    assert [nvrtc.to_ptx(COPY, "sm_80", OPTIONS) for _ in range(2)] == [first] * 2
    assert asked == [[], ["--create-pch"], [], []]


def test_a_missing_nvrtc_is_named(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(toolchain, "_pip_root", lambda: tmp_path)
    with pytest.raises(ToolchainError, match=r"nvidia-cuda-nvrtc.* not installed; install it with"):
        toolchain.nvrtc_library()


PTX = """.version 9.5
.target sm_80
.address_size 64
.global .align 4 .u32 unused = 1;
.global .align 4 .u32 behind[2];
.visible .global .align 8 .b64 table[1] = {behind};
.func  (.param .b32 out) helper(
	.param .b64 p
)
{
	mov.u64 	%rd1, table;
	ret;
}
.func lonely()
{
	call helper;
}
.visible .entry kernel(
	.param .u64 kernel_param_0
)
.maxntid 128, 1, 1
{
	call.uni (%r1), helper, (%rd1);
}
"""


def test_what_no_kernel_reaches_is_dropped():
    kept = nvrtc.reachable(PTX)
    assert ".maxntid 128" in kept and "helper(" in kept and "table[1]" in kept and "behind[" in kept
    assert "unused" not in kept and "lonely" not in kept
    assert nvrtc.reachable(kept) == kept
