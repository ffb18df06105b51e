"""Planted bugs around what matrix units have to themselves, tensor memory (sm_100a) and registers of
wgmma (sm_90a): each is found for what it is, and its clean twin is not flagged.

All kernels are one translation unit, so that they cost one compilation.
"""

# ruff: noqa: E501 (a kernel is a line of the table)
from __future__ import annotations

import pytest
import torch

from tileproof import sanitizer
from tileproof.dsl import Facts

HEADERS = "atomic barrier copy copy_sm90 copy_sm100 debug instruction/tcgen05mma instruction/wgmma intrin tcgen_05"
DYNAMIC = "extern __shared__ __align__(1024) unsigned s[];\n"
MACROS = r"""
#define BEFORE tl::tcgen05_before_thread_sync();
#define AFTER tl::tcgen05_after_thread_sync();
#define SYNC BEFORE __syncthreads(); AFTER
#define SETUP \
  __shared__ unsigned base[2]; \
  __shared__ __align__(8) uint64_t memory[1]; \
  auto bar = reinterpret_cast<Barrier*>(memory); \
  const bool leads = tid < 32; \
  unsigned r[64]; \
  for (int i = tid; i < 1536; i += 128) s[i] = 0x3c003c00u;
#define ALLOC \
  if (leads) tl::tmem_allocate(base, 64); \
  if (tid == 0) bar[0].init(1); \
  tl::fence_proxy_async(); \
  SYNC
#define FREE SYNC if (leads) tl::tmem_deallocate(base, 64);
#define MULTIPLY if (leads) { \
    tl::Tcgen05SMemDescriptor a, b; \
    tl::initialize_tcgen05_descriptor(a, s, 8, 16, 0, 0, 0); \
    tl::initialize_tcgen05_descriptor(b, s + 1024, 8, 16, 0, 0, 0); \
    tl::tcgen05mma_ss<tl::DataType::kFloat16>(a, b, base[0], 0, 128 >> 4 << 24 | 64 >> 3 << 17 | 1 << 4, 0, 0, 0, 0); \
    tl::tcgen05_mma_arrive(bar); \
  }
#define WGMMA(ACCUMULATE) { \
    tl::GmmaDescriptor a, b; \
    tl::initialize_wgmma_descriptor<0, 8, 16>(a, s); \
    tl::initialize_wgmma_descriptor<0, 8, 16>(b, s + 1024); \
    tl::wgmma_ss<tl::DataType::kFloat16, tl::DataType::kFloat16, tl::DataType::kFloat32, 64, 64, 16, false, false>( \
        uint64_t(a), uint64_t(b), r, ACCUMULATE); \
  }
#define WGMMA_OF_REGISTERS { \
    tl::GmmaDescriptor b; \
    tl::initialize_wgmma_descriptor<0, 8, 16>(b, s + 1024); \
    tl::wgmma_rs<tl::DataType::kFloat16, tl::DataType::kFloat16, tl::DataType::kFloat32, 64, 64, 16, false, false>( \
        operand, uint64_t(b), r, true); \
  }
#define FILLED tl::fence_proxy_async(); __syncthreads();
#define COMMIT tl::warpgroup_commit_batch();
#define LOAD vgpu::tensor_access<false, 32, 32, 64, false>(base[0], r);
#define STORE vgpu::tensor_access<true, 32, 32, 64, false>(base[0], r);
#define LOADED tl::fence_view_async_tmem_load();
#define STORED tl::fence_view_async_tmem_store();
"""
CLEAR = "for (int i = 0; i < 64; ++i) r[i] = tid;"

# name → (kind, body with the bug, what replaces {bug} in the clean twin, what it is with the bug).
# 128 threads; y has 128 elements.
# fmt: off
CASES = {
    # --- asynchronous accesses that nothing orders
    "accumulator_read_without_waiting_for_the_commit": (
        "race", "SETUP ALLOC MULTIPLY {bug} AFTER LOAD LOADED bar[0].wait(0); FREE", "bar[0].wait(0);", ""),
    "accumulator_read_after_a_barrier_only": (
        "race", "SETUP ALLOC MULTIPLY {bug} LOAD LOADED bar[0].wait(0); FREE", "bar[0].wait(0); SYNC", "SYNC"),
    "commit_before_the_multiply": (
        "race", "SETUP ALLOC if (leads) { {bug} } bar[0].wait(0); AFTER LOAD LOADED __syncthreads(); if (leads) { tl::tcgen05_mma_arrive(bar); } bar[0].wait(1); FREE",
        "MULTIPLY", "tl::tcgen05_mma_arrive(bar); MULTIPLY"),
    "load_not_waited_for_before_its_columns_are_reused": (
        "race", CLEAR + "SETUP ALLOC STORE STORED LOAD {bug} STORE STORED LOADED FREE", "LOADED", ""),
    "store_not_waited_for": ("race", "SETUP ALLOC " + CLEAR + "STORE {bug} LOAD LOADED STORED FREE", "STORED", ""),
    "store_not_waited_for_before_a_multiply": (
        "race", "SETUP ALLOC " + CLEAR + "STORE {bug} SYNC MULTIPLY STORED bar[0].wait(0); FREE", "STORED", ""),
    "multiply_into_what_others_still_load": (
        "race", "SETUP ALLOC " + CLEAR + "STORE STORED LOAD LOADED {bug} MULTIPLY bar[0].wait(0); FREE", "SYNC", ""),
    "freed_while_others_still_load": (
        "race", "SETUP ALLOC " + CLEAR + "STORE STORED LOAD LOADED {bug} if (leads) tl::tmem_deallocate(base, 64);", "SYNC", ""),
    "operands_overwritten_before_the_commit": (
        "race", "SETUP ALLOC MULTIPLY {bug} s[tid] = tid; bar[0].wait(0); FREE", "bar[0].wait(0);", ""),
    # --- registers of wgmma
    "accumulator_read_before_the_wait": (
        "race", CLEAR + "SETUP FILLED WGMMA(true) COMMIT {bug} y[tid] = (float)r[tid % 32]; tl::warpgroup_wait<0>();", "tl::warpgroup_wait<0>();", ""),
    "accumulator_written_before_the_wait": (
        "race", CLEAR + "SETUP FILLED WGMMA(true) COMMIT {bug} r[tid % 32] = 0; WGMMA(true) COMMIT tl::warpgroup_wait<0>(); y[tid] = (float)r[tid % 32];", "tl::warpgroup_wait<0>();", ""),
    "registers_waited_for_one_group_too_few": (
        "race", CLEAR + "SETUP FILLED WGMMA(true) COMMIT WGMMA(true) COMMIT {bug} y[tid] = (float)r[tid % 32]; tl::warpgroup_wait<0>();", "tl::warpgroup_wait<0>();", "tl::warpgroup_wait<1>();"),
    "operand_rewritten_before_the_wait": (
        "race", CLEAR + "SETUP unsigned operand[4] = {1, 2, 3, (unsigned)tid}; FILLED WGMMA_OF_REGISTERS COMMIT y[tid] = (float)operand[tid % 4]; {bug} operand[tid % 4] = 9; WGMMA_OF_REGISTERS COMMIT tl::warpgroup_wait<0>(); y[tid] += (float)r[tid % 32];", "tl::warpgroup_wait<0>();", ""),
    # --- fences of tcgen05
    "no_fence_after_the_commit": (
        "tensor-fence", "SETUP ALLOC MULTIPLY bar[0].wait(0); {bug} LOAD LOADED FREE", "AFTER", ""),
    "no_fence_after_a_barrier": (
        "tensor-fence", "SETUP ALLOC " + CLEAR + "STORE STORED BEFORE __syncthreads(); {bug} MULTIPLY bar[0].wait(0); FREE", "AFTER", ""),
    "no_fence_before_a_barrier": (
        "tensor-fence", "SETUP ALLOC " + CLEAR + "STORE STORED {bug} __syncthreads(); AFTER MULTIPLY bar[0].wait(0); FREE", "BEFORE", ""),
    "fence_before_the_load_is_complete": (
        "tensor-fence", "SETUP ALLOC " + CLEAR + "STORE STORED LOAD {bug} __syncthreads(); AFTER MULTIPLY bar[0].wait(0); FREE",
        "LOADED BEFORE", "BEFORE LOADED"),
    # --- proxies
    "operands_without_a_proxy_fence": (
        "proxy-fence", "SETUP ALLOC s[tid] = 0; {bug} SYNC MULTIPLY bar[0].wait(0); FREE", "tl::fence_proxy_async();", ""),
    "scales_without_a_proxy_fence": (
        "proxy-fence", "SETUP ALLOC s[tid] = 0; {bug} SYNC if (leads) { tl::tcgen05_cp(tl::make_sf_smem_desc(s), base[0]); tl::tcgen05_mma_arrive(bar); } bar[0].wait(0); FREE",
        "tl::fence_proxy_async();", ""),
    # --- allocation
    "never_freed": ("leak", "SETUP ALLOC {bug}", "FREE", ""),
    "freed_by_nobody_who_comes_by": ("leak", "SETUP ALLOC SYNC if (leads && y[0] {bug}) tl::tmem_deallocate(base, 64);", "!= 7", "== 7"),
    "second_allocation_forgotten": (
        "leak", "SETUP ALLOC if (leads) tl::tmem_allocate(base + 1, 32); __syncthreads(); if (leads) { {bug} } FREE",
        "tl::tmem_deallocate(base + 1, 32);", ""),
    "load_after_free": ("use-after-free", "SETUP ALLOC " + CLEAR + "STORE STORED {bug} LOAD LOADED", "LOAD LOADED FREE if (tid < 0)", "FREE"),
    "store_after_free": ("use-after-free", "SETUP ALLOC " + CLEAR + "{bug} STORE STORED", "STORE STORED FREE if (tid < 0)", "FREE"),
    "multiply_after_free": ("use-after-free", "SETUP ALLOC {bug}", "MULTIPLY bar[0].wait(0); FREE", "FREE SYNC MULTIPLY bar[0].wait(0);"),
    "freed_twice": ("invalid", "SETUP ALLOC {bug} FREE", "", "FREE"),
    "allocated_beyond_512_columns": ("invalid", "SETUP ALLOC if (leads) { tl::tmem_allocate(base + 1, {bug}); tl::tmem_deallocate(base + 1, {bug}); } FREE", "256", "512"),
    "freed_with_another_size": ("invalid", "SETUP ALLOC SYNC if (leads) tl::tmem_deallocate(base, {bug});", "64", "32"),
}
# fmt: on


def text() -> str:
    kernels = [f"#include <tl_templates/cuda/{name}.h>" for name in HEADERS.split()] + [MACROS]
    for name, (_, body, clean, bug) in CASES.items():
        for suffix, words in (("bug", bug), ("clean", clean)):
            first, rest = body.split("SETUP", 1)
            code = f"{DYNAMIC}SETUP {first} {rest}".replace("{bug}", words)
            kernels.append(
                f'extern "C" __global__ void __launch_bounds__(128, 1) {name}_{suffix}(float* y) {{\n'
                f"int tid = (int)threadIdx.x;\n{code}\n}}\n"
            )
    return "\n".join(kernels)


def run(kernel: str) -> sanitizer.KernelReport:
    report = sanitizer.sanitize_text(
        text(), kernel, [torch.zeros(128)], grid=(1,), block=(128,), smem=8192,
        facts=Facts(inout=("y",)),
    )  # fmt: skip
    return report.kernels[0]


@pytest.mark.parametrize("name", CASES)
def test_the_bug_is_found_and_the_clean_twin_is_not_flagged(name):
    clean = run(f"{name}_clean")
    assert not clean.findings and not clean.reason
    report = run(f"{name}_bug")
    assert not report.reason
    assert CASES[name][0] in {f.kind for f in report.findings}, report.findings
    assert all(f.at.line for f in report.findings if f.at.thread)


def test_findings_name_both_sides():
    (finding,) = run("no_fence_after_the_commit_bug").findings
    assert finding.kind == "tensor-fence"
    assert finding.message == (
        "tcgen05.ld reads columns 0 to 63 of tensor memory after a tcgen05.mma, "
        "without tcgen05.fence::after_thread_sync before it"
    )
    assert finding.at.line and finding.other.line and "writes columns 0 to 63" in finding.other.what
