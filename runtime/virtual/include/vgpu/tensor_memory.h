// Tensor memory of sm_100a and the asynchronous operations on it, as libvgpu performs them.
#pragma once
#include "vgpu/runtime.h"

namespace vgpu {

constexpr uint32_t kTensorLanes = 128, kTensorColumns = 512;

// The .kind of a tcgen05.mma.
enum class TensorKind { kF16, kTf32, kF8f6f4, kI8, kMxf8f6f4 };

// One tcgen05.mma: D (+)= A B. Addresses are of tensor memory: lane << 16 | column.
struct TensorMma {
  TensorKind kind;
  bool weight_stationary;  // .ws
  bool pair;               // cta_group::2
  bool a_in_tensor_memory;
  bool accumulate;       // enable-input-d
  uint64_t a, b;         // descriptors; `a` may be an address
  uint32_t d;            // address
  uint32_t instruction;  // descriptor
  uint32_t disabled[4];  // lanes whose output is not written
  uint32_t scale_a, scale_b;
};

// One tcgen05.ld or tcgen05.st of a warp: `lanes` x `bits`, `repeats` times along the columns.
struct TensorAccess {
  bool store;
  bool packed;  // two 16-bit columns to a register: .pack::16b, .unpack::16b
  uint32_t lanes, bits, repeats;
  uint32_t address;

  constexpr uint32_t registers() const { return repeats * lanes * bits / 1024; }
  constexpr uint32_t columns() const { return repeats * bits / 32 * (packed ? 2 : 1); }
};

}  // namespace vgpu

// All of these are called by one lane for its warp.
VGPU_API void vgpu_tensor_allocate(uint32_t* result, int columns, bool pair);
VGPU_API void vgpu_tensor_deallocate(uint32_t address, int columns, bool pair);
VGPU_API void vgpu_tensor_mma(const vgpu::TensorMma& mma);
// tcgen05.cp.32x128b.warpx4
VGPU_API void vgpu_tensor_copy(uint64_t source, uint32_t address, bool pair);
// tcgen05.commit: one arrival on the mbarrier when what this warp issued has been performed; for a
// pair, on that of each block of the cluster in the mask.
VGPU_API void vgpu_tensor_commit(const void* mbarrier, bool pair, uint32_t cta_mask);
// registers: each lane's.
VGPU_API void vgpu_tensor_access(const vgpu::TensorAccess& access, uint32_t* const* registers);
VGPU_API void vgpu_tensor_wait(bool store);
// tcgen05.fence::before_thread_sync and ::after_thread_sync: what is performed in order anyway is
// performed so; the race checker wants to know.
VGPU_API void vgpu_tensor_fence(bool after);
