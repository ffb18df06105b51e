"""Limits of the hardware that a kernel meets while it runs: each is an error that says so. Those of
tensor maps are in test_tma.py, of tensor memory in test_tcgen05.py, of launches in
test_execution.py, of architectures in test_architectures.py."""

# ruff: noqa: E501 (a kernel is a line of the table)

import functools

import pytest
import torch

from tileproof.codegen.lower import lower
from tileproof.codegen.virtual import VirtualKernel
from tileproof.runtime import virtual

from .support import kernel
from .test_tma import tensor_map

HEAD = """extern __shared__ __align__(1024) unsigned char s[]; __shared__ __align__(16) uint64_t m[2];
    if (tid == 0) { tl::mbarrier_init(m[0], 1); tl::fence_barrier_init(); } __syncthreads();
    uint32_t c[32] = {}; tl::GmmaDescriptor a, b; tl::Tcgen05SMemDescriptor t;
    using D = tl::DataType; (void)a, (void)b, (void)t, (void)c;
"""
WGMMA = (
    "tl::wgmma_ss<D::kFloat16, D::kFloat16, D::kFloat32, 64, 8, 16, false, false>(a, b, c, false);"
    "tl::warpgroup_commit_batch(); tl::warpgroup_wait<0>();"
)
TCGEN05 = (
    "if (tid < 32) tl::tmem_allocate(m + 1, 32); __syncthreads(); if (tid < 32)"
    "tl::tcgen05mma_ss<D::kFloat16>(t, t, *(unsigned*)(m + 1), 0, 128 >> 4 << 24 | 16 >> 3 << 17 | 1 << 4, 0, 0, 0, 0);"
)
# name → (what the error says, body).
CASES = {
    "bulk_size": (
        "a bulk copy needs a size and addresses that are multiples of 16, got 24 bytes",
        "if (tid == 0) tl::tma_load(s, y, m[0], 24);",
    ),
    "bulk_shared": (
        "a bulk copy needs a size and addresses that are multiples of 16",
        "if (tid == 0) tl::tma_load(s + 8, y, m[0], 32);",
    ),
    "bulk_global": (
        "a bulk copy needs a size and addresses that are multiples of 16",
        "if (tid == 0) tl::tma_store(y + 1, s, 32);",
    ),
    "tensor_shared": (
        "shared memory of a tensor copy is aligned to 128 bytes, got shared address 0x",
        "if (tid == 0) tl::tma_load(map, m[0], s + 64, 0, 0);",
    ),
    "tensor_rank": (
        "tensor map has 2 dimensions, the copy gives 3 coordinates",
        "if (tid == 0) tl::tma_load(map, m[0], s, 0, 0, 0);",
    ),
    "count_none": ("initialised with a count of 0, expected 1 to 1048575", "tl::mbarrier_init(m[1], 0);"),
    "count_many": (
        "initialised with a count of 1048576, expected 1 to 1048575",
        "tl::mbarrier_init(m[1], 1 << 20);",
    ),
    "parity": ("a phase parity is 0 or 1, got 2", "tl::mbarrier_wait(m[0], 2);"),
    "transactions": (
        "transaction count",
        "if (tid == 0) { tl::mbarrier_expect_tx(m[0], 1000000); tl::mbarrier_expect_tx(m[0], 1000000); }",
    ),
    "named_barrier": ("named barrier 16 does not exist, there are 16", "tl::__sync_thread_partial(16, 32);"),
    "barrier_threads": (
        "barrier 1: the thread count must be a multiple of 32, got 33",
        "tl::__sync_thread_partial(1, 33);",
    ),
    "wgmma_base_offset": (
        "wgmma descriptor with a base offset is not modelled",
        "a.bits = b.bits = uint64_t(1) << 49;" + WGMMA,
    ),
    "wgmma_lanes": (
        "lanes of a warp disagree about the descriptors",
        "a.bits = b.bits = tid;" + WGMMA,
    ),
    "tcgen05_version": (
        "bits 46-47 of the shared memory descriptor must be 1, got 0",
        "t.bits = 0;" + TCGEN05,
    ),
    "tcgen05_reserved": (
        "reserved bits of the shared memory descriptor",
        "t.bits = uint64_t(1) << 46 | uint64_t(1) << 53;" + TCGEN05,
    ),
    "tcgen05_swizzle": (
        "swizzle mode 7 does not exist",
        "t.bits = uint64_t(1) << 46 | uint64_t(7) << 61;" + TCGEN05,
    ),
}  # fmt: skip


@functools.cache
def module() -> virtual.VirtualModule:
    parameters = "float* y, __grid_constant__ const CUtensorMap map"
    return virtual.VirtualModule(
        "".join(kernel(parameters, HEAD + body, name) for name, (_, body) in CASES.items()),
        checked=True,
    )


@pytest.mark.parametrize("name", CASES)
def test_a_limit_of_the_hardware_is_an_error_that_says_so(name):
    y = torch.zeros(64)
    with pytest.raises(virtual.VirtualError) as caught:
        module().launch(name, (1,), (128,), 8192, [y, tensor_map(y.view(8, 8), (8, 8))])
    assert CASES[name][0] in str(caught.value)


def test_registers_are_a_multiple_of_8_from_24_to_256():
    for registers in (16, 28, 264):
        with pytest.raises(virtual.CompileError, match="setmaxnreg takes 24 to 256 registers"):
            virtual.VirtualModule(kernel("int* y", f"tl::warpgroup_reg_alloc<{registers}>();"))


def test_shared_memory_of_an_architecture():
    tilelang = pytest.importorskip("tilelang")
    T = tilelang.language

    @T.prim_func
    def big(x: T.Tensor((128, 512), "float16"), y: T.Tensor((128, 512), "float16")):
        with T.Kernel(1, threads=128):
            s = T.alloc_shared((128, 512), "float16")
            T.copy(x, s)
            T.copy(s, y)

    x = torch.randn(128, 512).half()
    y = torch.zeros_like(x)
    with pytest.raises(
        virtual.VirtualError,
        match="a block of sm_89 has at most 101376 bytes of shared memory, got 131072",
    ):
        VirtualKernel(lower(big, "sm_89"))(x, y)
    VirtualKernel(lower(big, "sm_80"))(x, y)
    assert torch.equal(x, y)
