// Device-side assertions and prints.
#pragma once
#include <cstdio>

#include "vgpu/numbers.h"
#include "vgpu/runtime.h"

inline void device_assert(bool condition) {
  if (!condition) vgpu_fail("device assertion failed");
}
inline void device_assert_with_msg(bool condition, const char* message) {
  if (!condition) vgpu_fail("device assertion failed: %s", message);
}

namespace vgpu {
inline void print_place() {
  const dim3 thread = vgpu_self().id;
  std::printf("block (%u, %u, %u) thread (%u, %u, %u)", unsigned(blockIdx.x), unsigned(blockIdx.y),
              unsigned(blockIdx.z), thread.x, thread.y, thread.z);
}
}  // namespace vgpu

inline void debug_print_msg(const char* message) {
  vgpu::print_place();
  std::printf(": %s\n", message);
}
template <class T>
inline void debug_print_var(const char* message, T value) {
  vgpu::print_place();
  if constexpr (std::is_pointer_v<T>) {
    std::printf(": %s = %p\n", message, static_cast<const void*>(value));
  } else {
    std::printf(": %s = %.9g\n", message, static_cast<double>(value));
  }
}
template <class T>
inline void debug_print_buffer_value(const char* message, const char* buffer, int index, T value) {
  vgpu::print_place();
  std::printf(": %s %s[%d] = %.9g\n", message, buffer, index, static_cast<double>(value));
}
