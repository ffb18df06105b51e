// tcgen05 of sm_100a: tensor memory, matrix multiplies of one thread, copies of scale factors.
#pragma once
#include "vgpu/matrix.h"
#include "vgpu/tensor_memory.h"
#include "vgpu/warp.h"

namespace vgpu {

// Performs `action` once for the warp: as the instruction is .sync.aligned, or because TileLang's
// helper elects one lane of a warp that must be whole.
template <class Action>
struct WarpActionWork {
  VGPU_LEAF static void run(const Site& site) {
    auto& first = operand_of<std::pair<const char*, Action>>(site, 0);
    require_full_warp(site, first.first);
    first.second();
  }
};

template <class Action>
inline void once_for_warp(const char* op, Action action) {
  std::pair<const char*, Action> operand{op, action};
  rendezvous<WarpActionWork<Action>>(op, kFullMask, operand);
}

constexpr TensorKind tensor_kind(tl::DataType type) {
  switch (type) {
    case tl::DataType::kFloat16:
    case tl::DataType::kBFloat16: return TensorKind::kF16;
    case tl::DataType::kTensorFloat32: return TensorKind::kTf32;
    case tl::DataType::kInt8:
    case tl::DataType::kUInt8: return TensorKind::kI8;
    default: return TensorKind::kF8f6f4;
  }
}

}  // namespace vgpu

namespace tl {

// The 64-bit shared memory descriptor. Addresses and offsets in units of 16 bytes.
struct Tcgen05SMemDescriptor {
  uint64_t bits = 0;

  operator uint64_t() const { return bits; }
  // Generated code steps through a tile by bytes.
  template <class T>
  Tcgen05SMemDescriptor operator+(T bytes) const {
    Tcgen05SMemDescriptor moved = *this;
    moved.advance(static_cast<uint32_t>(bytes) >> 4);
    return moved;
  }
  void advance(uint32_t units) {
    bits = (bits & ~uint64_t(0xffffffff)) | static_cast<uint32_t>(bits + units);
  }
};

template <class T>
inline void initialize_tcgen05_descriptor(Tcgen05SMemDescriptor& descriptor, T* start, int leading,
                                          int stride, int base_offset, bool leading_is_absolute,
                                          int swizzle) {
  descriptor.bits = uint64_t(vgpu_shared_address(start) >> 4 & 0x3fff) |
                    uint64_t(leading & 0x3fff) << 16 | uint64_t(stride & 0x3fff) << 32 |
                    uint64_t(1) << 46 | uint64_t(base_offset & 7) << 49 |
                    uint64_t(leading_is_absolute) << 52 | uint64_t(swizzle & 7) << 61;
}

template <class T>
inline void increase_descriptor_offset(Tcgen05SMemDescriptor& descriptor, T bytes) {
  descriptor.advance(static_cast<uint32_t>(bytes >> 4));
}

// Of 32 rows of 16 bytes, without swizzle: what tcgen05_cp reads.
inline uint64_t make_sf_smem_desc(void* start) {
  Tcgen05SMemDescriptor descriptor;
  initialize_tcgen05_descriptor(descriptor, start, 0, 8, 0, false, 0);
  return descriptor;
}

template <bool pair = false>
VGPU_ONLY_SM100A
inline void tmem_allocate(void* result, int columns) {
  vgpu::once_for_warp("tcgen05.alloc", [=] {
    vgpu_tensor_allocate(static_cast<uint32_t*>(result), columns, pair);
  });
}
template <bool pair = false>
VGPU_ONLY_SM100A
inline void tmem_deallocate(uint32_t* address, int columns) {
  const uint32_t first = *address;
  vgpu::once_for_warp("tcgen05.dealloc",
                      [=] { vgpu_tensor_deallocate(first, columns, pair); });
}

VGPU_ONLY_SM100A
inline void tcgen05_before_thread_sync() { vgpu_tensor_fence(false); }
VGPU_ONLY_SM100A
inline void tcgen05_after_thread_sync() { vgpu_tensor_fence(true); }

template <bool pair = false>
VGPU_ONLY_SM100A
inline void tcgen05_mma_arrive(const void* mbarrier, const uint16_t cta_mask = 3) {
  vgpu::once_for_warp("tcgen05.commit",
                      [=] { vgpu_tensor_commit(mbarrier, pair, cta_mask); });
}

template <bool pair = false>
VGPU_ONLY_SM100A
inline void tcgen05_cp(const uint64_t& descriptor, const uint32_t& address) {
  vgpu::once_for_warp("tcgen05.cp",
                      [=] { vgpu_tensor_copy(descriptor, address, pair); });
}

// 4 x 32 words in shared memory become 32 x 4, by one warp.
inline void tcgen05_sf_warp_transpose(uint32_t* words) {
  const uint32_t lane = vgpu::thread_index() % vgpu::kWarp;
  uint32_t column[4];
  for (uint32_t i = 0; i < 4; ++i) column[i] = words[i * 32 + lane];
  __syncwarp();
  for (uint32_t i = 0; i < 4; ++i) words[lane * 4 + i] = column[i];
}

template <DataType type, bool pair = false>
VGPU_ONLY_SM100A
inline void tcgen05mma_ss(uint64_t a, uint64_t b, uint32_t d, uint32_t accumulate,
                          uint32_t instruction, int mask0, int mask1, int mask2, int mask3) {
  static_assert(!pair || type != DataType::kTensorFloat32,
                "TileLang 0.1.15 has no tf32 tcgen05.mma of a pair");
  // TileLang passes its four masks to single-CTA instructions only.
  const auto mask = [](int bits) { return pair ? 0u : static_cast<uint32_t>(bits); };
  const vgpu::TensorMma mma{vgpu::tensor_kind(type), false, pair, false, accumulate != 0, a, b, d,
                            instruction, {mask(mask0), mask(mask1), mask(mask2), mask(mask3)},
                            0, 0};
  vgpu::once_for_warp("tcgen05.mma", [=] { vgpu_tensor_mma(mma); });
}
template <DataType type, bool pair = false>
VGPU_ONLY_SM100A
inline void tcgen05mma_ts(uint32_t a, uint64_t b, uint32_t d, uint32_t accumulate,
                          uint32_t instruction, int mask0, int mask1, int mask2, int mask3) {
  static_assert(!pair || type != DataType::kTensorFloat32,
                "TileLang 0.1.15 has no tf32 tcgen05.mma of a pair");
  const auto mask = [](int bits) { return pair ? 0u : static_cast<uint32_t>(bits); };
  const vgpu::TensorMma mma{vgpu::tensor_kind(type), false, pair, true, accumulate != 0, a, b, d,
                            instruction, {mask(mask0), mask(mask1), mask(mask2), mask(mask3)},
                            0, 0};
  vgpu::once_for_warp("tcgen05.mma", [=] { vgpu_tensor_mma(mma); });
}
// .ws has no lane masks; TileLang ignores those it is given.
template <DataType type>
VGPU_ONLY_SM100A
inline void tcgen05mma_ws_ss(uint64_t a, uint64_t b, uint32_t d, uint32_t accumulate,
                             uint32_t instruction, int, int, int, int) {
  const vgpu::TensorMma mma{vgpu::tensor_kind(type), true, false, false, accumulate != 0, a, b, d,
                            instruction, {}, 0, 0};
  vgpu::once_for_warp("tcgen05.mma.ws", [=] { vgpu_tensor_mma(mma); });
}
template <DataType type, bool pair = false>
VGPU_ONLY_SM100A
inline void tcgen05mma_blockscaled_ss(uint64_t a, uint64_t b, uint32_t d, uint32_t accumulate,
                                      uint32_t instruction, uint32_t scale_a, uint32_t scale_b) {
  static_assert(vgpu::tensor_kind(type) == vgpu::TensorKind::kF8f6f4,
                "the virtual GPU does not model this block-scaled tcgen05.mma");
  const vgpu::TensorMma mma{vgpu::TensorKind::kMxf8f6f4, false, pair, false, accumulate != 0, a, b,
                            d, instruction, {}, scale_a, scale_b};
  vgpu::once_for_warp("tcgen05.mma.block_scale", [=] { vgpu_tensor_mma(mma); });
}

}  // namespace tl
