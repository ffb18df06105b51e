"""What a card and the virtual GPU must agree on.

Texts are one kernel per group of helpers, all in one translation unit; what they compute is exact,
so the bits are compared. Programs are those of the virtual GPU's tests, with the bound their oracle
derives from the formats.
"""

# ruff: noqa: E501 (a statement of a kernel is a line)
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..runtime.virtual.catalogue import RUNS

HEADERS = "atomic barrier copy cuda_fp8 debug instruction/mma intrin ldsm math reduce scan"
SMEM = 16384


@dataclass(frozen=True)
class Text:
    """One block of `threads` runs `body`: `x` holds the inputs, `y` the outputs (int32 words)."""

    body: str
    words: int
    threads: int = 32
    first: str = "sm_80"  # the oldest architecture that has it
    inputs: Callable[[], torch.Tensor] = lambda: torch.arange(1024, dtype=torch.int32)


def _halves() -> torch.Tensor:
    return torch.arange(1 << 16, dtype=torch.int32)


def _small() -> torch.Tensor:
    """Small integers as fp16, so that sums of products are exact."""
    torch.manual_seed(0)
    return torch.randint(-4, 5, (2048,)).half().view(torch.int32)


def _mma(kind: str, out: str, k: int, a: int, b: int) -> str:
    """y = a b of one warp, fragments taken as they lie in x."""
    return (
        f"unsigned fa[{a}], fb[{b}]; {out} c[4] = {{0, 0, 0, 0}};"
        f"for (int i = 0; i < {a}; ++i) fa[i] = ((const unsigned*)x)[tid * {a} + i];"
        f"for (int i = 0; i < {b}; ++i) fb[i] = ((const unsigned*)x)[256 + tid * {b} + i];"
        f"tl::mma_sync<{kind}, 16, 8, {k}, false, true>(c, fa, fb);"
        "for (int i = 0; i < 4; ++i) y[tid * 4 + i] = ((int*)c)[i];"
    )


# fmt: off
TEXTS = {
    "half_to_e4m3": Text(
        "for (int i = tid; i < 65536; i += 256) {"
        "unsigned short h = x[i]; half_t v = *(half_t*)&h; fp8_e4_t e = fp8_e4_t((float)v);"
        "y[i] = *(unsigned char*)&e; }", 1 << 16, 256, inputs=_halves),
    "half_to_e5m2": Text(
        "for (int i = tid; i < 65536; i += 256) {"
        "unsigned short h = x[i]; half_t v = *(half_t*)&h; fp8_e5_t e = fp8_e5_t((float)v);"
        "y[i] = *(unsigned char*)&e; }", 1 << 16, 256, inputs=_halves),
    "bfloat_to_half": Text(
        "for (int i = tid; i < 65536; i += 256) {"
        "unsigned short h = x[i]; bfloat16_t v = *(bfloat16_t*)&h; float f = (float)v;"
        "half_t e = half_t(f); y[i] = f != f ? -1 : *(unsigned short*)&e; }", 1 << 16, 256,
        inputs=_halves),
    "fp8_to_float": Text(
        "for (int i = tid; i < 256; i += 32) {"
        "unsigned char b = i; float e4 = (float)*(fp8_e4_t*)&b, e5 = (float)*(fp8_e5_t*)&b;"
        "y[i] = e4 != e4 ? -1 : __float_as_int(e4); y[256 + i] = e5 != e5 ? -1 : __float_as_int(e5); }",
        512),
    "shuffles": Text(
        "int v = x[tid] * 7 + 1; y[tid] = __shfl_sync(~0u, v, 9, 8); y[32 + tid] = __shfl_up_sync(~0u, v, 3);"
        "y[64 + tid] = __shfl_down_sync(~0u, v, 5, 16); y[96 + tid] = __shfl_xor_sync(~0u, v, 17);", 128),
    "votes_and_reductions": Text(
        "y[tid] = __ballot_sync(~0u, tid % 3 == 0); y[32 + tid] = __any_sync(~0u, tid == 4);"
        "y[64 + tid] = __match_any_sync(~0u, tid / 5); y[96 + tid] = __reduce_add_sync(~0u, x[tid]);"
        "y[128 + tid] = __reduce_max_sync(~0u, (int)(tid * 37 % 29)); y[160 + tid] = __syncthreads_count(tid & 1);",
        192),
    "bits": Text(
        "unsigned v = x[tid] * 2654435761u; y[tid] = __popc(v); y[32 + tid] = __clz(v); y[64 + tid] = __ffs(v);"
        "y[96 + tid] = __brev(v);", 128),
    "rounding": Text(
        "float v = (x[tid] - 512) * 0.0625f; y[tid] = __float_as_int(floorf(v));"
        "y[32 + tid] = __float_as_int(rintf(v)); y[64 + tid] = __float2int_rn(v);"
        "y[96 + tid] = __float_as_int(sqrtf(fabsf(v))); y[128 + tid] = __float_as_int(v / 3.f);"
        "y[160 + tid] = __float_as_int(__fmaf_rn(v, v, 1.f));", 192),
    "atomics": Text(
        "int* s = (int*)shared; if (tid < 4) s[tid] = 0; __syncthreads(); AtomicAdd(&s[tid % 4], x[tid]);"
        "AtomicMax(&s[3], x[tid]); atomicXor(&s[1], (int)tid); __syncthreads(); if (tid < 4) y[tid] = s[tid];", 4),
    "ldmatrix": Text(
        "half_t* s = (half_t*)shared; for (int i = tid; i < 256; i += 32) ((int*)s)[i] = x[i]; __syncthreads();"
        "unsigned r[4]; tl::ptx_ldmatrix_x4(s + tid * 8, r); for (int i = 0; i < 4; ++i) y[tid * 4 + i] = r[i];"
        "tl::ptx_ldmatrix_x4_trans(s + tid * 8, r); for (int i = 0; i < 4; ++i) y[128 + tid * 4 + i] = r[i];",
        256),
    "cp_async": Text(
        "int* s = (int*)shared; tl::cp_async_gs<16>(s + tid * 4, x + tid * 4);"
        "tl::cp_async_gs_conditional<16>(s + 128 + tid * 4, x + tid * 4, tid % 3 == 0); tl::cp_async_commit();"
        "tl::cp_async_wait<0>(); __syncthreads(); for (int i = 0; i < 8; ++i) y[tid * 8 + i] = s[255 - tid * 8 - i];",
        256),
    "all_reduce": Text(
        "y[tid] = tl::AllReduce<tl::SumOp, 128, 1, 0, tl::NamedBarrier<128>>::run(x[tid], (int*)shared);"
        "y[128 + tid] = tl::AllReduce<tl::MinOp, 32, 8, 0>::run(x[tid] * 5 % 17, (int*)shared);", 256, 128),
    "named_barriers": Text(
        "int* s = (int*)shared; s[tid] = x[tid]; tl::__sync_thread_partial(1 + tid / 64, 64);"
        "y[tid] = s[tid ^ 63];", 128, 128),
    "mma_f16": Text(_mma("tl::DataType::kFloat16, tl::DataType::kFloat16, tl::DataType::kFloat32", "float", 16, 4, 2),
                    128, inputs=_small),
    "mma_s8": Text(_mma("tl::DataType::kInt8, tl::DataType::kInt8, tl::DataType::kInt32", "unsigned", 32, 4, 2), 128),
    "mbarrier": Text(
        "__shared__ __align__(16) uint64_t memory[1]; auto bar = reinterpret_cast<Barrier*>(memory);"
        "int* s = (int*)shared; if (tid == 0) bar[0].init(32); tl::fence_barrier_init(); __syncthreads();"
        "if (tid < 32) { s[tid] = x[tid] * 3; bar[0].arrive(); } else { bar[0].wait(0); y[tid - 32] = s[63 - tid]; }",
        32, 64, "sm_90a"),
}
# fmt: on


def cuda(first: tuple[str, ...]) -> str:
    """The texts whose oldest architecture is among `first`."""
    includes = "".join(f"#include <tl_templates/cuda/{name}.h>\n" for name in HEADERS.split())
    kernels = [
        f'extern "C" __global__ void __launch_bounds__({text.threads}, 1) '
        f"{name}(int* __restrict__ y, const int* __restrict__ x) {{\n"
        "  extern __shared__ __align__(1024) uchar shared[];\n"
        f"  int tid = (int)threadIdx.x;\n  {text.body}\n}}\n"
        for name, text in TEXTS.items()
        if text.first in first
    ]
    return includes + "\n".join(kernels)


def names(texts: list[str]) -> list[tuple[str, str]]:
    """(case, architecture its text is for) of all that a card with these texts can run."""
    found = [(f"text/{name}", text.first) for name, text in TEXTS.items() if text.first in texts]
    return found + [(f"program/{name}", arch) for name, arch in RUNS if arch in texts]
