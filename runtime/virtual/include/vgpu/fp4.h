// FP4 (e2m1) and FP6: numbers, packed vectors and the conversions generated code calls.
#pragma once
#include "vgpu/fp8.h"
#include "vgpu/runtime.h"

using __nv_fp4_storage_t = unsigned char;
using __nv_fp4x2_storage_t = unsigned char;
using __nv_fp4x4_storage_t = unsigned short;
using __nv_fp6_storage_t = unsigned char;
enum __nv_fp4_interpretation_t { __NV_E2M1 };
enum __nv_fp6_interpretation_t { __NV_E2M3, __NV_E3M2 };

// A number in the low bits of a byte. Conversion to it saturates and has no NaN.
#define VGPU_SMALL_FLOAT(NAME, FORMAT)                                                      \
  struct NAME {                                                                             \
    unsigned char __x;                                                                      \
    NAME() = default;                                                                       \
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>                   \
    explicit NAME(T v)                                                                      \
        : __x(static_cast<unsigned char>(                                                   \
              vgpu::FORMAT::encode(vgpu::round_to_odd(static_cast<double>(v))))) {}         \
    explicit NAME(__half v) : NAME(float(v)) {}                                             \
    explicit NAME(__nv_bfloat16 v) : NAME(float(v)) {}                                      \
    explicit operator float() const {                                                       \
      return vgpu::FORMAT::decode(__x & (2 * vgpu::FORMAT::kSign - 1));                     \
    }                                                                                       \
    explicit operator double() const { return float(*this); }                               \
    explicit operator __half() const { return __half(float(*this)); }                       \
    explicit operator __nv_bfloat16() const { return __nv_bfloat16(float(*this)); }         \
  };
VGPU_SMALL_FLOAT(__nv_fp4_e2m1, E2M1)
VGPU_SMALL_FLOAT(__nv_fp6_e2m3, E2M3)
VGPU_SMALL_FLOAT(__nv_fp6_e3m2, E3M2)
#undef VGPU_SMALL_FLOAT

// TileLang's fp4 scalar: a byte constructs it as a code, a float as a value.
struct fp4_e2_t {
  __nv_fp4_storage_t __x;

  fp4_e2_t() = default;
  fp4_e2_t(__nv_fp4_e2m1 v) : __x(v.__x) {}
  fp4_e2_t(__nv_fp4_storage_t code) : __x(code) {}
  explicit fp4_e2_t(float v) : __x(__nv_fp4_e2m1(v).__x) {}
  operator float() const { return vgpu::E2M1::decode(__x & 0xf); }
  operator half_t() const { return half_t(float(*this)); }
};

// Two numbers in a byte, the first in the low half.
struct fp4_e2_2_t {
  __nv_fp4x2_storage_t __x;

  fp4_e2_2_t() = default;
  fp4_e2_2_t(__nv_fp4x2_storage_t code) : __x(code) {}
  fp4_e2_t x() const { return fp4_e2_t(__nv_fp4_storage_t(__x & 0xf)); }
  fp4_e2_t y() const { return fp4_e2_t(__nv_fp4_storage_t(__x >> 4)); }
  void set_x(fp4_e2_t v) { __x = static_cast<unsigned char>((__x & 0xf0) | (v.__x & 0xf)); }
  void set_y(fp4_e2_t v) { __x = static_cast<unsigned char>((__x & 0xf) | v.__x << 4); }
};
struct alignas(2) fp4_e2_4_t { fp4_e2_2_t x, y; };
struct alignas(4) fp4_e2_8_t { fp4_e2_4_t x, y; };
struct alignas(8) fp4_e2_16_t { fp4_e2_8_t x, y; };
struct alignas(16) fp4_e2_32_t { fp4_e2_16_t x, y; };
struct alignas(32) fp4_e2_64_t { fp4_e2_32_t x, y; };
// A storage tag of tcgen05's unpacked layout; it has no arithmetic.
struct float4_e2m1_unpacked_t { uint8_t __x; };

namespace tl {

template <class V, class... Ts>
inline V make_fp4_vec(Ts... lanes) {
  static_assert(sizeof...(lanes) == 2 * sizeof(V), "two fp4 lanes fill a byte of the vector");
  const fp4_e2_t numbers[] = {lanes...};
  V vector;
  auto* bytes = reinterpret_cast<fp4_e2_2_t*>(&vector);
  for (size_t i = 0; i < sizeof...(lanes); i += 2) {
    bytes[i / 2] = fp4_e2_2_t(numbers[i].__x & 0xf);
    bytes[i / 2].set_y(numbers[i + 1]);
  }
  return vector;
}

}  // namespace tl

inline fp4_e2_t tl_fp4_packed_load(fp4_e2_2_t* packed, int i) {
  return i & 1 ? packed[i >> 1].y() : packed[i >> 1].x();
}
inline void tl_fp4_packed_store(fp4_e2_2_t* packed, int i, fp4_e2_t v) {
  if (i & 1) packed[i >> 1].set_y(v);
  else packed[i >> 1].set_x(v);
}

// --- conversions -------------------------------------------------------------------------------

namespace vgpu {

inline float fp4_to_float(unsigned code) { return E2M1::decode(code & 0xf); }
// Every e2m1 number is an e4m3 number.
inline uint8_t fp4_to_e4m3(unsigned code) { return encode_e4m3_byte(fp4_to_float(code)); }
template <class T>
inline __nv_fp4_storage_t to_fp4(T v) {
  return __nv_fp4_e2m1(v).__x;
}

}  // namespace vgpu

#define VGPU_FP4_CONVERSIONS(NAME, T, PAIR, RAW, RAW2)                                      \
  inline T __tl_cvt_fp4_to_##NAME(__nv_fp4_storage_t v) { return T(vgpu::fp4_to_float(v)); } \
  inline PAIR __tl_cvt_fp4x2_to_##NAME##2(__nv_fp4x2_storage_t v) {                         \
    return {T(vgpu::fp4_to_float(v)), T(vgpu::fp4_to_float(v >> 4))};                       \
  }                                                                                         \
  inline __nv_fp4_storage_t __tl_cvt_##NAME##_to_fp4(T v) { return vgpu::to_fp4(v); }       \
  inline __nv_fp4x2_storage_t __tl_cvt_##NAME##2_to_fp4x2(PAIR v) {                         \
    return vgpu::in_order<__nv_fp4x2_storage_t, 4>(vgpu::to_fp4<T>, v.x, v.y);                   \
  }                                                                                         \
  inline __nv_fp4_storage_t __nv_cvt_##RAW##_to_fp4(T v, __nv_fp4_interpretation_t,         \
                                                    cudaRoundMode rounding) {               \
    if (rounding != cudaRoundNearest) vgpu_fail("fp4 is only rounded to nearest here");     \
    return vgpu::to_fp4(v);                                                                 \
  }                                                                                         \
  inline __nv_fp4x2_storage_t __nv_cvt_##RAW2##_to_fp4x2(PAIR v, __nv_fp4_interpretation_t, \
                                                         cudaRoundMode rounding) {          \
    if (rounding != cudaRoundNearest) vgpu_fail("fp4 is only rounded to nearest here");     \
    return __tl_cvt_##NAME##2_to_fp4x2(v);                                                  \
  }
VGPU_FP4_CONVERSIONS(float, float, float2, float, float2)
VGPU_FP4_CONVERSIONS(double, double, double2, double, double2)
VGPU_FP4_CONVERSIONS(half, half, half2, halfraw, halfraw2)
VGPU_FP4_CONVERSIONS(bfloat16, __nv_bfloat16, __nv_bfloat162, bfloat16raw, bfloat16raw2)
#undef VGPU_FP4_CONVERSIONS

inline __nv_fp8_storage_t __tl_cvt_e2m1_to_e4m3(__nv_fp4_storage_t v) {
  return vgpu::fp4_to_e4m3(v);
}
inline __nv_fp8x2_storage_t __tl_cvt_e2m1x2_to_e4m3x2(__nv_fp4x2_storage_t v) {
  return vgpu::in_order<__nv_fp8x2_storage_t, 8>(vgpu::fp4_to_e4m3, v, v >> 4);
}
inline __nv_fp8x4_storage_t __tl_cvt_e2m1x4_to_e4m3x4(__nv_fp4x4_storage_t v) {
  return vgpu::in_order<__nv_fp8x4_storage_t, 8>(vgpu::fp4_to_e4m3, v, v >> 4, v >> 8, v >> 12);
}
