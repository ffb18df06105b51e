"""Every name TileLang's CUDA backend can print, and which tests of the virtual GPU answer for it.

The names are harvested from the string literals of TileLang's own code generator, so a release
that prints a new one fails here; the compiler says which of ours exist."""

import importlib.util
import re
import subprocess
from pathlib import Path

from tileproof.runtime import virtual
from tileproof.runtime.virtual import compile as build_module

from .architectures import CALLS, NOWHERE

GROUPS = {
    "test_formats": """
        __bfloat1622float2 __float22bfloat162_rn __float22half2_rn __half22float2 __half2
        __nv_bfloat162 __nv_cvt_float2_to_fp8x2 __nv_fp4_storage_t __nv_fp4x2_storage_t
        __nv_fp4x4_storage_t __nv_fp8_storage_t __nv_fp8x2_storage_t __nv_fp8x4_storage_t
        __pack_half2 __pack_nv_bfloat162 __tl_cvt_bfloat162_to_e8m0x2 __tl_cvt_bfloat162_to_fp4x2
        __tl_cvt_bfloat162_to_fp8x2 __tl_cvt_bfloat16_to_fp8 __tl_cvt_double2_to_e8m0x2
        __tl_cvt_double2_to_fp4x2 __tl_cvt_e2m1_to_e4m3 __tl_cvt_e2m1x2_to_e4m3x2
        __tl_cvt_e2m1x4_to_e4m3x4 __tl_cvt_e4m3x2_to_bfloat162 __tl_cvt_e5m2x2_to_bfloat162
        __tl_cvt_e8m0x2_to_bfloat162 __tl_cvt_float2_to_e8m0x2 __tl_cvt_float2_to_fp4x2
        __tl_cvt_fp4x2_to_bfloat162 __tl_cvt_fp4x2_to_double2 __tl_cvt_fp4x2_to_float2
        __tl_cvt_fp4x2_to_half2 __tl_cvt_fp8_to_bfloat16 __tl_cvt_fp8_to_half
        __tl_cvt_fp8x2_to_float2 __tl_cvt_fp8x2_to_half2 __tl_cvt_half2_to_fp4x2
        __tl_cvt_half2_to_fp8x2 __tl_cvt_half_to_fp8 tl::__tl_cvt_f32x1_to_bf16x1_rs_sat
        tl::__tl_cvt_f32x2_to_bf16x2_rs_sat tl::broadcast tl::from_uint1 tl::to_uint1
        tl::make_fp4_vec tl::make_vec tl::pack_bfloat16x4 tl::pack_float16x4 tl::pack_half2
        tl_fp4_packed_load tl_fp4_packed_store fp4_e2_2_t make_float2 make_ulonglong4""",
    "test_math": """
        CUDART_INF CUDART_INF_F CUDART_NAN CUDART_NAN_F __ffs __ffsll __fns __habs __hdiv __hfma
        __hmax __hmax_nan __hmin __hmin_nan __ldg device_assert device_assert_with_msg
        tl::clamp tl::fast_max tl::fast_min tl::fast_rcp tl_int4_packed_load tl_int4_packed_store
        tl_pack_int4x2 tl_pack_uint4x2 tl_uint4_packed_load tl_uint4_packed_store
        tl::load_shared_32 tl::load_shared_64 tl::load_shared_128 tl::store_shared_32
        tl::store_shared_64 tl::store_shared_128 tl::st_bulk_shared""",
    "test_collectives": """
        __activemask __all_sync __any_sync __ballot_sync __match_all_sync __match_any_sync
        __shfl_down_sync __shfl_sync __shfl_up_sync __shfl_xor_sync __syncthreads
        __syncthreads_and __syncthreads_count __syncthreads_or __syncwarp tl::get_lane_idx
        tl::get_warp_group_idx tl::get_warp_idx tl::get_warp_idx_sync tl::tl_shuffle_elect
        tl::warp_reduce_bitand tl::warp_reduce_bitor tl::warp_reduce_max tl::warp_reduce_min
        tl::warp_reduce_sum tl::__named_barrier_arrive tl::__sync_thread_partial""",
    "test_atomics": """
        AtomicAdd AtomicAddRet AtomicAddx2 AtomicAddx2Ret AtomicAddx4 AtomicAddx4Ret AtomicLoad
        AtomicMax AtomicMaxRet AtomicMin AtomicMinRet AtomicOr AtomicStore""",
    "test_mma": "tl::mma_sync tl::sm120_mma_sync_blockscaled",
    "test_execution": """
        tl::cp_async_commit tl::cp_async_gs tl::cp_async_gs_conditional tl::cp_async_wait
        tl::load_global_32 tl::load_global_64 tl::load_global_128 tl::load_global_256
        tl::load_global_32_conditional tl::load_global_64_conditional
        tl::load_global_128_conditional tl::load_global_256_conditional tl::store_global_32
        tl::store_global_64 tl::store_global_128 tl::store_global_256
        tl::store_global_32_conditional tl::store_global_64_conditional
        tl::store_global_128_conditional tl::store_global_256_conditional""",
}
# These do not exist here: a kernel that needs one does not compile, and the error names it.
NOT_MODELLED = {
    "tl::__tl_cvt_f32x1_to_f16x1_rs_sat": "how cvt.rs rounds to a subnormal half is not documented",
    "tl::__tl_cvt_f32x2_to_f16x2_rs_sat": "the same",
    "__tl_cvt_f32x1_to_e2m1x1_rs_sat": "the order of cvt.rs's random bits is not documented",
    "__tl_cvt_f32x2_to_e2m1x2_rs_sat": "the same",
    "__tl_cvt_f32x4_to_e2m1x4_rs_sat": "the same",
    "__pack_bfloat162": "CUDA has no such name: TileLang's text does not compile there either",
    "tl::pack_b8x4": "TileLang's helper is global: its text does not compile on hardware either",
    "tl::mma_sp_sync": "structured sparsity",
    "tl::mma_sync_sm70": "Volta",
    "curand": "random numbers",
    "curand4": "random numbers",
    "curand_init": "random numbers",
    "curand_normal2": "random numbers",
    "curand_normal2_double": "random numbers",
    "curandStateMRG32k3a_t": "random numbers",
    "curandStatePhilox4_32_10_t": "random numbers",
    "curandStateXORWOW_t": "random numbers",
}
# Literals of the generator that are no helpers: keywords, prefixes it completes, its own words.
OTHER = r"""
    __(align|asm|clang|global|grid_constant|launch_bounds|restrict|shared|volatile)__|__fma_|
    __nv_fp6|__random_generator_state|__tl_cvt_f32x\d_to_|AtomicOp|AtomicReduce|curand_|
    curand_kernel|device_func|fp[48]_e\d|tl::DataType|tl::SM120Mma\w+|tl::ptx_(ld|st)matrix_x?|
    tl_templates|tl_(increase|initialize)_\w+|tl::tcgen05_(ld|st)_|tl::(Gmma|Tcgen05SMem)Descriptor"""
NAME = re.compile(r"tl::\w+|cuda[A-Z]\w+|cooperative_groups")
HARVEST = re.compile(
    r"\b(tl::\w+|__[a-z]\w+|tl_[a-z0-9_]+|Atomic[A-Z]\w+|make_(?:float|double|u?longlong)\d|"
    r"curand\w*|cuda[A-Z]\w+|device_\w+|fp[48]_e\w+|cooperative_groups|CUDART\w+)"
)


def known() -> set[str]:
    return {name for names in GROUPS.values() for name in names.split()}


def printed() -> set[str]:
    """The names in the string literals of TileLang's generator."""
    package = importlib.util.find_spec("tilelang")
    assert package is not None and package.origin is not None
    text = (Path(package.origin).parent / "src/cuda/codegen/codegen_cuda.cc").read_text()
    # Code only: comments quote names too.
    text = re.sub(r"//[^\n]*", "", text)
    literals = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    found = {name.rstrip(":") for literal in literals for name in HARVEST.findall(literal)}
    assert len(found) > 200  # the harvest works
    return found


def test_every_name_the_generator_prints_is_accounted_for():
    other = re.compile("".join(OTHER.split()))
    # Those that not every architecture has, call by call: architectures.py.
    elsewhere = {w for call in CALLS for w in NAME.findall(call.text)} | NOWHERE.keys()
    left = printed() - known() - set(NOT_MODELLED) - elsewhere
    left = {n for n in left if not other.fullmatch(n)}
    assert not left, f"TileLang prints {sorted(left)}, which no test answers for"


def declared(names: list[str]) -> set[str]:
    """Those of the names the virtual GPU's headers declare."""
    lines = ['#include "vgpu/all.h"', "#include <math_constants.h>", "namespace names {"]
    for i, name in enumerate(names):
        full = name if "::" in name else f"::{name}"
        macro = "1" if "::" in name else f"!defined({name})"
        lines.append(f'#if {macro}\n#line {i + 1} "names"\nusing {full};\n#endif')
    source = "\n".join([*lines, "}"])
    command = [build_module.compiler()[0], "-std=c++17", "-fsyntax-only", "-fmax-errors=0", "-w"]
    include = Path(virtual.__file__).parent / "include"
    done = subprocess.run(
        [*command, "-x", "c++", f"-I{include}", "-"], input=source, capture_output=True, text=True
    )
    missing = {int(n) - 1 for n in re.findall(r"^names:(\d+):.*error", done.stderr, re.M)}
    assert bool(missing) == bool(done.returncode), done.stderr
    return {name for i, name in enumerate(names) if i not in missing}


def test_the_compiler_agrees_with_the_table():
    names = sorted(known()) + sorted(NOT_MODELLED)
    assert declared(names) == known()


def test_the_groups_are_test_files():
    here = Path(__file__).parent
    assert all((here / f"{group}.py").exists() for group in GROUPS)
