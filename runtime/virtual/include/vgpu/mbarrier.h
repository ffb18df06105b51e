// mbarriers: arrival counts and transaction bytes in shared memory, waited for by phase parity.
//
// The 64 bits of one are ours (PTX leaves them opaque). Waiting suspends the thread until the phase
// completes; a poll that fails lets everyone else run first, so a loop around it ends.
#pragma once
#include "vgpu/runtime.h"

VGPU_API void vgpu_mbarrier_init(uint64_t* barrier, uint32_t count);
// Adds `bytes` to what the current phase waits for.
VGPU_API void vgpu_mbarrier_expect_tx(uint64_t* barrier, uint32_t bytes);
// One arrival, after expecting `bytes` more.
VGPU_API void vgpu_mbarrier_arrive(uint64_t* barrier, uint32_t bytes);
// `bytes` of the current phase have come: what asynchronous copies do when they are performed.
VGPU_API void vgpu_mbarrier_complete_tx(uint64_t* barrier, uint32_t bytes);
// Waits for the end of the phase of this parity.
VGPU_API void vgpu_mbarrier_wait(uint64_t* barrier, uint32_t parity);
// The same, but may give up: false.
VGPU_API bool vgpu_mbarrier_poll(uint64_t* barrier, uint32_t parity);
VGPU_API uint32_t vgpu_mbarrier_parity(const uint64_t* barrier);
// One arrival when the calling thread's cp.async up to here have been performed. `counted`: the
// phase's expected count already includes it (.noinc).
VGPU_API void vgpu_mbarrier_arrive_copies(uint64_t* barrier, bool counted);
// Makes mbarriers the thread has initialised visible to other blocks of the cluster.
VGPU_API void vgpu_fence_mbarrier_init();
// Makes earlier writes of the thread visible to asynchronous copies.
VGPU_API void vgpu_fence_proxy_async();

namespace tl {

inline void mbarrier_init(uint64_t& barrier, uint32_t count) {
  vgpu_mbarrier_init(&barrier, count);
}
VGPU_FROM_SM90
inline void mbarrier_expect_tx(uint64_t& barrier, uint32_t bytes) {
  vgpu_mbarrier_expect_tx(&barrier, bytes);
}
inline void mbarrier_arrive(uint64_t& barrier) { vgpu_mbarrier_arrive(&barrier, 0); }
VGPU_FROM_SM90
inline void mbarrier_arrive_expect_tx(uint64_t& barrier, uint32_t bytes) {
  vgpu_mbarrier_arrive(&barrier, bytes);
}
VGPU_FROM_SM90
inline void mbarrier_wait(uint64_t& barrier, int parity) {
  vgpu_mbarrier_wait(&barrier, static_cast<uint32_t>(parity));
}
VGPU_FROM_SM90
inline uint32_t mbarrier_try_wait(uint64_t& barrier, int parity) {
  return vgpu_mbarrier_poll(&barrier, static_cast<uint32_t>(parity));
}
inline void mbarrier_test_wait(uint64_t& barrier, int parity) {
  vgpu_mbarrier_wait(&barrier, static_cast<uint32_t>(parity));
}
inline bool mbarrier_test_wait(uint64_t& barrier, int parity, uint32_t predicate) {
  if (predicate != 1) vgpu_fail("mbarrier.test_wait with a false predicate leaves its result undefined");
  return vgpu_mbarrier_poll(&barrier, static_cast<uint32_t>(parity));
}
VGPU_FROM_SM90
inline void syncthreads_partial(uint64_t& barrier) {
  const uint32_t parity = vgpu_mbarrier_parity(&barrier);
  vgpu_mbarrier_arrive(&barrier, 0);
  vgpu_mbarrier_wait(&barrier, parity);
}

}  // namespace tl

namespace vgpu {

// Helpers take an mbarrier as a lvalue of any 8-byte type or as a pointer to one.
template <class T>
inline uint64_t* mbarrier_of(T& barrier) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<uint64_t*>(barrier);
  } else {
    static_assert(sizeof(T) == 8, "an mbarrier has 8 bytes");
    return const_cast<uint64_t*>(reinterpret_cast<const uint64_t*>(&barrier));
  }
}

}  // namespace vgpu

namespace tl {

template <class T = uint64_t>
inline void mbarrier_cp_async_arrive(T& barrier) {
  vgpu_mbarrier_arrive_copies(vgpu::mbarrier_of(barrier), false);
}
template <class T = uint64_t>
inline void mbarrier_cp_async_arrive_noinc(T& barrier) {
  vgpu_mbarrier_arrive_copies(vgpu::mbarrier_of(barrier), true);
}
VGPU_FROM_SM90
inline void fence_barrier_init() { vgpu_fence_mbarrier_init(); }
VGPU_FROM_SM90
inline void fence_proxy_async() { vgpu_fence_proxy_async(); }

}  // namespace tl

struct alignas(8) Barrier {
  Barrier() = delete;

  void init(uint32_t count) const { tl::mbarrier_init(storage(), count); }
  VGPU_FROM_SM90
  void wait(uint32_t parity) const { vgpu_mbarrier_wait(&storage(), parity); }
  VGPU_FROM_SM90
  bool try_wait(uint32_t parity) const { return vgpu_mbarrier_poll(&storage(), parity); }
  bool test_wait(uint32_t parity, uint32_t predicate = 1) const {
    return tl::mbarrier_test_wait(storage(), static_cast<int>(parity), predicate);
  }
  void arrive() const { tl::mbarrier_arrive(storage()); }
  VGPU_FROM_SM90
  void arrive(uint32_t rank, uint32_t predicate = 1) const;  // of another block; vgpu/cluster.h
  VGPU_FROM_SM90
  void arrive_and_expect_tx(uint32_t bytes, uint32_t rank, uint32_t predicate = 1) const;
  VGPU_FROM_SM90
  void expect_transaction(uint32_t bytes) const { vgpu_mbarrier_expect_tx(&storage(), bytes); }
  VGPU_FROM_SM90
  void arrive_and_expect_tx(uint32_t bytes) const {
    vgpu_mbarrier_arrive(&storage(), bytes);
  }

 private:
  uint64_t& storage() const { return const_cast<uint64_t&>(bits_); }
  uint64_t bits_;
};
