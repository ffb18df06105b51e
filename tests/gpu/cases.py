"""What a card and the virtual GPU must agree on.

Texts are one kernel per group of helpers, all of an architecture in one translation unit; what they
compute is exact, so the bits are compared. Programs are those of the virtual GPU's tests, with the
bound their oracle derives from the formats.
"""

# ruff: noqa: E501 (a statement of a kernel is a line)
from __future__ import annotations

import torch

from ..runtime.virtual import mma_tables, wgmma_tables
from ..runtime.virtual.catalogue import RUNS
from . import cases_async, cases_tcgen05
from .text import Text

HEADERS = {
    "sm_80": "atomic barrier copy cuda_fp8 debug instruction/mma intrin ldsm math reduce scan",
    "sm_89": "instruction/mma",
    "sm_90a": "barrier cluster copy copy_sm90 instruction/wgmma intrin ldsm",
    "sm_100a": "barrier cluster copy copy_sm90 copy_sm100 intrin ldsm tcgen_05 instruction/tcgen05mma",
    "sm_120a": "barrier cluster copy copy_sm90 instruction/mma instruction/mma_block_scale intrin ldsm",
}


def _halves() -> torch.Tensor:
    return torch.arange(1 << 16, dtype=torch.int32)


def _matrix(case, arch: str, threads: int, smem: int) -> Text:
    """One matrix instruction by the manual's tables."""
    return Text(
        case.body(), case.words, threads, (arch,), case.inputs, lambda _: case.want(), smem=smem
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
    **{c.name: _matrix(c, "sm_89" if "8_" in c.a else "sm_80", 32, 0) for c in mma_tables.CASES},
    **{c.name: _matrix(c, "sm_120a", 32, 0) for c in mma_tables.SCALED},
    **{c.name: _matrix(c, "sm_90a", 128, 131072) for c in wgmma_tables.CASES},
    **cases_async.TEXTS,
    **cases_tcgen05.TEXTS,
}
# fmt: on


def cuda(arch: str) -> str:
    """The texts of an architecture, in one translation unit."""
    includes = "".join(f"#include <tl_templates/cuda/{name}.h>\n" for name in HEADERS[arch].split())
    kernels = [text.kernel(name) for name, text in TEXTS.items() if arch in text.archs]
    return includes + "#include <cooperative_groups.h>\n" + "\n".join(kernels)


def names(archs: list[str]) -> list[tuple[str, str]]:
    """(case, architecture its text is for) of all that a card with texts of `archs` can run."""
    found = [(f"text/{name}", a) for name, text in TEXTS.items() for a in text.archs if a in archs]
    return found + [(f"program/{name}", arch) for name, arch in RUNS if arch in archs]
