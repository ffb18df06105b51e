// Explicit accesses to shared memory and its addresses.
#pragma once
#include "vgpu/runtime.h"

inline size_t __cvta_generic_to_shared(const void* p) { return vgpu_shared_address(p); }
inline uint32_t smem_ptr_to_uint(const void* p) { return vgpu_shared_address(p); }
inline unsigned cast_smem_ptr_to_int(const void* p) { return vgpu_shared_address(p); }

namespace vgpu {

template <class T>
VGPU_RAW inline T load_shared(const void* address) {
  vgpu_check_shared(address, sizeof(T));
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}
template <class T>
VGPU_RAW inline void store_shared(void* address, const T& value) {
  vgpu_check_shared(address, sizeof(T), true);
  std::memcpy(address, &value, sizeof(T));
}

}  // namespace vgpu

namespace tl {

#define VGPU_SHARED(BITS, T)                                                                \
  inline T load_shared_##BITS(const void* p) { return vgpu::load_shared<T>(p); }            \
  inline void store_shared_##BITS(void* p, T v) { vgpu::store_shared(p, v); }
VGPU_SHARED(32, uint32_t)
VGPU_SHARED(64, uint2)
VGPU_SHARED(128, uint4)
#undef VGPU_SHARED

// st.bulk: zeroes shared memory.
template <uint64_t bytes, uint64_t value>
VGPU_FROM_SM100
VGPU_RAW inline void st_bulk_shared(void* address) {
  static_assert(value == 0 && bytes % 8 == 0, "st.bulk writes zeros, 8 bytes at a time");
  for (uint64_t i = 0; i < bytes; i += 8)  // 8-byte aligned, however long
    vgpu_check_shared(static_cast<char*>(address) + i, 8, true);
  std::memset(address, 0, bytes);
}

}  // namespace tl
