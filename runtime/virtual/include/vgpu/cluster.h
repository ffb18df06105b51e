// Clusters: ranks, barriers, and each other's shared memory.
#pragma once
#include "vgpu/tma.h"

VGPU_API unsigned vgpu_cluster_rank();
VGPU_API unsigned vgpu_cluster_dim(int axis);
VGPU_API void vgpu_cluster_arrive(bool relaxed);
VGPU_API void vgpu_cluster_wait();
VGPU_API void vgpu_grid_sync();
// The same place in the shared memory of another block of the cluster.
VGPU_API void* vgpu_map_rank(const void* shared, uint32_t rank);
// Copies into the shared memory of the blocks in `mask`, each of which signals its own barrier.
VGPU_API void vgpu_tma_load_multicast(const CUtensorMap* map, void* shared, uint64_t* barrier,
                                      const vgpu::TmaCoordinates* where, uint16_t mask);
VGPU_API void vgpu_bulk_load_multicast(void* shared, const void* global, uint32_t bytes,
                                       uint64_t* barrier, uint16_t mask);
// From the block's shared memory to another's; `barrier` is that one's.
VGPU_API void vgpu_bulk_send(void* target, const void* source, uint32_t bytes, uint64_t* barrier);

namespace tl {

inline void cluster_arrive() { vgpu_cluster_arrive(false); }
inline void cluster_arrive_relaxed() { vgpu_cluster_arrive(true); }
inline void cluster_wait() { vgpu_cluster_wait(); }
inline void cluster_sync() {
  vgpu_cluster_arrive(false);
  vgpu_cluster_wait();
}

inline dim3 cluster_shape() {
  return {vgpu_cluster_dim(0), vgpu_cluster_dim(1), vgpu_cluster_dim(2)};
}
inline dim3 cluster_grid_dims() {
  const dim3 shape = cluster_shape();
  return {gridDim.x / shape.x, gridDim.y / shape.y, gridDim.z / shape.z};
}
inline dim3 cluster_id_in_grid() {
  const dim3 shape = cluster_shape();
  return {blockIdx.x / shape.x, blockIdx.y / shape.y, blockIdx.z / shape.z};
}
inline dim3 block_id_in_cluster() {
  const dim3 shape = cluster_shape();
  return {blockIdx.x % shape.x, blockIdx.y % shape.y, blockIdx.z % shape.z};
}
inline int block_rank_in_cluster() { return static_cast<int>(vgpu_cluster_rank()); }

inline void mbarrier_arrive(uint64_t& barrier, int rank, uint32_t predicate) {
  if (predicate)
    vgpu_mbarrier_arrive(static_cast<uint64_t*>(vgpu_map_rank(&barrier, uint32_t(rank))), 0);
}
inline void mbarrier_arrive_expect_tx(uint64_t& barrier, uint32_t bytes, uint32_t rank,
                                      uint32_t predicate) {
  if (predicate == 1)
    vgpu_mbarrier_arrive(static_cast<uint64_t*>(vgpu_map_rank(&barrier, rank)), bytes);
}

inline void tma_load_multicast(void* shared, const void* global, uint64_t& barrier, uint32_t bytes,
                               uint16_t mask) {
  vgpu_bulk_load_multicast(shared, global, bytes, &barrier, mask);
}
template <CacheHintSm90 hint = CacheHintSm90::EVICT_NORMAL, class T = uint64_t, class... Ts>
inline void tma_load_multicast(const CUtensorMap& map, T& barrier, const void* shared,
                               uint16_t mask, Ts... at) {
  const auto where = vgpu::coordinates(at...);
  vgpu_tma_load_multicast(&map, const_cast<void*>(shared), vgpu::mbarrier_of(barrier), &where,
                          mask);
}

enum class CacheHintSm100 : uint64_t {
  EVICT_NORMAL = 0x1000000000000000,
  EVICT_FIRST = 0x12F0000000000000,
  EVICT_LAST = 0x14F0000000000000,
};
// Both blocks of a pair load; the even one's barrier counts the bytes.
template <CacheHintSm100 hint = CacheHintSm100::EVICT_NORMAL, class T = uint64_t, class... Ts>
inline void tma_load_2sm(const CUtensorMap& map, T& barrier, const void* shared, Ts... at) {
  const auto where = vgpu::coordinates(at...);
  void* leader = vgpu_map_rank(vgpu::mbarrier_of(barrier), vgpu_cluster_rank() & ~1u);
  vgpu_tma_load(&map, const_cast<void*>(shared), static_cast<uint64_t*>(leader), &where);
}

template <class T = uint64_t>
inline void tma_store_cluster(void* target, void* source, int rank, uint32_t bytes, T& barrier) {
  auto* theirs = static_cast<uint64_t*>(vgpu_map_rank(vgpu::mbarrier_of(barrier), uint32_t(rank)));
  vgpu_mbarrier_arrive(theirs, bytes);
  vgpu_fence_proxy_async();
  vgpu_bulk_send(vgpu_map_rank(target, uint32_t(rank)), source, bytes, theirs);
}

}  // namespace tl

inline void Barrier::arrive(uint32_t rank, uint32_t predicate) const {
  tl::mbarrier_arrive(storage(), static_cast<int>(rank), predicate);
}
inline void Barrier::arrive_and_expect_tx(uint32_t bytes, uint32_t rank,
                                          uint32_t predicate) const {
  tl::mbarrier_arrive_expect_tx(storage(), bytes, rank, predicate);
}

namespace cooperative_groups {

struct grid_group {
  void sync() const { vgpu_grid_sync(); }
};
inline grid_group this_grid() { return {}; }

struct cluster_group {
  void sync() const { tl::cluster_sync(); }
  unsigned block_rank() const { return vgpu_cluster_rank(); }
  template <class T>
  T* map_shared_rank(T* shared, unsigned rank) const {
    return static_cast<T*>(vgpu_map_rank(shared, rank));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
