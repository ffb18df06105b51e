// Block-wide and named barriers.
#pragma once
#include "vgpu/runtime.h"

inline int __syncthreads_count(int predicate) { return vgpu_barrier_count(predicate != 0); }
inline int __syncthreads_or(int predicate) { return vgpu_barrier_count(predicate != 0) != 0; }
inline int __syncthreads_and(int predicate) { return vgpu_barrier_count(predicate == 0) == 0; }
inline void __syncthreads() { vgpu::barrier(0, 0); }

inline void __threadfence() { vgpu_fence(); }
inline void __threadfence_block() { vgpu_fence(); }
inline void __threadfence_system() { vgpu_fence(); }
inline void __nanosleep(unsigned) { vgpu_yield(); }

namespace tl {

inline void __sync_thread_partial(int barrier = 0, int threads = 0) {
  vgpu::barrier(barrier, threads);
}
inline void __named_barrier_arrive(int barrier, int threads) {
  vgpu_barrier_arrive(barrier, threads);
}

struct SyncThreadsBarrier {
  template <int phase = 0>
  static void sync() {
    __syncthreads();
  }
};

template <int threads>
struct NamedBarrier {
  template <int phase = 1>
  static void sync() {
    vgpu::barrier(phase, threads);
  }
};

}  // namespace tl
