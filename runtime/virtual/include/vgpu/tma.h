// Bulk asynchronous copies: plain ones, and boxes of tensors described by tensor maps.
#pragma once
#include "vgpu/mbarrier.h"

// Opaque, as in CUDA; libvgpu keeps a vgpu::TensorMap in it.
struct alignas(64) CUtensorMap {
  uint64_t opaque[16];
};

namespace vgpu {

enum class Reduction : uint8_t { kNone, kAdd };

// Where in a tensor a copy lies: the coordinates a helper was given, innermost first.
struct TmaCoordinates {
  int32_t at[5];
  uint32_t count;
  bool rows = false;     // four rows of a matrix: at = {column, row, row, row, row}
  bool im2col = false;
  uint16_t offset[3]{};  // of the filter, im2col only
};

}  // namespace vgpu

VGPU_API void vgpu_tma_load(const CUtensorMap* map, void* shared, uint64_t* barrier,
                            const vgpu::TmaCoordinates* where);
VGPU_API void vgpu_tma_store(const CUtensorMap* map, const void* shared,
                             const vgpu::TmaCoordinates* where, vgpu::Reduction reduction);
VGPU_API void vgpu_bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);
// With a reduction the bytes are floats.
VGPU_API void vgpu_bulk_store(void* global, const void* shared, uint32_t bytes,
                              vgpu::Reduction reduction);
VGPU_API void vgpu_bulk_commit();
// Until at most `pending` of this thread's groups are unfinished; `read`: have not read their source.
VGPU_API void vgpu_bulk_wait(int pending, bool read);
VGPU_API void vgpu_tma_prefetch(const CUtensorMap* map);

namespace vgpu {

template <class... Ts>
inline TmaCoordinates coordinates(Ts... at) {
  static_assert(sizeof...(Ts) >= 1 && sizeof...(Ts) <= 5, "tensor maps have 1 to 5 dimensions");
  return {{static_cast<int32_t>(at)...}, sizeof...(Ts)};
}

}  // namespace vgpu

namespace tl {

// Where a line may stay in L2: of no consequence here.
enum class CacheHintSm90 : uint64_t {
  EVICT_NORMAL = 0x1000000000000000,
  EVICT_FIRST = 0x12F0000000000000,
  EVICT_LAST = 0x14F0000000000000,
};

template <class T = uint64_t>
VGPU_FROM_SM90
inline void tma_load(void* shared, const void* global, T& barrier, uint32_t bytes) {
  vgpu_bulk_load(shared, global, bytes, vgpu::mbarrier_of(barrier));
}
template <CacheHintSm90 hint = CacheHintSm90::EVICT_NORMAL, class T = uint64_t, class... Ts>
VGPU_FROM_SM90
inline void tma_load(const CUtensorMap& map, T& barrier, const void* shared, Ts... at) {
  const auto where = vgpu::coordinates(at...);
  vgpu_tma_load(&map, const_cast<void*>(shared), vgpu::mbarrier_of(barrier), &where);
}
template <CacheHintSm90 hint = CacheHintSm90::EVICT_NORMAL, class T = uint64_t>
VGPU_FROM_SM90
inline void tma_load_im2col(const CUtensorMap& map, T& barrier, const void* shared, int32_t c,
                            int32_t w, int32_t h, int32_t n, uint16_t offset_w,
                            uint16_t offset_h) {
  vgpu::TmaCoordinates where{{c, w, h, n}, 4, false, true, {offset_w, offset_h}};
  vgpu_tma_load(&map, const_cast<void*>(shared), vgpu::mbarrier_of(barrier), &where);
}
template <CacheHintSm90 hint = CacheHintSm90::EVICT_NORMAL, class T = uint64_t>
VGPU_FROM_SM100
inline void tma_load_gather4(const CUtensorMap& map, T& barrier, const void* shared, int32_t column,
                             int32_t r0, int32_t r1, int32_t r2, int32_t r3) {
  const vgpu::TmaCoordinates where{{column, r0, r1, r2, r3}, 2, true};
  vgpu_tma_load(&map, const_cast<void*>(shared), vgpu::mbarrier_of(barrier), &where);
}

template <CacheHintSm90 hint = CacheHintSm90::EVICT_NORMAL>
VGPU_FROM_SM90
inline void tma_store(void* global, void* shared, uint32_t bytes) {
  vgpu_bulk_store(global, shared, bytes, vgpu::Reduction::kNone);
}
template <CacheHintSm90 hint = CacheHintSm90::EVICT_NORMAL, class... Ts>
VGPU_FROM_SM90
inline void tma_store(const CUtensorMap& map, const void* shared, Ts... at) {
  const auto where = vgpu::coordinates(at...);
  vgpu_tma_store(&map, shared, &where, vgpu::Reduction::kNone);
}
template <CacheHintSm90 hint = CacheHintSm90::EVICT_NORMAL>
VGPU_ONLY_SM100A
inline void tma_store_scatter4(const CUtensorMap& map, const void* shared, int32_t column,
                               int32_t r0, int32_t r1, int32_t r2, int32_t r3) {
  const vgpu::TmaCoordinates where{{column, r0, r1, r2, r3}, 2, true};
  vgpu_tma_store(&map, shared, &where, vgpu::Reduction::kNone);
}
VGPU_FROM_SM90
inline void tma_store_add(float* shared, float* global, int32_t bytes) {
  vgpu_bulk_store(global, shared, static_cast<uint32_t>(bytes), vgpu::Reduction::kAdd);
}
template <class... Ts>
VGPU_FROM_SM90
inline void tma_store_add(const CUtensorMap& map, const void* shared, Ts... at) {
  const auto where = vgpu::coordinates(at...);
  vgpu_tma_store(&map, shared, &where, vgpu::Reduction::kAdd);
}

VGPU_FROM_SM90
inline void tma_store_arrive() { vgpu_bulk_commit(); }
template <int pending, bool read = true>
VGPU_FROM_SM90
inline void tma_store_wait() {
  static_assert(pending >= 0, "cp.async.bulk.wait_group counts groups");
  vgpu_bulk_wait(pending, read);
}
VGPU_FROM_SM90
inline void prefetch_tma_descriptor(const CUtensorMap& map) { vgpu_tma_prefetch(&map); }

}  // namespace tl
