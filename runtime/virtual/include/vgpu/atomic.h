// Atomics on global and shared memory. Blocks run on several OS threads, so these are real.
#pragma once
#include "vgpu/numbers.h"
#include "vgpu/runtime.h"

namespace vgpu {

// Replaces *address by change(*address) as one step; returns what it replaced. `order` counts like
// cuda::memory_order and __ATOMIC_RELAXED ...
template <class T, class Change>
VGPU_RAW inline T atomic_update(T* address, Change change, int order = __ATOMIC_RELAXED) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "atomics are 16 to 64 bits");
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  vgpu_check_atomic(address, sizeof(T), true, true, order);
  Bits* cell = reinterpret_cast<Bits*>(address);
  Bits old = __atomic_load_n(cell, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(cell, &old, bit_cast<Bits>(change(bit_cast<T>(old))), false,
                                      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
  }
  return bit_cast<T>(old);
}

}  // namespace vgpu

#define VGPU_ATOMIC(CUDA, TILELANG, EXPRESSION)                                             \
  template <class T>                                                                        \
  inline T CUDA(T* address, T value, int order = __ATOMIC_RELAXED) {                        \
    return vgpu::atomic_update(                                                             \
        address, [value](T old) VGPU_LEAF -> T { return EXPRESSION; }, order);              \
  }                                                                                         \
  template <class T, class V>                                                               \
  inline void TILELANG(T* address, V value, int order = 0) {                                \
    CUDA(address, T(value), order);                                                         \
  }                                                                                         \
  template <class T, class V>                                                               \
  inline T TILELANG##Ret(T* address, V value, int order = 0) {                              \
    return CUDA(address, T(value), order);                                                  \
  }
VGPU_ATOMIC(atomicAdd, AtomicAdd, T(old + value))
VGPU_ATOMIC(atomicMax, AtomicMax, old < value ? value : old)
VGPU_ATOMIC(atomicMin, AtomicMin, value < old ? value : old)
#undef VGPU_ATOMIC

template <class T>
inline T atomicExch(T* address, T value) {
  return vgpu::atomic_update(address, [value](T) VGPU_LEAF -> T { return value; });
}
template <class T>
inline T atomicCAS(T* address, T expected, T value) {
  return vgpu::atomic_update(
      address, [=](T old) VGPU_LEAF -> T { return old == expected ? value : old; });
}
