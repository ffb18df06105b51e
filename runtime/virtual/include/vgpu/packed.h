// Minimum and maximum, and arithmetic on 16-bit numbers and on pairs: one rounding per element.
#pragma once
#include "vgpu/conversions.h"

namespace vgpu {

template <class F>
inline F canonical_nan() {
  if constexpr (sizeof(F) == 4) return bit_cast<float>(0x7fffffffu);
  else return bit_cast<double>(0xfff8000000000000ull);
}

// max.f32 and its like: a NaN loses against a number and -0 against +0.
template <class F>
inline F max_number(F a, F b) {
  if (__builtin_islessgreater(a, b)) return a > b ? a : b;  // one branch, always the same way
  if (a == b) return std::signbit(a) ? b : a;
  return a == a ? a : b == b ? b : canonical_nan<F>();
}
template <class F>
inline F min_number(F a, F b) {
  if (__builtin_islessgreater(a, b)) return a < b ? a : b;
  if (a == b) return std::signbit(a) ? a : b;
  return a == a ? a : b == b ? b : canonical_nan<F>();
}
// The same, but a NaN wins.
inline float max_nan(float a, float b) {
  return a != a || b != b ? canonical_nan<float>() : max_number(a, b);
}
inline float min_nan(float a, float b) {
  return a != a || b != b ? canonical_nan<float>() : min_number(a, b);
}

// a * b + c of 16-bit numbers, rounded once: the product is exact in double.
template <class N>
inline N fma_once(N a, N b, N c) {
  const double product = static_cast<double>(float(a)) * float(b);
  return N(round_to_odd(add_to_odd(product, float(c))));
}
inline float saturate(float x) { return x != x ? 0.0f : x < 0 ? 0.0f : x > 1 ? 1.0f : x; }

}  // namespace vgpu

#define VGPU_16_BIT(N)                                                                      \
  inline N __hadd(N a, N b) { return a + b; }                                               \
  inline N __hsub(N a, N b) { return a - b; }                                               \
  inline N __hmul(N a, N b) { return a * b; }                                               \
  inline N __hdiv(N a, N b) { return a / b; }                                               \
  inline N __hadd_rn(N a, N b) { return a + b; }                                            \
  inline N __hsub_rn(N a, N b) { return a - b; }                                            \
  inline N __hmul_rn(N a, N b) { return a * b; }                                            \
  inline N __hadd_sat(N a, N b) { return N(vgpu::saturate(a + b)); }                        \
  inline N __hsub_sat(N a, N b) { return N(vgpu::saturate(a - b)); }                        \
  inline N __hmul_sat(N a, N b) { return N(vgpu::saturate(a * b)); }                        \
  inline N __hfma(N a, N b, N c) { return vgpu::fma_once(a, b, c); }                        \
  inline N __hfma_sat(N a, N b, N c) { return N(vgpu::saturate(vgpu::fma_once(a, b, c))); } \
  inline N __hfma_relu(N a, N b, N c) {                                                     \
    return N(vgpu::max_nan(vgpu::fma_once(a, b, c), 0.0f));                                 \
  }                                                                                         \
  inline N __hneg(N a) { return -a; }                                                       \
  inline N __habs(N a) { return N::bitcast(a.bits & 0x7fff); }                              \
  inline N __hmax(N a, N b) { return N(vgpu::max_number(float(a), float(b))); }             \
  inline N __hmin(N a, N b) { return N(vgpu::min_number(float(a), float(b))); }             \
  inline N __hmax_nan(N a, N b) { return N(vgpu::max_nan(a, b)); }                          \
  inline N __hmin_nan(N a, N b) { return N(vgpu::min_nan(a, b)); }                          \
  inline bool __hisnan(N a) { return float(a) != float(a); }                                \
  inline int __hisinf(N a) { return std::isinf(float(a)) ? (float(a) < 0 ? -1 : 1) : 0; }   \
  inline bool __heq(N a, N b) { return float(a) == float(b); }                              \
  inline bool __hne(N a, N b) { return float(a) < float(b) || float(a) > float(b); }        \
  inline bool __hlt(N a, N b) { return float(a) < float(b); }                               \
  inline bool __hle(N a, N b) { return float(a) <= float(b); }                              \
  inline bool __hgt(N a, N b) { return float(a) > float(b); }                               \
  inline bool __hge(N a, N b) { return float(a) >= float(b); }                              \
  inline N max(N a, N b) { return __hmax(a, b); }                                           \
  inline N min(N a, N b) { return __hmin(a, b); }
VGPU_16_BIT(__half)
VGPU_16_BIT(__nv_bfloat16)
#undef VGPU_16_BIT

// CUDA's names for pairs, element by element.
#define VGPU_PAIR_OF_TWO(NAME, SCALAR, PAIR)                                                \
  inline PAIR NAME(PAIR a, PAIR b) { return {SCALAR(a.x, b.x), SCALAR(a.y, b.y)}; }
#define VGPU_PAIRS(PAIR)                                                                    \
  VGPU_PAIR_OF_TWO(__hadd2, __hadd, PAIR)                                                   \
  VGPU_PAIR_OF_TWO(__hsub2, __hsub, PAIR)                                                   \
  VGPU_PAIR_OF_TWO(__hmul2, __hmul, PAIR)                                                   \
  VGPU_PAIR_OF_TWO(__h2div, __hdiv, PAIR)                                                   \
  VGPU_PAIR_OF_TWO(__hadd2_rn, __hadd, PAIR)                                                \
  VGPU_PAIR_OF_TWO(__hsub2_rn, __hsub, PAIR)                                                \
  VGPU_PAIR_OF_TWO(__hmul2_rn, __hmul, PAIR)                                                \
  VGPU_PAIR_OF_TWO(__hadd2_sat, __hadd_sat, PAIR)                                           \
  VGPU_PAIR_OF_TWO(__hsub2_sat, __hsub_sat, PAIR)                                           \
  VGPU_PAIR_OF_TWO(__hmul2_sat, __hmul_sat, PAIR)                                           \
  VGPU_PAIR_OF_TWO(__hmax2, __hmax, PAIR)                                                   \
  VGPU_PAIR_OF_TWO(__hmin2, __hmin, PAIR)                                                   \
  VGPU_PAIR_OF_TWO(__hmax2_nan, __hmax_nan, PAIR)                                           \
  VGPU_PAIR_OF_TWO(__hmin2_nan, __hmin_nan, PAIR)                                           \
  inline PAIR __habs2(PAIR a) { return {__habs(a.x), __habs(a.y)}; }                        \
  inline PAIR __hneg2(PAIR a) { return {-a.x, -a.y}; }                                      \
  inline PAIR __hfma2(PAIR a, PAIR b, PAIR c) {                                             \
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                                  \
  }                                                                                         \
  namespace tl {                                                                            \
  inline PAIR add2(PAIR a, PAIR b) { return __hadd2(a, b); }                                \
  inline PAIR sub2(PAIR a, PAIR b) { return __hsub2(a, b); }                                \
  inline PAIR mul2(PAIR a, PAIR b) { return __hmul2(a, b); }                                \
  inline PAIR fma2(PAIR a, PAIR b, PAIR c) { return __hfma2(a, b, c); }                     \
  inline PAIR max2(PAIR a, PAIR b) { return __hmax2(a, b); }                                \
  inline PAIR min2(PAIR a, PAIR b) { return __hmin2(a, b); }                                \
  inline PAIR max2_nan(PAIR a, PAIR b) { return __hmax2_nan(a, b); }                        \
  inline PAIR min2_nan(PAIR a, PAIR b) { return __hmin2_nan(a, b); }                        \
  inline PAIR abs2(PAIR a) { return __habs2(a); }                                           \
  inline PAIR clamp2(PAIR x, PAIR low, PAIR high) {                                         \
    return min2_nan(max2_nan(x, low), high);                                                \
  }                                                                                         \
  }
VGPU_PAIRS(__half2)
VGPU_PAIRS(__nv_bfloat162)
#undef VGPU_PAIRS
#undef VGPU_PAIR_OF_TWO

inline float2 __fadd2_rn(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
inline float2 __fmul2_rn(float2 a, float2 b) { return {a.x * b.x, a.y * b.y}; }
inline float2 __ffma2_rn(float2 a, float2 b, float2 c) {
  return {std::fmaf(a.x, b.x, c.x), std::fmaf(a.y, b.y, c.y)};
}

namespace tl {

inline float2 add2(float2 a, float2 b) { return __fadd2_rn(a, b); }
inline float2 sub2(float2 a, float2 b) { return {a.x - b.x, a.y - b.y}; }
inline float2 mul2(float2 a, float2 b) { return __fmul2_rn(a, b); }
inline float2 fma2(float2 a, float2 b, float2 c) { return __ffma2_rn(a, b, c); }
inline float2 max2(float2 a, float2 b) {
  return {vgpu::max_number(a.x, b.x), vgpu::max_number(a.y, b.y)};
}
inline float2 min2(float2 a, float2 b) {
  return {vgpu::min_number(a.x, b.x), vgpu::min_number(a.y, b.y)};
}
inline float2 abs2(float2 a) { return {std::fabs(a.x), std::fabs(a.y)}; }

// TileLang keeps 16-bit pairs in a uint1.
template <class T>
inline T from_uint1(uint1 v) {
  return vgpu::bit_cast<T>(v);
}
template <class T>
inline uint1 to_uint1(T v) {
  return vgpu::bit_cast<uint1>(v);
}
inline uint1 pack_half2(half_t a, half_t b) { return {__pack_half2(a, b)}; }

// cvt.rs of sm_100a: adds the random bits to those that rounding drops and cuts off. Too large
// becomes the largest number. The order in which the forms with four results consume their random
// bits is not modelled: those do not compile.
inline __nv_bfloat16 bfloat16_of_sum(float x, unsigned bits) {
  if (x != x) return __nv_bfloat16::bitcast(0x7fff);
  const uint32_t sum = vgpu::bit_cast<uint32_t>(std::fabs(x)) + bits;
  const auto code = static_cast<uint16_t>(sum < 0x7f800000u ? sum >> 16 : 0x7f7fu);
  return __nv_bfloat16::bitcast(code | (std::signbit(x) ? 0x8000 : 0));
}
VGPU_ONLY_SM100A
inline __nv_bfloat162 __tl_cvt_f32x2_to_bf16x2_rs_sat(float2 v, unsigned random) {
  return {bfloat16_of_sum(v.x, random & 0xffff), bfloat16_of_sum(v.y, random >> 16)};
}
VGPU_ONLY_SM100A
inline unsigned short __tl_cvt_f32x1_to_bf16x1_rs_sat(float v, unsigned random) {
  return bfloat16_of_sum(v, random & 0xffff).bits;
}

}  // namespace tl
