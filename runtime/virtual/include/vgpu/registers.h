// setmaxnreg: warps hand registers to each other. What a thread really uses is the compiler's
// business; that the block has the registers it takes is checked.
#pragma once
#include "vgpu/runtime.h"

// Called by one lane for its warp. Growing waits until other warps have released enough.
VGPU_API void vgpu_set_registers(uint32_t per_thread, bool grow);

namespace vgpu {

template <uint32_t PerThread, bool Grow>
struct SetRegisters {
  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, "setmaxnreg");
    vgpu_set_registers(PerThread, Grow);
  }
};

template <uint32_t PerThread, bool Grow>
inline void set_registers() {
  static_assert(PerThread >= 24 && PerThread <= 256 && PerThread % 8 == 0,
                "setmaxnreg takes 24 to 256 registers, a multiple of 8");
  int nothing = 0;
  rendezvous<SetRegisters<PerThread, Grow>>("setmaxnreg", kFullMask, nothing);
}

}  // namespace vgpu

namespace tl {

template <uint32_t registers>
VGPU_FROM_SM90
inline void warpgroup_reg_alloc() {
  vgpu::set_registers<registers, true>();
}
template <uint32_t registers>
VGPU_FROM_SM90
inline void warpgroup_reg_dealloc() {
  vgpu::set_registers<registers, false>();
}

}  // namespace tl

// Programmatic dependent launch: kernels run one after another here.
VGPU_FROM_SM90
inline void cudaGridDependencySynchronize() { vgpu::compiler_fence(); }
VGPU_FROM_SM90
inline void cudaTriggerProgrammaticLaunchCompletion() { vgpu::compiler_fence(); }
