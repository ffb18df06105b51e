// Atomics on global and shared memory. Blocks run on several OS threads, so these are real. A
// vector's elements are changed one by one, each as one step: no more is promised on hardware.
#pragma once
#include "vgpu/packed.h"
#include "vgpu/runtime.h"

namespace vgpu {

// Replaces *address by change(*address) as one step; returns what it replaced. `order` counts like
// cuda::memory_order and __ATOMIC_RELAXED ...
template <class T, class Change>
VGPU_RAW inline T atomic_update(T* address, Change change, int order = __ATOMIC_RELAXED) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "atomics are 16 to 64 bits");
  if (order < __ATOMIC_RELAXED || order > __ATOMIC_SEQ_CST)
    vgpu_fail("an atomic with memory order %d, expected 0 (relaxed) to 5 (seq_cst)", order);
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

template <class T>
VGPU_RAW inline T atomic_load(const T* address, int order) {
  if (order != __ATOMIC_RELAXED && order != __ATOMIC_CONSUME && order != __ATOMIC_ACQUIRE &&
      order != __ATOMIC_SEQ_CST)
    vgpu_fail("an atomic load with memory order %d, expected relaxed, acquire or seq_cst", order);
  vgpu_check_atomic(address, sizeof(T), true, false, order);
  T value;
  __atomic_load(address, &value, __ATOMIC_SEQ_CST);
  return value;
}

template <class T>
using Same = std::common_type_t<T>;  // keeps an argument out of template deduction

// A half wins over another only by comparing greater, so NaN never does.
template <class T>
VGPU_LEAF inline T larger(T old, T value) {
  return value > old ? value : old;
}
template <class T>
VGPU_LEAF inline T smaller(T old, T value) {
  return value < old ? value : old;
}

}  // namespace vgpu

#define VGPU_ATOMIC(NAME, EXPRESSION)                                                       \
  template <class T>                                                                        \
  inline T NAME(T* address, vgpu::Same<T> value, int order = __ATOMIC_RELAXED) {            \
    return vgpu::atomic_update(                                                             \
        address, [value](T old) VGPU_LEAF -> T { return EXPRESSION; }, order);              \
  }
VGPU_ATOMIC(atomicAdd, T(old + value))
VGPU_ATOMIC(atomicSub, T(old - value))
VGPU_ATOMIC(atomicMax, vgpu::larger<T>(old, value))
VGPU_ATOMIC(atomicMin, vgpu::smaller<T>(old, value))
VGPU_ATOMIC(atomicAnd, T(old & value))
VGPU_ATOMIC(atomicOr, T(old | value))
VGPU_ATOMIC(atomicXor, T(old ^ value))
VGPU_ATOMIC(atomicExch, value)
VGPU_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
VGPU_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1))
#undef VGPU_ATOMIC

// Compares bits, so T is an integer in CUDA and may be anything here.
template <class T>
inline T atomicCAS(T* address, vgpu::Same<T> expected, vgpu::Same<T> value) {
  const T old = vgpu::atomic_update(address, [=](T old) VGPU_LEAF -> T {
    return std::memcmp(&old, &expected, sizeof(T)) == 0 ? value : old;
  });
  if (std::memcmp(&old, &expected, sizeof(T)) != 0) vgpu_yield();  // it may be spinning
  return old;
}

#define VGPU_TILELANG_ATOMIC(NAME, CUDA)                                                    \
  template <class T, class V>                                                               \
  inline void NAME(T* address, V value, int order = __ATOMIC_RELAXED) {                     \
    CUDA(address, T(value), order);                                                         \
  }                                                                                         \
  template <class T, class V>                                                               \
  inline T NAME##Ret(T* address, V value, int order = __ATOMIC_RELAXED) {                   \
    return CUDA(address, T(value), order);                                                  \
  }
VGPU_TILELANG_ATOMIC(AtomicAdd, atomicAdd)
VGPU_TILELANG_ATOMIC(AtomicMax, atomicMax)
VGPU_TILELANG_ATOMIC(AtomicMin, atomicMin)
#undef VGPU_TILELANG_ATOMIC

template <class T, class V>
inline void AtomicOr(T* address, V value, int order = __ATOMIC_RELAXED) {
  atomicOr(address, T(value), order);
}
template <class T>
inline T AtomicLoad(T* address, int order) {
  const T value = vgpu::atomic_load(address, order);
  vgpu_yield();  // it may be spinning
  return value;
}
template <class T, class V>
inline void AtomicStore(T* address, V value, int order) {
  atomicExch(address, T(value), order);
}

// --- vectors -----------------------------------------------------------------------------------

namespace vgpu {

// The elements of a vector as an argument: a vector of E's, its bits, or a pointer to that or to
// floats, which are rounded to E.
template <class E, int Count>
struct Elements {
  E element[Count];

  template <class V>
  explicit Elements(const V* from) {
    for (int i = 0; i < Count; ++i)
      if constexpr (std::is_same_v<V, float>) element[i] = E(from[i]);
      else element[i] = reinterpret_cast<const E*>(from)[i];
  }
  template <class V, class = std::enable_if_t<!std::is_pointer_v<V>>>
  explicit Elements(const V& from) {
    constexpr bool is_floats = std::is_same_v<V, float2> || std::is_same_v<V, float4>;
    static_assert(sizeof(V) == Count * (is_floats ? sizeof(float) : sizeof(E)),
                  "the value must have as many elements as the vector");
    using Source = std::conditional_t<is_floats, float, E>;
    for (int i = 0; i < Count; ++i) element[i] = E(reinterpret_cast<const Source*>(&from)[i]);
  }
};

// Adds `values` to the vector at `address`, which is aligned as one; returns what it replaced.
template <class Vector, class E, int Count>
inline Vector atomic_add(E* address, const Elements<E, Count>& values, int order) {
  if (reinterpret_cast<uintptr_t>(address) % (Count * sizeof(E)))
    vgpu_fail("a vector atomic of %zu bytes at the misaligned address %p", Count * sizeof(E),
              static_cast<void*>(address));
  E old[Count];
  for (int i = 0; i < Count; ++i) old[i] = atomicAdd(address + i, values.element[i], order);
  return bit_cast<Vector>(old);
}

}  // namespace vgpu

#define VGPU_VECTOR_ADD(NAME, E, COUNT, VECTOR)                                             \
  template <class V>                                                                        \
  inline VECTOR NAME##Ret(E* address, V values, int order = __ATOMIC_RELAXED) {             \
    return vgpu::atomic_add<VECTOR>(address, vgpu::Elements<E, COUNT>(values), order);      \
  }                                                                                         \
  template <class V>                                                                        \
  inline void NAME(E* address, V values, int order = __ATOMIC_RELAXED) {                    \
    NAME##Ret(address, values, order);                                                      \
  }
VGPU_VECTOR_ADD(AtomicAddx2, half_t, 2, half2)
VGPU_VECTOR_ADD(AtomicAddx2, bfloat16_t, 2, __nv_bfloat162)
VGPU_VECTOR_ADD(AtomicAddx2, float, 2, float2)
VGPU_VECTOR_ADD(AtomicAddx4, half_t, 4, uint2)
VGPU_VECTOR_ADD(AtomicAddx4, bfloat16_t, 4, uint2)
VGPU_VECTOR_ADD(AtomicAddx4, float, 4, float4)
#undef VGPU_VECTOR_ADD

#define VGPU_CUDA_VECTOR_ADD(VECTOR, E, COUNT)                                              \
  inline VECTOR atomicAdd(VECTOR* address, VECTOR values) {                                 \
    return vgpu::atomic_add<VECTOR>(reinterpret_cast<E*>(address),                          \
                                    vgpu::Elements<E, COUNT>(values), __ATOMIC_RELAXED);    \
  }
VGPU_CUDA_VECTOR_ADD(half2, half_t, 2)
VGPU_CUDA_VECTOR_ADD(__nv_bfloat162, bfloat16_t, 2)
VGPU_CUDA_VECTOR_ADD(float2, float, 2)
VGPU_CUDA_VECTOR_ADD(float4, float, 4)
#undef VGPU_CUDA_VECTOR_ADD
