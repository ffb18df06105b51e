"""Planted bugs: each is found for what it is, and its clean twin is not flagged.

All kernels are one translation unit, so that they cost one compilation.
"""

# ruff: noqa: E501 (a kernel is a line of the table)
from __future__ import annotations

import pytest
import torch

from tileproof import sanitizer
from tileproof.dsl import Facts

HEADERS = "atomic barrier copy copy_sm90 debug instruction/mma intrin ldsm math reduce"
INCLUDES = "".join(f"#include <tl_templates/cuda/{name}.h>\n" for name in HEADERS.split())
INCLUDES += """
inline void matrix_unit_reads(const void* tile) {  // as wgmma does
  const uint32_t address = vgpu_shared_address(tile);
  const auto read = [](const void* at) VGPU_LEAF {
    vgpu_shared_pointer(*static_cast<const uint32_t*>(at), 16);
  };
  if (threadIdx.x % 32) return;
  vgpu_defer(read, &address, sizeof address);
  vgpu_defer_commit();
  vgpu_defer_wait(0);
}
"""
PARAMETERS = "float* y, const float* x, int* flag"
DYNAMIC = "extern __shared__ __align__(1024) float s[];\n"

# name → (kind, body with the bug, what replaces {bug} in the clean twin, what it is with the bug).
# 64 threads of each of 2 blocks; y and x have 256 elements, flag is zeroed and inout.
# fmt: off
CASES = {
    # --- races in shared memory
    "missing_barrier": (
        "race",
        DYNAMIC + "s[tid] = x[tid]; {bug} y[blockIdx.x * 64 + tid] = s[63 - tid];",
        "__syncthreads();",
        "",
    ),
    "write_after_read": (
        "race",
        DYNAMIC + "s[tid] = x[tid]; __syncthreads(); float v = s[63 - tid]; {bug}"
        "s[tid] = 2 * v + 1; y[blockIdx.x * 64 + tid] = v + s[tid];",
        "__syncthreads();",
        "",
    ),
    "write_after_write": (
        "race",
        DYNAMIC + "s[{bug}] = tid; __syncthreads(); y[blockIdx.x * 64 + tid] = s[tid / 2];",
        "tid",
        "tid / 2",
    ),
    "barrier_of_half_the_threads": (
        "race",
        DYNAMIC + "s[tid] = x[tid]; tl::__sync_thread_partial({bug});"
        "y[blockIdx.x * 64 + tid] = s[63 - tid];",
        "1, 64",
        "1 + tid / 32, 32",
    ),
    "a_shuffle_is_no_barrier_across_warps": (
        "race",
        DYNAMIC + "s[tid] = x[tid]; {bug} y[blockIdx.x * 64 + tid] = s[tid ^ 32];",
        "__syncthreads();",
        "__syncwarp();",
    ),
    "arrive_without_sync": (
        "race",
        DYNAMIC + "if (tid < 32) { s[tid] = x[tid]; tl::__named_barrier_arrive(2, 64); }"
        "else { tl::__sync_thread_partial({bug}); y[blockIdx.x * 32 + tid] = s[tid - 32]; }"
        "if ({bug} == 3 && tid < 0) s[0] = 0;",
        "2, 64",
        "3, 32",
    ),
    "one_byte_of_a_word": (
        "race",
        "__shared__ unsigned char b[64]; b[tid] = (unsigned char)tid; {bug}"
        "y[blockIdx.x * 64 + tid] = b[tid ^ 1];",
        "__syncwarp();",
        "",
    ),
    # --- asynchronous copies
    "dropped_wait": (
        "race",
        DYNAMIC + "tl::cp_async_gs<4>(s + tid, x + tid); tl::cp_async_commit(); {bug}"
        "__syncthreads(); y[blockIdx.x * 64 + tid] = s[63 - tid];",
        "tl::cp_async_wait<0>();",
        "",
    ),
    "wait_for_one_group_too_few": (
        "race",
        DYNAMIC + "tl::cp_async_gs<4>(s + tid, x + tid); tl::cp_async_commit();"
        "tl::cp_async_gs<4>(s + 64 + tid, x + 64 + tid); tl::cp_async_commit();"
        "{bug} __syncthreads(); y[blockIdx.x * 64 + tid] = s[127 - tid] + s[tid];"
        "tl::cp_async_wait<0>();",
        "tl::cp_async_wait<0>();",
        "tl::cp_async_wait<1>();",
    ),
    "copy_into_a_tile_still_read": (
        "race",
        DYNAMIC + "s[tid] = x[tid]; __syncthreads(); float v = s[63 - tid]; {bug}"
        "tl::cp_async_gs<4>(s + tid, x + 64 + tid); tl::cp_async_wait<0>(); __syncthreads();"
        "y[blockIdx.x * 64 + tid] = v + s[63 - tid];",
        "__syncthreads();",
        "",
    ),
    # --- mbarriers
    "mbarrier_not_waited_for": (
        "race",
        "__shared__ uint64_t m[1]; " + DYNAMIC + "if (tid == 0) tl::mbarrier_init(m[0], 32);"
        "__syncthreads(); if (tid < 32) { s[tid] = x[tid]; tl::mbarrier_arrive(m[0]); }"
        "else { {bug} y[blockIdx.x * 32 + tid - 32] = s[63 - tid]; }",
        "tl::mbarrier_wait(m[0], 0);",
        "",
    ),
    "mbarrier_waited_for_with_the_wrong_parity": (
        "race",
        "__shared__ uint64_t m[1]; " + DYNAMIC + "if (tid == 0) tl::mbarrier_init(m[0], 32);"
        "__syncthreads(); if (tid < 32) { s[tid] = x[tid]; tl::mbarrier_arrive(m[0]); }"
        "else { tl::mbarrier_wait(m[0], {bug}); y[blockIdx.x * 32 + tid - 32] = s[63 - tid]; }",
        "0",
        "1",
    ),
    "mbarrier_used_before_its_init_is_visible": (
        "race",
        "__shared__ uint64_t m[1]; if (tid == 0) tl::mbarrier_init(m[0], 64);"
        "{bug} if (tid >= 0) tl::mbarrier_arrive(m[0]); tl::mbarrier_wait(m[0], 0);",
        "__syncthreads();",
        "__syncwarp();",
    ),
    "mbarrier_over_arrival": (
        "invalid",
        "__shared__ uint64_t m[1]; if (tid == 0) { tl::mbarrier_init(m[0], 1);"
        "tl::mbarrier_expect_tx(m[0], 16); tl::mbarrier_arrive(m[0]); {bug}"
        "vgpu_mbarrier_complete_tx(m, 16); }",
        "",
        "tl::mbarrier_arrive(m[0]);",
    ),
    # --- races in global memory
    "blocks_write_one_place": (
        "race",
        "y[{bug}] = blockIdx.x + tid;",
        "blockIdx.x * 64 + tid",
        "blockIdx.x * 63 + tid",
    ),
    "block_reads_what_another_wrote": (
        "race",
        "y[blockIdx.x * 64 + tid] = 1; if (tid == 0) y[128 + blockIdx.x] = {bug};",
        "1",
        "blockIdx.x ? y[5] : 0",
    ),
    "sum_without_atomics": (
        "race",
        "{bug}",
        "atomicAdd(flag + 1, tid);",
        "flag[1] += tid + 1;",
    ),
    "semaphore_without_fence": (
        "race",
        "y[blockIdx.x * 64 + tid] = tid; __syncthreads();"
        "__shared__ int last; if (tid == 0) { {bug} last = atomicAdd(flag, 1); __threadfence(); }"
        "__syncthreads(); if (last == 1) y[128 + tid] = y[tid] + y[64 + tid];",
        "__threadfence();",
        "",
    ),
    # --- proxies
    "wgmma_without_proxy_fence": (
        "proxy-fence",
        DYNAMIC + "s[tid] = x[tid]; {bug} __syncthreads();"
        "matrix_unit_reads(s);",
        "tl::fence_proxy_async();",
        "",
    ),
    "fence_on_the_wrong_side_of_the_store": (
        "proxy-fence",
        DYNAMIC + "{bug} __syncthreads();"
        "matrix_unit_reads(s);",
        "s[tid] = x[tid]; tl::fence_proxy_async();",
        "tl::fence_proxy_async(); s[tid] = x[tid];",
    ),
    "fence_by_some_threads_only": (
        "proxy-fence",
        DYNAMIC + "s[tid] = x[tid]; {bug} tl::fence_proxy_async(); __syncthreads();"
        "matrix_unit_reads(s);",
        "",
        "if (tid >= 32)",
    ),
    # --- bounds, alignment, const
    "guard_off_by_one": ("out-of-bounds", "if (tid <= {bug}) y[255 + tid] = 1;", "0", "1"),
    "read_before_the_first": ("out-of-bounds", "y[blockIdx.x * 64 + tid] = x[tid - {bug}];", "0", "1"),
    "into_the_neighbouring_argument": (
        "out-of-bounds",
        "y[blockIdx.x * 64 + tid] = x[tid + {bug}];",
        "0",
        "(int)(((const float*)flag - x) / 2)",
    ),
    "beyond_dynamic_shared": ("out-of-bounds", DYNAMIC + "s[tid + {bug}] = 1;", "64", "65"),
    "misaligned_float4": ("misaligned", "*(float4*)(y + {bug}) = *(const float4*)x;", "0", "1"),
    "misaligned_float2": (
        "misaligned", DYNAMIC + "s[tid] = s[tid + 64] = 0; __syncthreads();"
        "float2 v = *(float2*)(s + {bug}); if (tid == 0) y[blockIdx.x] = v.x + v.y;", "2", "1"),
    "misaligned_cp_async": (
        "misaligned", DYNAMIC + "if (tid == 0) tl::cp_async_gs<16>(s + {bug}, x); tl::cp_async_wait<0>();",
        "4", "1"),
    "write_to_const": ("const-write", "((float*){bug})[tid] = 1;", "(y + blockIdx.x * 64)", "x"),
    "atomic_to_const": ("const-write", "if (tid == {bug}) atomicAdd((float*)x, 1.f);", "-1", "1"),
    "vector_to_const": ("const-write", "if (tid == 0) *(float4*){bug} = float4{0, 0, 0, 0};", "y", "x"),
    # --- uninitialised memory
    "shared_never_written": ("uninitialised", DYNAMIC + "{bug} y[blockIdx.x * 64 + tid] = s[tid];", "s[tid] = 1;", ""),
    "output_read_first": ("uninitialised", "y[blockIdx.x * 64 + tid] {bug} 1;", "=", "+="),
    "last_element_forgotten": (
        "uninitialised",
        DYNAMIC + "if (tid < {bug}) s[tid] = x[tid]; __syncthreads();"
        "y[blockIdx.x * 64 + tid] = s[63 - tid];", "64", "63"),
    # --- progress
    "barrier_in_a_branch": ("deadlock", "if (tid < {bug}) tl::__sync_thread_partial(1, 64);", "64", "40"),
    "two_barriers_crossed": (
        "deadlock",
        "tl::__sync_thread_partial({bug}, 64); tl::__sync_thread_partial(3 - {bug}, 64);", "1",
        "(1 + tid / 32)"),
    "mbarrier_arrival_missing": (
        "deadlock",
        "__shared__ uint64_t m[1]; if (tid == 0) tl::mbarrier_init(m[0], 64); __syncthreads();"
        "if (tid {bug}) tl::mbarrier_arrive(m[0]); tl::mbarrier_wait(m[0], 0);", ">= 0", "> 0"),
    # --- results
    "float_atomics": (
        "schedule-dependent", "atomicAdd((float*)flag + 2, {bug});", "(float)tid",
        "1.f / (1 + tid + 64 * blockIdx.x)"),
    "first_come": (
        "schedule-dependent",
        "if (tid == 0) { int turn = atomicAdd(flag, 1); y[blockIdx.x] = {bug}; }", "turn * 0", "turn"),
    "last_one_wins": ("schedule-dependent", "atomicExch(flag + 3, {bug});", "7", "(int)blockIdx.x"),
}
# fmt: on


def text() -> str:
    kernels = []
    for name, (_, body, clean, bug) in CASES.items():
        for suffix, words in (("bug", bug), ("clean", clean)):
            head = 'extern "C" __global__ void'
            kernels.append(
                f"{head} __launch_bounds__(64, 1) {name}_{suffix}({PARAMETERS}) {{\n"
                f"int tid = (int)threadIdx.x;\n{body.replace('{bug}', words)}\n}}\n"
            )
    return INCLUDES + "\n".join(kernels)


def run(kernel: str) -> sanitizer.KernelReport:
    torch.manual_seed(0)
    arguments = [torch.zeros(256), torch.randn(256), torch.zeros(4, dtype=torch.int32)]
    report = sanitizer.sanitize_text(
        text(), kernel, arguments, grid=(2,), block=(64,), smem=512, facts=Facts(inout=("flag",))
    )
    return report.kernels[0]


@pytest.mark.parametrize("name", CASES)
def test_the_bug_is_found_and_the_clean_twin_is_not_flagged(name):
    report = run(f"{name}_bug")
    assert not report.reason
    assert CASES[name][0] in {f.kind for f in report.findings}, report.findings
    clean = run(f"{name}_clean")
    assert not clean.findings and not clean.reason


BAD_LAUNCHES = [
    ({"block": (1025,)}, "1 to 1024 threads, got 1025"),
    ({"smem": 232449}, "at most 232448"),
    ({"grid": (1, 65536)}, "grid 1, 65536, 1"),
]


@pytest.mark.parametrize(("how", "words"), BAD_LAUNCHES)
def test_a_launch_no_gpu_would_take_is_a_finding(how, words):
    arguments = [torch.zeros(256), torch.randn(256), torch.zeros(4, dtype=torch.int32)]
    launch = {"grid": (1,), "block": (64,), **how}
    report = sanitizer.sanitize_text(text(), "missing_barrier_clean", arguments, **launch)
    (finding,) = report.kernels[0].findings
    assert finding.kind == "launch" and words in finding.message
    assert report.exit_code == 1


def test_a_kernel_without_an_end_is_neither_clean_nor_a_defect(monkeypatch):
    monkeypatch.setattr(sanitizer.run, "STEPS", 1000)
    arguments = [torch.zeros(1)]
    cuda = INCLUDES + (
        'extern "C" __global__ void __launch_bounds__(32, 1) k(float* y) {\n'
        "  while (true) y[0] = 1;\n}\n"
    )
    report = sanitizer.sanitize_text(cuda, "k", arguments, grid=(1,), block=(32,))
    (finding,) = report.kernels[0].findings
    assert finding.kind == "endless" and finding.at.line == cuda.count("\n") - 1
    assert report.exit_code == 2
