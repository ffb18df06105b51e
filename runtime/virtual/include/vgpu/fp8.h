// FP8 vectors and the conversion intrinsics generated code calls.
#pragma once
#include "vgpu/numbers.h"

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
#undef VGPU_FP8_VECTORS

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned int;
enum __nv_saturation_t { __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float v, __nv_saturation_t,
                                                __nv_fp8_interpretation_t format) {
  return format == __NV_E4M3 ? vgpu::encode_e4m3_byte(v) : vgpu::encode_e5m2_byte(v);
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t format) {
  return static_cast<__nv_fp8x2_storage_t>(__nv_cvt_float_to_fp8(v.x, saturation, format) |
                                           __nv_cvt_float_to_fp8(v.y, saturation, format) << 8);
}

namespace vgpu {
inline float fp8_to_float(__nv_fp8_storage_t code, __nv_fp8_interpretation_t format) {
  return format == __NV_E4M3 ? decode_e4m3_byte(code) : decode_e5m2_byte(code);
}
}  // namespace vgpu

inline float2 __tl_cvt_fp8x2_to_float2(__nv_fp8x2_storage_t v, __nv_fp8_interpretation_t format) {
  return {vgpu::fp8_to_float(v & 0xff, format), vgpu::fp8_to_float(v >> 8, format)};
}
inline half2 __tl_cvt_fp8x2_to_half2(__nv_fp8x2_storage_t v, __nv_fp8_interpretation_t format) {
  return __float22half2_rn(__tl_cvt_fp8x2_to_float2(v, format));
}
inline __nv_fp8x2_storage_t __tl_cvt_half2_to_fp8x2(half2 v, __nv_fp8_interpretation_t format) {
  return __nv_cvt_float2_to_fp8x2(__half22float2(v), __NV_SATFINITE, format);
}
inline half __tl_cvt_fp8_to_half(__nv_fp8_storage_t v, __nv_fp8_interpretation_t format) {
  return half(vgpu::fp8_to_float(v, format));
}
inline __nv_fp8_storage_t __tl_cvt_half_to_fp8(half v, __nv_fp8_interpretation_t format) {
  return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, format);
}
inline __nv_fp8_storage_t __tl_cvt_bfloat16_to_fp8(__nv_bfloat16 v,
                                                   __nv_fp8_interpretation_t format) {
  return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, format);
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
  return __nv_cvt_float2_to_fp8x2(__bfloat1622float2(v), __NV_SATFINITE, format);
}
