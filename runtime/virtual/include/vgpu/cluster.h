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

namespace vgpu {

inline void cluster_sync() {
  vgpu_cluster_arrive(false);
  vgpu_cluster_wait();
}
inline dim3 cluster_shape() {
  return {vgpu_cluster_dim(0), vgpu_cluster_dim(1), vgpu_cluster_dim(2)};
}
// An arrival at the mbarrier in the same place of another block, after expecting `bytes` more.
inline void arrive_remote(uint64_t& barrier, uint32_t rank, uint32_t bytes) {
  vgpu_mbarrier_arrive(static_cast<uint64_t*>(vgpu_map_rank(&barrier, rank)), bytes);
}

}  // namespace vgpu

namespace tl {

VGPU_FROM_SM90
inline void cluster_arrive() { vgpu_cluster_arrive(false); }
VGPU_FROM_SM90
inline void cluster_arrive_relaxed() { vgpu_cluster_arrive(true); }
VGPU_FROM_SM90
inline void cluster_wait() { vgpu_cluster_wait(); }
VGPU_FROM_SM90
inline void cluster_sync() { vgpu::cluster_sync(); }

VGPU_FROM_SM90
inline dim3 cluster_shape() { return vgpu::cluster_shape(); }
VGPU_FROM_SM90
inline dim3 cluster_grid_dims() {
  const dim3 shape = vgpu::cluster_shape();
  return {gridDim.x / shape.x, gridDim.y / shape.y, gridDim.z / shape.z};
}
VGPU_FROM_SM90
inline dim3 cluster_id_in_grid() {
  const dim3 shape = vgpu::cluster_shape();
  return {blockIdx.x / shape.x, blockIdx.y / shape.y, blockIdx.z / shape.z};
}
VGPU_FROM_SM90
inline dim3 block_id_in_cluster() {
  const dim3 shape = vgpu::cluster_shape();
  return {blockIdx.x % shape.x, blockIdx.y % shape.y, blockIdx.z % shape.z};
}
VGPU_FROM_SM90
inline int block_rank_in_cluster() { return static_cast<int>(vgpu_cluster_rank()); }

VGPU_FROM_SM90
inline void mbarrier_arrive(uint64_t& barrier, int rank, uint32_t predicate) {
  if (predicate) vgpu::arrive_remote(barrier, static_cast<uint32_t>(rank), 0);
}
VGPU_FROM_SM90
inline void mbarrier_arrive_expect_tx(uint64_t& barrier, uint32_t bytes, uint32_t rank,
                                      uint32_t predicate) {
  if (predicate == 1) vgpu::arrive_remote(barrier, rank, bytes);
}

VGPU_FROM_SM90
inline void tma_load_multicast(void* shared, const void* global, uint64_t& barrier, uint32_t bytes,
                               uint16_t mask) {
  vgpu_bulk_load_multicast(shared, global, bytes, &barrier, mask);
}
template <CacheHintSm90 hint = CacheHintSm90::EVICT_NORMAL, class T = uint64_t, class... Ts>
VGPU_FROM_SM90
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
VGPU_ONLY_SM100A
inline void tma_load_2sm(const CUtensorMap& map, T& barrier, const void* shared, Ts... at) {
  const auto where = vgpu::coordinates(at...);
  void* leader = vgpu_map_rank(vgpu::mbarrier_of(barrier), vgpu_cluster_rank() & ~1u);
  vgpu_tma_load(&map, const_cast<void*>(shared), static_cast<uint64_t*>(leader), &where);
}

template <class T = uint64_t>
VGPU_FROM_SM90
inline void tma_store_cluster(void* target, void* source, int rank, uint32_t bytes, T& barrier) {
  auto* theirs = static_cast<uint64_t*>(vgpu_map_rank(vgpu::mbarrier_of(barrier), uint32_t(rank)));
  vgpu_mbarrier_arrive(theirs, bytes);
  vgpu_fence_proxy_async();
  vgpu_bulk_send(vgpu_map_rank(target, uint32_t(rank)), source, bytes, theirs);
}

}  // namespace tl

VGPU_FROM_SM90
inline void Barrier::arrive(uint32_t rank, uint32_t predicate) const {
  if (predicate) vgpu::arrive_remote(storage(), rank, 0);
}
VGPU_FROM_SM90
inline void Barrier::arrive_and_expect_tx(uint32_t bytes, uint32_t rank,
                                          uint32_t predicate) const {
  if (predicate == 1) vgpu::arrive_remote(storage(), rank, bytes);
}

namespace cooperative_groups {

struct grid_group {
  void sync() const { vgpu_grid_sync(); }
};
inline grid_group this_grid() { return {}; }

struct cluster_group {
  VGPU_FROM_SM90
  void sync() const { vgpu::cluster_sync(); }
  unsigned block_rank() const { return vgpu_cluster_rank(); }
  template <class T>
  T* map_shared_rank(T* shared, unsigned rank) const {
    return static_cast<T*>(vgpu_map_rank(shared, rank));
  }
};
VGPU_FROM_SM90
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
