// Conversions of the 16-bit formats and of float to integers under CUDA's names.
#pragma once
#include "vgpu/numbers.h"

namespace vgpu {

// What a conversion rounds toward; ties of kNearest go to even.
enum class Rounding { kNearest, kZero, kUp, kDown };

// `value` as an integer of type I: NaN becomes 0 (the top bit for 64 bits), what is too large the
// nearest I, as cvt does. A C++ cast promises neither.
template <class I, Rounding mode, class F>
inline I to_integer(F value) {
  if (value != value) return sizeof(I) == 8 ? I(uint64_t(1) << 63) : I(0);
  F whole;
  switch (mode) {
    case Rounding::kNearest: whole = std::nearbyint(value); break;
    case Rounding::kZero: whole = std::trunc(value); break;
    case Rounding::kUp: whole = std::ceil(value); break;
    case Rounding::kDown: whole = std::floor(value); break;
  }
  constexpr F kAbove = static_cast<F>(std::numeric_limits<I>::max() / 2 + 1) * 2;
  if (whole >= kAbove) return std::numeric_limits<I>::max();
  if (whole < static_cast<F>(std::numeric_limits<I>::min())) return std::numeric_limits<I>::min();
  return static_cast<I>(whole);
}

// The narrow number next to `value` in the direction of `mode`. The nearest one is at most one step
// away; overflow stops at the largest number in the directions that lead back from infinity.
template <class N, Rounding mode, class F>
inline N to_narrow(F value) {
  N near = N::bitcast(N(round_to_odd(static_cast<double>(value))).bits);
  const F back = static_cast<F>(float(near));
  if (mode == Rounding::kNearest || value != value || back == value) return near;
  const bool negative = value < 0;
  const bool outward = mode == Rounding::kUp ? !negative : mode == Rounding::kDown && negative;
  const bool is_out = negative ? back < value : back > value;
  if (is_out && !outward) --near.bits;
  if (!is_out && outward) {
    // -tiny rounded to -0 and +tiny to +0 carry their sign, so a step outward is always + 1.
    ++near.bits;
  }
  return near;
}

}  // namespace vgpu

// From wider numbers and back.
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline float __half2float(__half v) { return v; }
#define VGPU_NARROWING(NAME, N)                                                             \
  inline N __float2##NAME(float v) { return N(v); }                                         \
  inline N __float2##NAME##_rn(float v) { return N(v); }                                    \
  inline N __float2##NAME##_rz(float v) { return vgpu::to_narrow<N, vgpu::Rounding::kZero>(v); } \
  inline N __float2##NAME##_ru(float v) { return vgpu::to_narrow<N, vgpu::Rounding::kUp>(v); }   \
  inline N __float2##NAME##_rd(float v) { return vgpu::to_narrow<N, vgpu::Rounding::kDown>(v); } \
  inline N __double2##NAME(double v) { return N(vgpu::round_to_odd(v)); }                   \
  inline N __int2##NAME##_rn(int v) { return N(vgpu::round_to_odd(v)); }                    \
  inline N __uint2##NAME##_rn(unsigned v) { return N(vgpu::round_to_odd(v)); }              \
  inline N __short2##NAME##_rn(short v) { return N(float(v)); }                             \
  inline N __ushort2##NAME##_rn(unsigned short v) { return N(float(v)); }                   \
  inline short __##NAME##_as_short(N v) { return vgpu::bit_cast<short>(v.bits); }           \
  inline unsigned short __##NAME##_as_ushort(N v) { return v.bits; }                        \
  inline N __short_as_##NAME(short v) { return N::bitcast(static_cast<uint16_t>(v)); }      \
  inline N __ushort_as_##NAME(unsigned short v) { return N::bitcast(v); }
VGPU_NARROWING(half, __half)
VGPU_NARROWING(bfloat16, __nv_bfloat16)
#undef VGPU_NARROWING

namespace vgpu {
inline float widest(float v) { return v; }
inline double widest(double v) { return v; }
}  // namespace vgpu

#define VGPU_TO_INTEGER(FROM, F, TO, I)                                                     \
  inline I __##FROM##2##TO##_rn(F v) {                                                      \
    return vgpu::to_integer<I, vgpu::Rounding::kNearest>(vgpu::widest(v));                  \
  }                                                                                         \
  inline I __##FROM##2##TO##_rz(F v) {                                                      \
    return vgpu::to_integer<I, vgpu::Rounding::kZero>(vgpu::widest(v));                     \
  }                                                                                         \
  inline I __##FROM##2##TO##_ru(F v) {                                                      \
    return vgpu::to_integer<I, vgpu::Rounding::kUp>(vgpu::widest(v));                       \
  }                                                                                         \
  inline I __##FROM##2##TO##_rd(F v) {                                                      \
    return vgpu::to_integer<I, vgpu::Rounding::kDown>(vgpu::widest(v));                     \
  }
#define VGPU_TO_INTEGERS(FROM, F)                                                           \
  VGPU_TO_INTEGER(FROM, F, int, int)                                                        \
  VGPU_TO_INTEGER(FROM, F, uint, unsigned)                                                  \
  VGPU_TO_INTEGER(FROM, F, ll, long long)                                                   \
  VGPU_TO_INTEGER(FROM, F, ull, unsigned long long)
VGPU_TO_INTEGERS(float, float)
VGPU_TO_INTEGERS(double, double)
VGPU_TO_INTEGERS(half, __half)
VGPU_TO_INTEGERS(bfloat16, __nv_bfloat16)
VGPU_TO_INTEGER(half, __half, short, short)
VGPU_TO_INTEGER(half, __half, ushort, unsigned short)
VGPU_TO_INTEGER(bfloat16, __nv_bfloat16, short, short)
VGPU_TO_INTEGER(bfloat16, __nv_bfloat16, ushort, unsigned short)
#undef VGPU_TO_INTEGERS
#undef VGPU_TO_INTEGER

inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
inline float __ll2float_rn(long long v) { return static_cast<float>(v); }
inline float __ull2float_rn(unsigned long long v) { return static_cast<float>(v); }
inline double __int2double_rn(int v) { return v; }
inline double __uint2double_rn(unsigned v) { return v; }
inline double __ll2double_rn(long long v) { return static_cast<double>(v); }
inline double __ull2double_rn(unsigned long long v) { return static_cast<double>(v); }
inline float __double2float_rn(double v) { return static_cast<float>(v); }

// Pairs.
#define VGPU_PAIR_CONVERSIONS(NAME, N, PAIR)                                                \
  inline float2 __##NAME##22float2(PAIR v) { return {float(v.x), float(v.y)}; }             \
  inline PAIR __float22##NAME##2_rn(float2 v) { return {N(v.x), N(v.y)}; }                  \
  inline PAIR __floats2##NAME##2_rn(float x, float y) { return {N(x), N(y)}; }              \
  inline PAIR __float2##NAME##2_rn(float v) { return {N(v), N(v)}; }                        \
  inline PAIR __##NAME##2##NAME##2(N v) { return {v, v}; }                                  \
  inline PAIR __halves2##NAME##2(N x, N y) { return {x, y}; }                               \
  inline PAIR make_##NAME##2(N x, N y) { return {x, y}; }                                   \
  inline N __low2##NAME(PAIR v) { return v.x; }                                             \
  inline N __high2##NAME(PAIR v) { return v.y; }                                            \
  inline PAIR __low2##NAME##2(PAIR v) { return {v.x, v.x}; }                                \
  inline PAIR __high2##NAME##2(PAIR v) { return {v.y, v.y}; }                               \
  inline float __low2float(PAIR v) { return v.x; }                                          \
  inline float __high2float(PAIR v) { return v.y; }                                         \
  inline unsigned __pack_half2(N x, N y) { return unsigned(y.bits) << 16 | x.bits; }
VGPU_PAIR_CONVERSIONS(half, __half, __half2)
VGPU_PAIR_CONVERSIONS(bfloat16, __nv_bfloat16, __nv_bfloat162)
#undef VGPU_PAIR_CONVERSIONS

inline unsigned __pack_nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __pack_half2(x, y); }

namespace tl {

inline unsigned long long pack_float16x4(half_t x, half_t y, half_t z, half_t w) {
  return vgpu::pack<unsigned long long, half_t>(x, y, z, w);
}
inline unsigned long long pack_bfloat16x4(bfloat16_t x, bfloat16_t y, bfloat16_t z, bfloat16_t w) {
  return vgpu::pack<unsigned long long, bfloat16_t>(x, y, z, w);
}

}  // namespace tl
