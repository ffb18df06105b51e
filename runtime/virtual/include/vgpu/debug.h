// Device-side assertions and prints.
#pragma once
#include <cassert>
#include <cstdio>

#include "vgpu/fp8.h"
#include "vgpu/runtime.h"

inline void device_assert(bool condition) {
  if (!condition) vgpu_fail("device assertion failed");
}
inline void device_assert_with_msg(bool condition, const char* message) {
  if (!condition) vgpu_fail("device assertion failed: %s", message);
}
[[noreturn]] inline void __trap() { vgpu_fail("__trap()"); }
[[noreturn]] inline void __brkpt() { vgpu_fail("__brkpt()"); }

#undef assert
#define assert(condition)                                                                   \
  static_cast<void>((condition) || (vgpu_fail("device assertion failed: %s", #condition), false))
#define printf(...) vgpu_print(__VA_ARGS__)

// Time is not deterministic, so a kernel cannot read it here.
namespace vgpu {
long long clock_is_not_modelled() = delete;
}  // namespace vgpu
#define clock() vgpu::clock_is_not_modelled()
#define clock64() vgpu::clock_is_not_modelled()
#define globaltimer() vgpu::clock_is_not_modelled()

namespace vgpu {

// How TileLang prints a value: the name of its type and a format for what it is converted to.
template <class T>
struct Printed;
#define VGPU_PRINTED(T, NAME, FORMAT, AS)                                                   \
  template <>                                                                               \
  struct Printed<T> {                                                                       \
    static constexpr const char *name = NAME, *format = FORMAT;                             \
    using As = AS;                                                                          \
  };
VGPU_PRINTED(char, "char", "%d", int)
VGPU_PRINTED(signed char, "signed char", "%d", int)
VGPU_PRINTED(unsigned char, "unsigned char", "%u", unsigned)
VGPU_PRINTED(short, "short", "%d", int)
VGPU_PRINTED(unsigned short, "unsigned short", "%u", unsigned)
VGPU_PRINTED(int, "int", "%d", int)
VGPU_PRINTED(unsigned, "uint", "%u", unsigned)
VGPU_PRINTED(long, "long", "%ld", long)
VGPU_PRINTED(unsigned long, "ulong", "%lu", unsigned long)
VGPU_PRINTED(long long, "long long", "%lld", long long)
VGPU_PRINTED(float, "float", "%f", double)
VGPU_PRINTED(double, "double", "%lf", double)
VGPU_PRINTED(half_t, "half_t", "%f", float)
VGPU_PRINTED(bfloat16_t, "bfloat16_t", "%f", float)
VGPU_PRINTED(fp8_e4_t, "fp8_e4_t", "%f", float)
VGPU_PRINTED(fp8_e5_t, "fp8_e5_t", "%f", float)
#undef VGPU_PRINTED

constexpr size_t kPrintedValue = 400;  // the largest double takes 317 characters

// "dtype=float value=1.000000"
template <class T>
VGPU_RAW inline void print_value(char (&words)[kPrintedValue], T value, const char* name = nullptr) {
  if constexpr (std::is_pointer_v<T>) {
    std::snprintf(words, sizeof words, "dtype=pointer value=%p", static_cast<const void*>(value));
  } else if constexpr (std::is_same_v<T, bool>) {
    std::snprintf(words, sizeof words, "dtype=bool value=%s", value ? "true" : "false");
  } else {
    using How = Printed<T>;
    const int used = std::snprintf(words, sizeof words, "dtype=%s value=", name ? name : How::name);
    std::snprintf(words + used, sizeof words - used, How::format,
                  static_cast<typename How::As>(value));
  }
}

// The line all of TileLang's prints share, `rest` after the place.
VGPU_RAW inline void print_line(const char* message, const char* separator, const char* rest) {
  const dim3 thread = vgpu_self().id;
  vgpu_print("msg='%s' BlockIdx=(%u, %u, %u), ThreadIdx=(%u, %u, %u)%s%s\n", message,
             unsigned(blockIdx.x), unsigned(blockIdx.y), unsigned(blockIdx.z), thread.x, thread.y,
             thread.z, separator, rest);
}

}  // namespace vgpu

inline void debug_print_msg(const char* message) { vgpu::print_line(message, "", ""); }
template <class T>
VGPU_RAW inline void debug_print_var(const char* message, T value) {
  char words[vgpu::kPrintedValue];
  vgpu::print_value(words, value);
  vgpu::print_line(message, ": ", words);
}
template <class T>
VGPU_RAW inline void debug_print_buffer_value(const char* message, const char* buffer, int index,
                                              T value) {
  char words[vgpu::kPrintedValue], line[2 * vgpu::kPrintedValue];
  vgpu::print_value(words, value, std::is_same_v<T, uint16_t> ? "uint16_t" : nullptr);
  std::snprintf(line, sizeof line, "buffer=%s, index=%d, %s", buffer, index, words);
  vgpu::print_line(message, ": ", line);
}
