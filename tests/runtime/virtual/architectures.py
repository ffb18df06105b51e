"""Which architecture has which helper, call by call.

A row says it for sm_80, sm_89, sm_90a, sm_100a, sm_120a, in this order: `x` has it, `-` lacks it,
`!` lacks the instruction although nvcc takes the text: the helper traps there. Helpers that are in
no row are those of `test_vocabulary.GROUPS`, which every architecture has.
"""

# ruff: noqa: E501 (a call is a line)
from __future__ import annotations

from dataclasses import dataclass

from tileproof.dsl import ALL


@dataclass(frozen=True)
class Call:
    group: str
    text: str
    has: str  # a letter per architecture

    def on(self, arch: str) -> str:
        return self.has[ALL.index(arch)]


_ROWS = [
    ("TMA", "--xxx", """
        tl::tma_load(map, memory[0], s, 0, 0)
        tl::tma_load<tl::CacheHintSm90::EVICT_FIRST>(map, memory[0], s, 0, 0)
        tl::tma_load(s, y, memory[0], 64)
        tl::tma_load_im2col(map, memory[0], s, 0, 0, 0, 0, 1, 1)
        tl::tma_store(map, s, 0, 0)
        tl::tma_store(y, s, 64)
        tl::tma_store_add(map, s, 0, 0)
        tl::tma_store_add((float*)s, y, 64)
        tl::tma_store_arrive()
        tl::tma_store_wait<0>()
        tl::prefetch_tma_descriptor(map)
        tl::tma_load_multicast(map, memory[0], s, (uint16_t)3, 0, 0)
        tl::tma_load_multicast(s, y, memory[0], 64, 3)
        tl::tma_store_cluster(s, s, 1, 64, memory[0])"""),
    ("TMA of rows", "---xx", "tl::tma_load_gather4(map, memory[0], s, 0, 0, 1, 2, 3)"),
    ("TMA of rows", "---x-", "tl::tma_store_scatter4(map, s, 0, 0, 1, 2, 3)"),
    ("TMA of pairs", "---x-", """
        tl::tma_load_2sm(map, memory[0], s, 0, 0)
        tl::tma_load_2sm<tl::CacheHintSm100::EVICT_FIRST>(map, memory[0], s, 0, 0)"""),
    ("mbarrier", "xxxxx", """
        tl::mbarrier_init(memory[0], 1)
        tl::mbarrier_arrive(memory[0])
        tl::mbarrier_test_wait(memory[0], 0)
        tl::mbarrier_cp_async_arrive(memory[0])
        tl::mbarrier_cp_async_arrive_noinc(memory[0])
        bar[0].init(1)
        bar[0].arrive()
        bar[0].test_wait(0)"""),
    ("mbarrier of sm_90", "--xxx", """
        tl::mbarrier_expect_tx(memory[0], 64)
        tl::mbarrier_arrive_expect_tx(memory[0], 64)
        tl::mbarrier_wait(memory[0], 0)
        tl::mbarrier_try_wait(memory[0], 0)
        tl::syncthreads_partial(memory[0])
        tl::fence_barrier_init()
        tl::fence_proxy_async()
        bar[0].wait(0)
        bar[0].try_wait(0)
        bar[0].arrive(1)
        bar[0].expect_transaction(64)
        bar[0].arrive_and_expect_tx(64)
        tl::mbarrier_arrive(memory[0], 1, 1)
        tl::mbarrier_arrive_expect_tx(memory[0], 64, 1, 1)"""),
    ("clusters", "--xxx", """
        tl::cluster_arrive()
        tl::cluster_arrive_relaxed()
        tl::cluster_wait()
        tl::cluster_sync()
        y[0] = tl::block_rank_in_cluster()
        y[0] = tl::cluster_shape().x
        y[0] = tl::cluster_grid_dims().x
        y[0] = tl::cluster_id_in_grid().x
        y[0] = tl::block_id_in_cluster().x
        y[0] = cooperative_groups::this_cluster().map_shared_rank((float*)s, 1)[0]
        cooperative_groups::this_cluster().sync()"""),
    ("cooperative grid", "xxxxx", "cooperative_groups::this_grid().sync()"),
    ("setmaxnreg", "--xxx", """
        tl::warpgroup_reg_alloc<240>()
        tl::warpgroup_reg_dealloc<24>()"""),
    ("dependent launch", "--xxx", """
        cudaGridDependencySynchronize()
        cudaTriggerProgrammaticLaunchCompletion()"""),
    ("elect", "--xxx", "y[0] = tl::tl_shuffle_elect<64>()"),
    ("wgmma", "--x--", """
        tl::wgmma_ss<D::kFloat16, D::kFloat16, D::kFloat32, 64, 8, 16, false, false>(a, b, w, 1)
        tl::wgmma_ss<D::kFloat8_e4m3, D::kFloat8_e4m3, D::kFloat32, 64, 8, 32, false, false>(a, b, w, 1)
        tl::wgmma_rs<D::kFloat16, D::kFloat16, D::kFloat32, 64, 8, 16, false, false>(w, b, w, 1)
        tl::warpgroup_arrive()
        tl::warpgroup_commit_batch()
        tl::warpgroup_wait<0>()
        tl::wait_wgmma<0>()"""),
    ("descriptors", "xxxxx", """
        tl::warpgroup_fence_operand(w, 4)
        tl::initialize_wgmma_descriptor<1, 1, 64>(gmma, (half_t*)s)
        tl::increase_descriptor_offset(gmma, 32)
        tl::initialize_tcgen05_descriptor(tdesc, (half_t*)s, 1, 64, 0, false, 0)
        tl::increase_descriptor_offset(tdesc, 32)
        y[0] = tl::make_sf_smem_desc(s)
        tl::tcgen05_sf_warp_transpose((uint32_t*)s)"""),
    ("tcgen05", "---x-", """
        tl::tmem_allocate(w, 32)
        tl::tmem_deallocate(w, 32)
        tl::tcgen05_before_thread_sync()
        tl::tcgen05_after_thread_sync()
        tl::tcgen05_mma_arrive(memory)
        tl::tcgen05_cp(a, w[0])
        tl::tcgen05mma_ss<D::kFloat16>(a, b, 0, 1, 0, 0, 0, 0, 0)
        tl::tcgen05mma_ss<D::kFloat16, true>(a, b, 0, 1, 0, 0, 0, 0, 0)
        tl::tcgen05mma_ts<D::kFloat16>(0u, b, 0, 1, 0, 0, 0, 0, 0)
        tl::tcgen05mma_ws_ss<D::kFloat16>(a, b, 0, 1, 0, 0, 0, 0, 0)
        tl::tcgen05mma_blockscaled_ss<D::kFloat8_e4m3>(a, b, 0, 1, 0, 0, 0)
        tl::tcgen05_ld_32dp32bNx<4, false>(w[0], 0, w)
        tl::tcgen05_ld_16dp256bNx<1, false>(w[0], 0, w)
        tl::tcgen05_st_32dp32bNx<4, false>(w[0], 0, w)
        tl::fence_view_async_tmem_load()
        tl::fence_view_async_tmem_store()"""),
    ("mma.sync", "xxxxx", """
        tl::mma_sync<D::kFloat16, D::kFloat16, D::kFloat32, 16, 8, 16, false, true>((float*)w, w, w)
        tl::mma_sync<D::kBFloat16, D::kBFloat16, D::kFloat32, 16, 8, 16, false, true>((float*)w, w, w)
        tl::mma_sync<D::kTensorFloat32, D::kTensorFloat32, D::kFloat32, 16, 8, 8, false, true>((float*)w, w, w)
        tl::mma_sync<D::kInt8, D::kInt8, D::kInt32, 16, 8, 32, false, true>(w, w, w)
        tl::mma_sync<D::kInt4, D::kInt4, D::kInt32, 16, 8, 32, false, true>(w, w, w)
        tl::mma_sync<D::kFloat64, D::kFloat64, D::kFloat64, 8, 8, 4, false, true>((double*)w, (double*)w, (double*)w)"""),
    ("mma.sync of fp8", "!xxxx", """
        tl::mma_sync<D::kFloat8_e4m3, D::kFloat8_e4m3, D::kFloat32, 16, 8, 32, false, true>((float*)w, w, w)
        tl::mma_sync<D::kFloat8_e5m2, D::kFloat8_e5m2, D::kFloat32, 16, 8, 32, false, true>((float*)w, w, w)"""),
    ("mma.sync with scales", "!!!!x", """
        tl::sm120_mma_sync_blockscaled<tl::SM120MmaBlockScaledKind::kMxf4nvf4, 4, tl::SM120MmaScaleType::kUE4M3>((float*)w, w, w, (float*)w, 0, 0)"""),
    ("ldmatrix", "xxxxx", """
        tl::ptx_ldmatrix_x1(s, w)
        tl::ptx_ldmatrix_x4(s, w)
        tl::ptx_ldmatrix_x4_trans(s, w)"""),
    ("stmatrix", "--xxx", """
        tl::ptx_stmatrix_x1(s, 1)
        tl::ptx_stmatrix_x2_trans(s, 1, 2)
        tl::ptx_stmatrix_x4(s, 1, 2, 3, 4)
        tl::ptx_stmatrix_m8n8_x4(s, 1, 2, 3, 4)
        tl::ptx_stmatrix_m8n8_x4_trans(s, 1, 2, 3, 4)"""),
    ("stmatrix of bytes", "---x-", """
        tl::ptx_stmatrix_m16n8_x1_trans(s, 1)
        tl::ptx_stmatrix_m16n8_x4_trans(s, 1, 2, 3, 4)"""),
    ("st.bulk", "---xx", "tl::st_bulk_shared<64, 0>(s)"),
    ("cp.async", "xxxxx", "tl::cp_async_gs<16>(s, y)"),
    ("256-bit accesses", "xxxxx", """
        wide[1] = tl::load_global_256(wide)
        tl::store_global_256(wide, wide[1])"""),
    ("redux", "xxxxx", """
        y[0] = __reduce_add_sync(~0u, w[0])
        y[0] = tl::warp_reduce_max(y[1])"""),
    ("stochastic rounding", "---x-", """
        ((__nv_bfloat162*)y)[0] = tl::__tl_cvt_f32x2_to_bf16x2_rs_sat(make_float2(1, 2), 3)
        ((unsigned short*)y)[0] = tl::__tl_cvt_f32x1_to_bf16x1_rs_sat(1.f, 3)"""),
]  # fmt: skip
CALLS = [
    Call(group, line.strip(), has)
    for group, has, lines in _ROWS
    for line in lines.splitlines()
    if line.strip()
]
# Printed by TileLang and modelled nowhere: what does not exist here does not compile.
NOWHERE = {
    "tl::wgmma_sp_ss": "structured sparsity",
    "tl::wgmma_sp_rs": "structured sparsity",
    "tl::clc_try_cancel": "cluster launch control",
    "tl::clc_try_cancel_multicast": "cluster launch control",
    "tl::clc_is_canceled": "cluster launch control",
    "tl::clc_get_first_ctaid_x": "cluster launch control",
    "tl::clc_get_first_ctaid_y": "cluster launch control",
    "tl::clc_get_first_ctaid_z": "cluster launch control",
    "tl::arrive_barrier_expect_tx": "TileLang 0.1.15 has no such helper either",
    "tl::Tcgen05InstrDescriptor": "TileLang 0.1.15 passes it as a number",
}
HEADERS = (
    "atomic barrier cluster copy copy_sm90 copy_sm100 cuda_fp8 cuda_fp4 debug instruction/mma"
    " instruction/mma_block_scale instruction/wgmma instruction/tcgen05mma tcgen_05 intrin ldsm math"
    " reduce scan"
)


def source(calls: list[int]) -> str:
    """A kernel per call; errors of call i are in line i + 1 of a file called `calls`."""
    parts = [f"#include <tl_templates/cuda/{name}.h>\n" for name in HEADERS.split()]
    parts.append("#include <cooperative_groups.h>\n")
    for i in calls:
        parts.append(
            f'extern "C" __global__ void call{i}(float* y, ulonglong4* wide,\n'
            "    __grid_constant__ const CUtensorMap map) {\n"
            "  extern __shared__ __align__(1024) unsigned char s[];\n"
            "  __shared__ __align__(16) uint64_t memory[2];\n"
            "  auto bar = reinterpret_cast<Barrier*>(memory); using D = tl::DataType;\n"
            "  uint64_t a = (uint64_t)y, b = a; uint32_t w[16];\n"
            "  for (int i = 0; i < 16; ++i) w[i] = ((int*)y)[i];\n"
            "  tl::GmmaDescriptor gmma; tl::Tcgen05SMemDescriptor tdesc;\n"
            f'#line {i + 1} "calls"\n{CALLS[i].text};\n'
            "  for (int i = 0; i < 16; ++i) ((int*)y)[i] = w[i] + *(int*)s;\n"
            "  *(uint64_t*)y = memory[1] + (uint64_t)gmma + (uint64_t)tdesc;\n}\n"
        )
    return "".join(parts)
