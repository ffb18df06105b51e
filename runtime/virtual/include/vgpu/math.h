// Device mathematics. Functions the hardware approximates (ex2.approx and the like) are computed
// accurately: compare with a tolerance where a kernel uses them.
#pragma once
#include <math.h>

#include "vgpu/packed.h"

// max/min over mixed arithmetic types follow C++'s common type; on floats a NaN operand loses.
namespace vgpu {
template <class A, class B>
using Common = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>,
                                std::common_type_t<A, B>>;
}  // namespace vgpu

template <class A, class B>
inline vgpu::Common<A, B> max(A a, B b) {
  using T = vgpu::Common<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
template <class A, class B>
inline vgpu::Common<A, B> min(A a, B b) {
  using T = vgpu::Common<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}

inline float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __saturatef(float x) { return x != x ? 0.0f : fminf(fmaxf(x, 0.0f), 1.0f); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }


// The double-underscore fast functions. glibc owns some of these names for its own entry points
// (__expf, __logf, ...), so they are macros over the accurate functions.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)

inline int __float_as_int(float x) { return vgpu::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return vgpu::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return vgpu::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return vgpu::bit_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(lrintf(x)); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}

template <class T>
inline T __ldg(const T* p) {
  return *p;
}

// 16-bit functions: evaluated in float and rounded once.
#define VGPU_HALF_FUNCTION(NAME, CALL)                                                      \
  inline half_t NAME(half_t x) { return half_t(CALL(float(x))); }                           \
  inline bfloat16_t NAME(bfloat16_t x) { return bfloat16_t(CALL(float(x))); }
VGPU_HALF_FUNCTION(hexp, expf)
VGPU_HALF_FUNCTION(hexp2, exp2f)
VGPU_HALF_FUNCTION(hlog, logf)
VGPU_HALF_FUNCTION(hlog2, log2f)
VGPU_HALF_FUNCTION(hlog10, log10f)
VGPU_HALF_FUNCTION(hsqrt, sqrtf)
VGPU_HALF_FUNCTION(hrsqrt, rsqrtf)
VGPU_HALF_FUNCTION(hrcp, __frcp_rn)
VGPU_HALF_FUNCTION(hsin, sinf)
VGPU_HALF_FUNCTION(hcos, cosf)
VGPU_HALF_FUNCTION(htanh, tanhf)
VGPU_HALF_FUNCTION(herf, erff)
VGPU_HALF_FUNCTION(hfloor, floorf)
VGPU_HALF_FUNCTION(hceil, ceilf)
VGPU_HALF_FUNCTION(hrint, rintf)
VGPU_HALF_FUNCTION(htrunc, truncf)
VGPU_HALF_FUNCTION(__habs, fabsf)
#undef VGPU_HALF_FUNCTION

#define VGPU_HALF_BINARY(NAME, CALL)                                                        \
  inline half_t NAME(half_t a, half_t b) { return half_t(CALL(float(a), float(b))); }       \
  inline bfloat16_t NAME(bfloat16_t a, bfloat16_t b) {                                      \
    return bfloat16_t(CALL(float(a), float(b)));                                            \
  }
VGPU_HALF_BINARY(max, fmaxf)
VGPU_HALF_BINARY(min, fminf)
VGPU_HALF_BINARY(__hmax, fmaxf)
VGPU_HALF_BINARY(__hmin, fminf)
VGPU_HALF_BINARY(__hmax_nan, vgpu::max_nan)
VGPU_HALF_BINARY(__hmin_nan, vgpu::min_nan)
VGPU_HALF_BINARY(hpow, powf)
VGPU_HALF_BINARY(__hadd_rn, __fadd_rn)
VGPU_HALF_BINARY(__hsub_rn, __fsub_rn)
VGPU_HALF_BINARY(__hmul_rn, __fmul_rn)
VGPU_HALF_BINARY(__hdiv, __fdiv_rn)
#undef VGPU_HALF_BINARY

namespace tl {

inline float fast_rcp(float x) { return 1.0f / x; }

template <class T>
inline T fast_max(T a, T b) {
  return max(a, b);
}
template <class T>
inline T fast_min(T a, T b) {
  return min(a, b);
}

// A NaN anywhere comes out.
template <class T>
inline T clamp(T x, T low, T high) {
  if (x != x) return x;
  if (low != low) return low;
  if (high != high) return high;
  return T(min(max(x, low), high));
}

template <int y = 1, class T>
inline T pow_of_int(T x) {
  T result = x;
  for (int i = 1; i < y; ++i) result *= x;
  return result;
}

template <class T>
inline bool Any(T* a, int size) {
  for (int i = 0; i < size; ++i)
    if (a[i]) return true;
  return false;
}
template <class T>
inline bool All(T* a, int size) {
  for (int i = 0; i < size; ++i)
    if (!a[i]) return false;
  return true;
}

}  // namespace tl
