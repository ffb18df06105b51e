"""One kernel per group of helpers with what it computes by NumPy: `y` from `x`, both int32 words.

`has` is read as in `architectures.py`. All kernels an architecture has are one translation unit.
"""

# ruff: noqa: E501 (a statement of a kernel is a line)
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

Words = np.ndarray


@dataclass(frozen=True)
class Group:
    has: str
    body: str
    inputs: Callable[[], Words]
    oracle: Callable[[Words], Words]
    threads: int = 32
    launch: Mapping[str, Any] = field(default_factory=dict)
    map: bool = False  # x is given as a tensor map of rows of 32 words as well


def words(array: np.ndarray) -> Words:
    return np.ascontiguousarray(array).reshape(-1).view(np.int32)


def random_words(count: int = 1024) -> Words:
    return np.random.default_rng(0).integers(-(2**31), 2**31, count, np.int32)


def small(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Integers that every format down to fp4 has and whose sums of products are exact."""
    return np.random.default_rng(seed).choice([-4, -3, -2, -1, 0, 1, 2, 3], shape)


# --- mma.sync: fragments as the tables of the PTX manual lay them out -----------------------------


def fragments(matrix: np.ndarray, pack: int, halves: int) -> np.ndarray:
    """[lane, register, element] of a row-major operand of 8 · halves rows, `pack` elements of K in a
    register: lane 4 g + t has rows g (+ 8), elements (t + 4 i) · pack … of K."""
    depth = matrix.shape[1]
    blocks = matrix.reshape(halves, 8, depth // (4 * pack), 4, pack)  # half, g, i, t, element
    return blocks.transpose(1, 3, 2, 0, 4).reshape(32, -1, pack)


def mma(
    kinds: str, dtype: Any, k: int, out: Any, has: str = "xxxxx", m: int = 16, bits: int = 0
) -> Group:
    a, b = small((m, k), 1), small((8, k), 2)
    bits = bits or np.dtype(dtype).itemsize * 8
    pack = max(1, 32 // bits)
    halves = m // 8
    unit = max(1, bits // 32)  # int32 words of a register
    counts = [unit * m * k // 32 // pack, unit * 8 * k // 32 // pack]

    def inputs() -> Words:
        parts = [fragments(a, pack, halves), fragments(b, pack, 1)]
        if bits == 4:
            codes = [p.astype(dtype).view(np.uint8).astype(np.uint32) & 15 for p in parts]
            packed = [
                np.bitwise_or.reduce(c << (4 * np.arange(8, dtype=np.uint32)), -1) for c in codes
            ]
            return np.concatenate([p.astype(np.uint32).reshape(-1) for p in packed]).view(np.int32)
        return np.concatenate([words(p.astype(dtype)) for p in parts])

    def oracle(_: Words) -> Words:
        c = (a @ b.T).astype(out)  # lane 4 g + t has columns 2 t, 2 t + 1 of rows g (+ 8)
        return words(c.reshape(halves, 8, 4, 2).transpose(1, 2, 0, 3))

    register = {1: "unsigned", 2: "double"}[unit]
    kind = {np.float32: "float", np.int32: "unsigned", np.float64: "double"}[out]
    size = np.dtype(out).itemsize // 4
    if bits == 4:
        call = (
            "tl::sm120_mma_sync_blockscaled<tl::SM120MmaBlockScaledKind::kMxf4nvf4, 4,"
            " tl::SM120MmaScaleType::kUE4M3>(c, a, b, c, 0x38383838u, 0x38383838u);"  # all are 1
        )
    else:
        call = f"tl::mma_sync<{kinds}, {m}, 8, {k}, false, true>(c, a, b);"
    na, nb = (n // unit for n in counts)
    body = (
        f"{register} a[{na}], b[{nb}]; {kind} c[{2 * halves}] = {{}};"
        f"for (int i = 0; i < {na}; ++i) a[i] = ((const {register}*)x)[tid * {na} + i];"
        f"for (int i = 0; i < {nb}; ++i) b[i] = ((const {register}*)(x + 32 * {counts[0]}))[tid * {nb} + i];"
        f"{call} for (int i = 0; i < {2 * halves * size}; ++i) y[tid * {2 * halves * size} + i] = ((int*)c)[i];"
    )
    return Group(has, body, inputs, oracle)


def tiles(lines: int, seed: int) -> np.ndarray:
    """A K-major fp16 operand of 16 columns in shared memory without swizzle: 8 × 16 byte blocks."""
    matrix = small((lines, 16), seed).astype(np.float16)
    return matrix.reshape(lines // 8, 8, 2, 8).transpose(0, 2, 1, 3)


def wide(rows: int, columns: int) -> tuple[Callable[[], Words], np.ndarray]:
    """Both operands of a matrix multiply through descriptors, and their product."""
    a, b = small((rows, 16), 3), small((columns, 16), 4)
    image = np.concatenate([words(tiles(rows, 3)), words(tiles(columns, 4))])
    return (lambda: image), (a @ b.T).astype(np.float32)


_WGMMA, _WGMMA_D = wide(64, 64)
_TCGEN05, _TCGEN05_D = wide(128, 64)
_FILL = "for (int i = tid; i < {n}; i += 128) s[i] = x[i]; {fence} __syncthreads();"
_SWAP = "y[blockIdx.x * 32 + tid] = "

# fmt: off
GROUPS = {
    "conversions": Group("xxxxx",
        "for (int i = tid; i < 1024; i += 32) { fp8_e4_t e = fp8_e4_t(__int_as_float(x[i])); fp8_e5_t f = fp8_e5_t(__int_as_float(x[i]));"
        "bfloat16_t b = bfloat16_t(__int_as_float(x[i])); y[i] = *(unsigned char*)&e | *(unsigned char*)&f << 8 | *(unsigned short*)&b << 16; }",
        lambda: words(np.random.default_rng(0).standard_normal(1024).astype(np.float32) * 30),
        lambda x: (x.view(np.float32).astype(ml_dtypes.float8_e4m3fn).view(np.uint8).astype(np.uint32)
                   | x.view(np.float32).astype(ml_dtypes.float8_e5m2).view(np.uint8).astype(np.uint32) << 8
                   | x.view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16).astype(np.uint32) << 16).view(np.int32)),
    "stochastic rounding": Group("---x-",
        "__nv_bfloat162 v = tl::__tl_cvt_f32x2_to_bf16x2_rs_sat(make_float2(__int_as_float(x[tid]), 0.f), 0x1234u); y[tid] = *(unsigned short*)&v;",
        lambda: words(np.random.default_rng(0).standard_normal(32).astype(np.float32)),
        lambda x: (((x.view(np.uint32) & 0x7fffffff) + 0x1234 >> 16) | (x.view(np.uint32) >> 31 << 15)).view(np.int32)),
    "math": Group("xxxxx",
        "float v = (x[tid] >> 16) * 0.125f; y[tid] = __float_as_int(rintf(v)); y[32 + tid] = __popc(x[tid]);"
        "y[64 + tid] = __float_as_int(tl::clamp(v, -1.f, 1.f)); device_assert(tid < 32);", random_words,
        lambda x: np.concatenate([words(np.rint(v := (x[:32] >> 16).astype(np.float32) * np.float32(.125))),
                                  np.array([int(n).bit_count() for n in x[:32].view(np.uint32)], np.int32), words(v.clip(-1, 1))])),
    "shuffles and votes": Group("xxxxx",
        "y[tid] = __shfl_xor_sync(~0u, x[tid], 5); y[32 + tid] = __ballot_sync(~0u, x[tid] > 0); y[64 + tid] = __reduce_max_sync(~0u, x[tid]);"
        "y[96 + tid] = __match_any_sync(~0u, x[tid] & 3);", random_words,
        lambda x: np.concatenate([x[np.arange(32) ^ 5], np.full(32, sum(1 << i for i in range(32) if x[i] > 0), np.uint32).view(np.int32),
                                  np.full(32, x[:32].max()), np.array([sum(1 << j for j in range(32) if (x[i] ^ x[j]) & 3 == 0) for i in range(32)], np.uint32).view(np.int32)])),
    "elect": Group("--xxx", "y[tid] = tl::tl_shuffle_elect<64>() ? 1 : 0;", random_words,
        lambda x: np.tile(np.arange(64) == 0, 2).astype(np.int32), 128),
    "reductions": Group("xxxxx", "y[tid] = tl::AllReduce<tl::SumOp, 128, 1, 0>::run(x[tid] >> 8, (int*)s); y[128 + tid] = tl::warp_reduce_min(x[tid]);",
        random_words, lambda x: np.concatenate([np.full(128, (x[:128] >> 8).sum(dtype=np.int32)), np.repeat(x[:128].reshape(4, 32).min(1), 32)]), 128),
    "atomics": Group("xxxxx",
        "if (tid < 4) s[tid] = 0; __syncthreads(); AtomicAdd(&s[0], x[tid]); AtomicMax(&s[1], x[tid]); AtomicOr(&s[2], x[tid] & 255); atomicXor(&s[3], x[tid]);"
        "__syncthreads(); if (tid < 4) y[tid] = s[tid];", random_words,
        lambda x: np.array([x[:128].sum(dtype=np.int32), max(x[:128].max(), 0), np.bitwise_or.reduce(x[:128] & 255), np.bitwise_xor.reduce(x[:128])], np.int32), 128),
    "barriers": Group("xxxxx", "s[tid] = x[tid]; tl::__sync_thread_partial(1 + tid / 64, 64); y[tid] = s[tid ^ 63]; y[128 + tid] = __syncthreads_count(x[tid] & 1);",
        random_words, lambda x: np.concatenate([x[np.arange(128) ^ 63], np.full(128, (x[:128] & 1).sum(), np.int32)]), 128),
    "cp.async": Group("xxxxx",
        "tl::cp_async_gs<16>(s + tid * 4, x + tid * 4); tl::cp_async_gs_conditional<16>(s + 128 + tid * 4, x + tid * 4, tid % 3 == 0); tl::cp_async_commit();"
        "tl::cp_async_wait<0>(); __syncthreads(); for (int i = tid; i < 256; i += 32) y[i] = s[255 - i];", random_words,
        lambda x: np.concatenate([x[:128].reshape(32, 4), np.where(np.arange(32)[:, None] % 3 == 0, x[:128].reshape(32, 4), 0)]).reshape(-1)[::-1]),
    "256-bit accesses": Group("xxxxx", "tl::store_global_256((ulonglong4*)y + tid, tl::load_global_256((const ulonglong4*)x + 31 - tid));", random_words,
        lambda x: x[:256].reshape(32, 8)[::-1].reshape(-1)),
    "ldmatrix": Group("xxxxx",
        "for (int i = tid; i < 128; i += 32) s[i] = x[i]; __syncthreads(); unsigned r[4]; tl::ptx_ldmatrix_x4_trans((half_t*)s + tid * 8, r);"
        "for (int i = 0; i < 4; ++i) y[tid * 4 + i] = r[i];", random_words,
        lambda x: words(x[:128].view(np.uint16).reshape(4, 8, 8).transpose(0, 2, 1).reshape(4, 32, 2).transpose(1, 0, 2))),
    "stmatrix": Group("--xxx", "tl::ptx_stmatrix_x4_trans((half_t*)s + tid * 8, x[tid * 4], x[tid * 4 + 1], x[tid * 4 + 2], x[tid * 4 + 3]);"
        "__syncthreads(); for (int i = tid; i < 128; i += 32) y[i] = s[i];", random_words,
        lambda x: words(x[:128].view(np.uint16).reshape(32, 4, 2).transpose(1, 0, 2).reshape(4, 8, 8).transpose(0, 2, 1))),
    "mma.sync fp16": mma("D::kFloat16, D::kFloat16, D::kFloat32", np.float16, 16, np.float32),
    "mma.sync bf16": mma("D::kBFloat16, D::kBFloat16, D::kFloat32", ml_dtypes.bfloat16, 16, np.float32),
    "mma.sync tf32": mma("D::kTensorFloat32, D::kTensorFloat32, D::kFloat32", np.float32, 8, np.float32),
    "mma.sync int8": mma("D::kInt8, D::kInt8, D::kInt32", np.int8, 32, np.int32),
    "mma.sync fp64": mma("D::kFloat64, D::kFloat64, D::kFloat64", np.float64, 4, np.float64, m=8),
    "mma.sync e4m3": mma("D::kFloat8_e4m3, D::kFloat8_e4m3, D::kFloat32", ml_dtypes.float8_e4m3fn, 32, np.float32, "!xxxx"),
    "mma.sync e5m2": mma("D::kFloat8_e5m2, D::kFloat8_e5m2, D::kFloat32", ml_dtypes.float8_e5m2, 32, np.float32, "!xxxx"),
    "mma.sync with scales": mma("", ml_dtypes.float4_e2m1fn, 64, np.float32, "!!!!x", bits=4),
    "mbarrier": Group("xxxxx",
        "__shared__ __align__(16) uint64_t m[1]; if (tid == 0) tl::mbarrier_init(m[0], 32); __syncthreads(); if (tid < 32) { s[tid] = x[tid]; tl::mbarrier_arrive(m[0]); }"
        "else { while (!((Barrier*)m)[0].test_wait(0)) {} y[tid - 32] = s[63 - tid]; }", random_words, lambda x: x[31::-1], 64),
    "TMA": Group("--xxx",
        "__shared__ __align__(16) uint64_t m[1]; if (tid == 0) { tl::mbarrier_init(m[0], 1); tl::fence_barrier_init(); tl::mbarrier_arrive_expect_tx(m[0], 1024); tl::tma_load(map, m[0], s, 0, 3); }"
        "__syncthreads(); tl::mbarrier_wait(m[0], 0); for (int i = tid; i < 256; i += 32) s[256 + i] = s[i] + 1; tl::fence_proxy_async(); __syncthreads();"
        "if (tid == 0) { tl::tma_store(y, s + 256, 1024); tl::tma_store_arrive(); tl::tma_store_wait<0, false>(); }", random_words,
        lambda x: x.reshape(32, 32)[3:11].reshape(-1) + np.int32(1), map=True),
    "TMA of rows": Group("---xx",
        "__shared__ __align__(16) uint64_t m[1]; if (tid == 0) { tl::mbarrier_init(m[0], 1); tl::fence_barrier_init(); tl::mbarrier_arrive_expect_tx(m[0], 512); tl::tma_load_gather4(map, m[0], s, 0, 9, 2, 2, 30); }"
        "__syncthreads(); tl::mbarrier_wait(m[0], 0); for (int i = tid; i < 128; i += 32) y[i] = s[i];", random_words,
        lambda x: x.reshape(32, 32)[[9, 2, 2, 30]].reshape(-1), map=True),
    "st.bulk": Group("---xx", "s[tid] = x[tid]; __syncthreads(); if (tid == 0) tl::st_bulk_shared<64, 0>(s + 8); __syncthreads(); y[tid] = s[tid];", random_words,
        lambda x: np.where((np.arange(32) < 8) | (np.arange(32) >= 24), x[:32], 0)),
    "clusters": Group("--xxx",
        "int rank = tl::block_rank_in_cluster(); s[tid] = x[blockIdx.x * 32 + tid]; tl::cluster_sync(); int v = cooperative_groups::this_cluster().map_shared_rank(s, rank ^ 1)[31 - tid];"
        "tl::cluster_sync(); " + _SWAP + "v;", random_words, lambda x: x[:128].reshape(2, 2, 32)[:, ::-1, ::-1].reshape(-1), launch={"grid": (4,), "cluster": (2,)}),
    "cooperative grid": Group("xxxxx", _SWAP + "x[tid]; cooperative_groups::this_grid().sync(); int v = y[(blockIdx.x + 1) % 4 * 32 + tid]; cooperative_groups::this_grid().sync(); " + _SWAP + "v + blockIdx.x;",
        random_words, lambda x: (x[None, :32] + np.arange(4, dtype=np.int32)[:, None]).reshape(-1), launch={"grid": (4,), "cooperative": True}),
    "setmaxnreg and dependent launch": Group("--xxx",
        "if (tid < 128) tl::warpgroup_reg_dealloc<24>(); else tl::warpgroup_reg_alloc<240>(); cudaGridDependencySynchronize(); y[tid] = -x[tid]; cudaTriggerProgrammaticLaunchCompletion();",
        random_words, lambda x: -x[:256], 256),
    "wgmma": Group("--x--",
        _FILL.format(n=1024, fence="tl::fence_proxy_async();") + "uint32_t c[32]; tl::GmmaDescriptor a, b; tl::initialize_wgmma_descriptor<0, 8, 16>(a, s); tl::initialize_wgmma_descriptor<0, 8, 16>(b, s + 512);"
        "tl::warpgroup_arrive(); tl::wgmma_ss<D::kFloat16, D::kFloat16, D::kFloat32, 64, 64, 16, false, false>(a, b, c, false); tl::warpgroup_commit_batch(); tl::warpgroup_wait<0>();"
        "for (int i = 0; i < 32; ++i) y[(tid / 32 * 16 + tid % 32 / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + tid % 4 * 2 + i % 2] = c[i];",
        _WGMMA, lambda x: words(_WGMMA_D), 128),
    "tcgen05": Group("---x-",
        "__shared__ unsigned base[1]; __shared__ __align__(8) uint64_t m[1];" + _FILL.format(n=1536, fence="tl::fence_proxy_async();") +
        "if (tid == 0) ((Barrier*)m)[0].init(1); if (tid < 32) tl::tmem_allocate(base, 64); tl::tcgen05_before_thread_sync(); __syncthreads(); tl::tcgen05_after_thread_sync();"
        "if (tid < 32) { tl::Tcgen05SMemDescriptor a, b; tl::initialize_tcgen05_descriptor(a, s, 8, 16, 0, 0, 0); tl::initialize_tcgen05_descriptor(b, s + 1024, 8, 16, 0, 0, 0);"
        "tl::tcgen05mma_ss<D::kFloat16>(a, b, base[0], 0, 128 >> 4 << 24 | 64 >> 3 << 17 | 1 << 4, 0, 0, 0, 0); tl::tcgen05_mma_arrive(m); } ((Barrier*)m)[0].wait(0); tl::tcgen05_after_thread_sync();"
        "unsigned r[64]; tl::tcgen05_ld_32dp32bNx<64, false>(base[0], 0, r); for (int i = 0; i < 64; ++i) y[tid * 64 + i] = r[i];"
        "tl::tcgen05_before_thread_sync(); __syncthreads(); if (tid < 32) tl::tmem_deallocate(base, 64);",
        _TCGEN05, lambda x: words(_TCGEN05_D), 128),
}
# fmt: on


def kernel_name(group: str) -> str:
    return "g_" + "".join(c if c.isalnum() else "_" for c in group)


def source(groups: list[str], headers: str) -> str:
    parts = [f"#include <tl_templates/cuda/{name}.h>\n" for name in headers.split()]
    parts.append("#include <cooperative_groups.h>\nusing D = tl::DataType;\n")
    for name in groups:
        group = GROUPS[name]
        extra = ", __grid_constant__ const CUtensorMap map" if group.map else ""
        parts.append(
            f'extern "C" __global__ void __launch_bounds__({group.threads}, 1) {kernel_name(name)}'
            f"(int* __restrict__ y, const int* __restrict__ x{extra}) {{\n"
            "  extern __shared__ __align__(1024) int s[];\n"
            f"  int tid = (int)threadIdx.x;\n  {group.body}\n}}\n"
        )
    return "".join(parts)
