// cp.async and the explicit global loads and stores.
#pragma once
#include "vgpu/runtime.h"

namespace tl {

template <int N>
inline void cp_async_gs_conditional(const void* target, const void* source, bool condition) {
  static_assert(N == 4 || N == 8 || N == 16, "cp.async copies 4, 8 or 16 bytes");
  vgpu_copy(const_cast<void*>(target), source, N, condition ? N : 0);
}
template <int N>
inline void cp_async_gs(const void* target, const void* source) {
  cp_async_gs_conditional<N>(target, source, true);
}
inline void cp_async_commit() { vgpu_copy_commit(); }
template <int N>
inline void cp_async_wait() {
  static_assert(N >= 0, "cp.async.wait_group counts groups");
  vgpu_copy_wait(N == 0 ? -1 : N);
}

}  // namespace tl

namespace vgpu {

template <class T>
VGPU_RAW inline T load_global(const void* address, bool predicate) {
  T value{};
  if (predicate) {
    vgpu_check_global(address, sizeof(T), false);
    std::memcpy(static_cast<void*>(&value), address, sizeof(T));
  }
  return value;
}

template <class T>
VGPU_RAW inline void store_global(void* address, const T& value, bool predicate) {
  if (!predicate) return;
  vgpu_check_global(address, sizeof(T), true);
  std::memcpy(address, static_cast<const void*>(&value), sizeof(T));
}

}  // namespace vgpu

namespace tl {

#define VGPU_GLOBAL(BITS, T)                                                                \
  inline T load_global_##BITS(const void* p) { return vgpu::load_global<T>(p, true); }      \
  inline T load_global_##BITS##_conditional(const void* p, bool c) {                        \
    return vgpu::load_global<T>(p, c);                                                      \
  }                                                                                         \
  inline void store_global_##BITS(void* p, T v) { vgpu::store_global(p, v, true); }         \
  inline void store_global_##BITS##_conditional(void* p, T v, bool c) {                     \
    vgpu::store_global(p, v, c);                                                            \
  }
VGPU_GLOBAL(32, uint32_t)
VGPU_GLOBAL(64, uint2)
VGPU_GLOBAL(128, uint4)
#undef VGPU_GLOBAL

template <class T>
inline T load_global_256(const T* p) {
  static_assert(sizeof(T) == 32, "a 256-bit load needs a 32-byte type");
  return vgpu::load_global<T>(p, true);
}
template <class T>
inline T load_global_256_conditional(const T* p, bool c) {
  static_assert(sizeof(T) == 32, "a 256-bit load needs a 32-byte type");
  return vgpu::load_global<T>(p, c);
}
template <class T>
inline void store_global_256(T* p, const std::common_type_t<T>& v) {
  static_assert(sizeof(T) == 32, "a 256-bit store needs a 32-byte type");
  vgpu::store_global(p, v, true);
}
template <class T>
inline void store_global_256_conditional(T* p, const std::common_type_t<T>& v, bool c) {
  static_assert(sizeof(T) == 32, "a 256-bit store needs a 32-byte type");
  vgpu::store_global(p, v, c);
}

}  // namespace tl
