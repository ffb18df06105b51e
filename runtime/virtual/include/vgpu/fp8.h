// FP8 vectors and the conversion intrinsics generated code calls.
#pragma once
#include "vgpu/conversions.h"

// A power of two, 2^(code - 127); 0xff is NaN. Conversions ignore the sign and round up to the next
// power, at most 2^127.
struct __nv_fp8_e8m0 {
  unsigned char __x;

  __nv_fp8_e8m0() = default;
  explicit __nv_fp8_e8m0(float v) {
    const uint32_t magnitude = vgpu::bit_cast<uint32_t>(v) & 0x7fffffff;
    uint32_t code = magnitude >> 23;
    if (magnitude > 0x7f800000) {
      code = 0xff;
    } else if (magnitude > 0x400000) {  // above 2^-127, the smallest
      code = magnitude & 0x7fffff ? code + 1 : code;
      code = code > 0xfe ? 0xfe : code;
    }
    __x = static_cast<unsigned char>(code);
  }
  explicit __nv_fp8_e8m0(double v) : __nv_fp8_e8m0(vgpu::round_to_odd(v)) {}
  explicit __nv_fp8_e8m0(__nv_bfloat16 v) : __nv_fp8_e8m0(float(v)) {}
  explicit __nv_fp8_e8m0(__half v) : __nv_fp8_e8m0(float(v)) {}
  template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
  explicit __nv_fp8_e8m0(T v) : __nv_fp8_e8m0(static_cast<double>(v)) {
    static_assert(sizeof(T) <= 4, "e8m0 from 64-bit integers is not modelled");
  }
  explicit operator float() const {
    if (__x == 0xff) return vgpu::bit_cast<float>(0x7fff0000u);
    return vgpu::bit_cast<float>(__x ? uint32_t(__x) << 23 : 0x400000u);
  }
  explicit operator double() const { return float(*this); }
  explicit operator __nv_bfloat16() const { return __nv_bfloat16(float(*this)); }
  explicit operator __half() const { return __half(float(*this)); }
};

using fp8_e8_t = __nv_fp8_e8m0;
using fp8_e4_t = tl::float_e4m3_t;
using fp8_e5_t = tl::float_e5m2_t;

// fp8_e4_2_t .. fp8_e4_32_t: a pair, then halves of twice the size, as TileLang names their parts.
// The widest is aligned to 16, not 32: generated code overlays it on byte arrays, which a host
// compiler aligns to 16 at most.
#define VGPU_FP8_VECTORS(F)                                                                 \
  struct alignas(2) F##_2_t { F##_t x, y; };                                                \
  struct alignas(4) F##_4_t { F##_t x, y, z, w; };                                          \
  struct alignas(8) F##_8_t { F##_4_t x, y; };                                              \
  struct alignas(16) F##_16_t { F##_8_t x, y; };                                            \
  struct alignas(32) F##_32_t { F##_16_t x, y; };
VGPU_FP8_VECTORS(fp8_e4)
VGPU_FP8_VECTORS(fp8_e5)
VGPU_FP8_VECTORS(fp8_e8)
#undef VGPU_FP8_VECTORS

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned int;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
enum cudaRoundMode { cudaRoundNearest, cudaRoundZero, cudaRoundPosInf, cudaRoundMinInf };

namespace vgpu {

inline float fp8_to_float(__nv_fp8_storage_t code, __nv_fp8_interpretation_t format) {
  return format == __NV_E4M3 ? decode_e4m3_byte(code) : decode_e5m2_byte(code);
}
// Without saturation what is too large, infinity included, becomes NaN in e4m3 and infinity in e5m2.
inline __nv_fp8_storage_t float_to_fp8(float v, __nv_saturation_t saturation,
                                       __nv_fp8_interpretation_t format) {
  using E4M3Open = Format<4, 3, 0x7e, 0x7f, 0x7f>;
  using E5M2Open = Format<5, 2, 0x7b, 0x7c, 0x7f>;
  if (saturation == __NV_SATFINITE)
    return format == __NV_E4M3 ? encode_e4m3_byte(v) : encode_e5m2_byte(v);
  return static_cast<uint8_t>(format == __NV_E4M3 ? E4M3Open::encode(v) : E5M2Open::encode(v));
}
// Converted elements in one word, the first in the low bits.
template <class Wide, int Bits, class Convert, class... As>
inline Wide in_order(Convert convert, As... elements) {
  Wide packed = 0;
  int shift = 0;
  ((packed = static_cast<Wide>(packed | Wide(convert(elements)) << shift), shift += Bits), ...);
  return packed;
}

}  // namespace vgpu

#define VGPU_TO_FP8(NAME, PAIR_NAME, T, PAIR, FLOAT)                                        \
  inline __nv_fp8_storage_t NAME(T v, __nv_saturation_t saturation,                         \
                                 __nv_fp8_interpretation_t format) {                        \
    return vgpu::float_to_fp8(FLOAT(v), saturation, format);                                \
  }                                                                                         \
  inline __nv_fp8x2_storage_t PAIR_NAME(PAIR v, __nv_saturation_t saturation,               \
                                        __nv_fp8_interpretation_t format) {                 \
    return vgpu::in_order<__nv_fp8x2_storage_t, 8>(                                              \
        [=](T x) { return vgpu::float_to_fp8(FLOAT(x), saturation, format); }, v.x, v.y);   \
  }
VGPU_TO_FP8(__nv_cvt_float_to_fp8, __nv_cvt_float2_to_fp8x2, float, float2, float)
VGPU_TO_FP8(__nv_cvt_double_to_fp8, __nv_cvt_double2_to_fp8x2, double, double2, vgpu::round_to_odd)
VGPU_TO_FP8(__nv_cvt_halfraw_to_fp8, __nv_cvt_halfraw2_to_fp8x2, half, half2, float)
VGPU_TO_FP8(__nv_cvt_bfloat16raw_to_fp8, __nv_cvt_bfloat16raw2_to_fp8x2, __nv_bfloat16,
            __nv_bfloat162, float)
#undef VGPU_TO_FP8

inline half __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t v, __nv_fp8_interpretation_t format) {
  return half(vgpu::fp8_to_float(v, format));
}
inline half2 __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t v, __nv_fp8_interpretation_t format) {
  return {__nv_cvt_fp8_to_halfraw(v & 0xff, format), __nv_cvt_fp8_to_halfraw(v >> 8, format)};
}

// TileLang's names: they saturate, and go by way of half where the hardware does.
inline float2 __tl_cvt_fp8x2_to_float2(__nv_fp8x2_storage_t v, __nv_fp8_interpretation_t format) {
  return {vgpu::fp8_to_float(v & 0xff, format), vgpu::fp8_to_float(v >> 8, format)};
}
inline half2 __tl_cvt_fp8x2_to_half2(__nv_fp8x2_storage_t v, __nv_fp8_interpretation_t format) {
  return __nv_cvt_fp8x2_to_halfraw2(v, format);
}
inline __nv_fp8x2_storage_t __tl_cvt_half2_to_fp8x2(half2 v, __nv_fp8_interpretation_t format) {
  return __nv_cvt_halfraw2_to_fp8x2(v, __NV_SATFINITE, format);
}
inline half __tl_cvt_fp8_to_half(__nv_fp8_storage_t v, __nv_fp8_interpretation_t format) {
  return __nv_cvt_fp8_to_halfraw(v, format);
}
inline __nv_fp8_storage_t __tl_cvt_half_to_fp8(half v, __nv_fp8_interpretation_t format) {
  return __nv_cvt_halfraw_to_fp8(v, __NV_SATFINITE, format);
}
inline __nv_fp8_storage_t __tl_cvt_bfloat16_to_fp8(__nv_bfloat16 v,
                                                   __nv_fp8_interpretation_t format) {
  return __nv_cvt_bfloat16raw_to_fp8(v, __NV_SATFINITE, format);
}
inline __nv_bfloat16 __tl_cvt_fp8_to_bfloat16(__nv_fp8_storage_t v,
                                              __nv_fp8_interpretation_t format) {
  return __nv_bfloat16(vgpu::fp8_to_float(v, format));
}
inline __nv_bfloat162 __tl_cvt_e4m3x2_to_bfloat162(__nv_fp8x2_storage_t v) {
  return __float22bfloat162_rn(__tl_cvt_fp8x2_to_float2(v, __NV_E4M3));
}
inline __nv_bfloat162 __tl_cvt_e5m2x2_to_bfloat162(__nv_fp8x2_storage_t v) {
  return __float22bfloat162_rn(__tl_cvt_fp8x2_to_float2(v, __NV_E5M2));
}
inline __nv_fp8x2_storage_t __tl_cvt_bfloat162_to_fp8x2(__nv_bfloat162 v,
                                                        __nv_fp8_interpretation_t format) {
  return __nv_cvt_bfloat16raw2_to_fp8x2(v, __NV_SATFINITE, format);
}

namespace vgpu {
inline __nv_fp8_e8m0 e8m0_of(unsigned code) { return {bit_cast<__nv_fp8_e8m0>(uint8_t(code))}; }
template <class T>
inline __nv_fp8_storage_t to_e8m0(T v) {
  return __nv_fp8_e8m0(v).__x;
}
}  // namespace vgpu

inline __nv_bfloat16 __tl_cvt_e8m0_to_bfloat16(__nv_fp8_storage_t v) {
  return __nv_bfloat16(vgpu::e8m0_of(v));
}
inline __nv_bfloat162 __tl_cvt_e8m0x2_to_bfloat162(__nv_fp8x2_storage_t v) {
  return {__nv_bfloat16(vgpu::e8m0_of(v & 0xff)), __nv_bfloat16(vgpu::e8m0_of(v >> 8))};
}
#define VGPU_TO_E8M0(NAME, T, PAIR)                                                         \
  inline __nv_fp8_storage_t __tl_cvt_##NAME##_to_e8m0(T v) { return vgpu::to_e8m0(v); }     \
  inline __nv_fp8x2_storage_t __tl_cvt_##NAME##2_to_e8m0x2(PAIR v) {                        \
    return vgpu::in_order<__nv_fp8x2_storage_t, 8>(vgpu::to_e8m0<T>, v.x, v.y);                  \
  }
VGPU_TO_E8M0(float, float, float2)
VGPU_TO_E8M0(double, double, double2)
VGPU_TO_E8M0(bfloat16, __nv_bfloat16, __nv_bfloat162)
#undef VGPU_TO_E8M0
