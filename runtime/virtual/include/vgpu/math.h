// Device mathematics. Functions the hardware approximates (ex2.approx and the like) are computed
// accurately: compare with a tolerance where a kernel uses them.
#pragma once
#include <math.h>

#include "vgpu/bits.h"
#include "vgpu/ieee.h"
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
  if constexpr (std::is_floating_point_v<T>) return vgpu::max_number(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
template <class A, class B>
inline vgpu::Common<A, B> min(A a, B b) {
  using T = vgpu::Common<A, B>;
  if constexpr (std::is_floating_point_v<T>) return vgpu::min_number(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}
// The C library's leave the sign of zero open.
#define fmaxf(a, b) vgpu::max_number<float>(a, b)
#define fminf(a, b) vgpu::min_number<float>(a, b)
#define fmax(a, b) vgpu::max_number<double>(a, b)
#define fmin(a, b) vgpu::min_number<double>(a, b)

namespace vgpu {

constexpr double kPi = 3.14159265358979323846;

// sin and cos of pi * x: the argument is reduced exactly.
inline double sin_pi(double x) {
  const double r = std::remainder(x, 2.0);
  if (std::fabs(r) == 1.0) return std::copysign(0.0, x);
  return std::fabs(r) <= 0.5 ? std::sin(kPi * r) : std::copysign(std::sin(kPi * (1 - std::fabs(r))), r);
}
inline double cos_pi(double x) {
  const double r = std::fabs(std::remainder(x, 2.0));
  return r == 0.5 ? 0.0 : r < 0.5 ? std::cos(kPi * r) : -std::cos(kPi * (1 - r));
}

// exp(x * x) * erfc(x). The continued fraction converges where erfc underflows.
inline double scaled_erfc(double x) {
  if (x < 20) return std::exp(x * x) * std::erfc(x);
  double tail = 0;
  for (int k = 40; k; --k) tail = k / 2.0 / (x + tail);
  return 1 / (std::sqrt(kPi) * (x + tail));
}

// x with erfc(x) = y, by Newton's method on log(erfc): close to linear where erfc is small.
inline double inverse_erfc(double y) {
  if (!(y > 0 && y < 2)) return y == 0 ? INFINITY : y == 2 ? -INFINITY : NAN;
  if (y > 1) return -inverse_erfc(2 - y);
  double x = y > 0.5 ? (1 - y) * std::sqrt(kPi) / 2 : std::sqrt(-std::log(y));
  for (int i = 0; i < 60; ++i) {
    const double value = std::erfc(x), slope = -2 / std::sqrt(kPi) * std::exp(-x * x);
    const double step = y > 0.5 ? (value - y) / slope : std::log(value / y) * value / slope;
    x -= step;
    if (std::fabs(step) <= 1e-17 * std::fabs(x)) break;
  }
  return x;
}
inline double inverse_erf(double y) {
  if (std::fabs(y) > 0.5) return std::copysign(inverse_erfc(1 - std::fabs(y)), y);
  double x = y * std::sqrt(kPi) / 2;
  for (int i = 0; i < 20; ++i) x -= (std::erf(x) - y) * std::sqrt(kPi) / 2 * std::exp(x * x);
  return x;
}
inline double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
inline double inverse_normal_cdf(double y) { return -std::sqrt(2.0) * inverse_erfc(2 * y); }
inline double norm_of(std::initializer_list<double> values) {
  double length = 0;
  for (const double v : values) length = std::hypot(length, v);
  return length;
}

}  // namespace vgpu

// CUDA's functions that C does not have, in double and in float.
#define VGPU_FUNCTION(NAME, ...)                                                            \
  inline double NAME(double x) { return __VA_ARGS__; }                                      \
  inline float NAME##f(float value) {                                                       \
    const double x = value;                                                                 \
    return static_cast<float>(__VA_ARGS__);                                                 \
  }
VGPU_FUNCTION(rsqrt, 1.0 / std::sqrt(x))
VGPU_FUNCTION(rcbrt, 1.0 / std::cbrt(x))
VGPU_FUNCTION(sinpi, vgpu::sin_pi(x))
VGPU_FUNCTION(cospi, vgpu::cos_pi(x))
VGPU_FUNCTION(tanpi, vgpu::sin_pi(x) / vgpu::cos_pi(x))
VGPU_FUNCTION(erfinv, vgpu::inverse_erf(x))
VGPU_FUNCTION(erfcinv, vgpu::inverse_erfc(x))
VGPU_FUNCTION(erfcx, vgpu::scaled_erfc(x))
VGPU_FUNCTION(normcdf, vgpu::normal_cdf(x))
VGPU_FUNCTION(normcdfinv, vgpu::inverse_normal_cdf(x))
VGPU_FUNCTION(cyl_bessel_i0, std::cyl_bessel_i(0.0, std::fabs(x)))
VGPU_FUNCTION(cyl_bessel_i1, std::copysign(std::cyl_bessel_i(1.0, std::fabs(x)), x))
#undef VGPU_FUNCTION
inline float rsqrt(float x) { return rsqrtf(x); }

#define VGPU_NORM(NAME, PARAMETERS, ...)                                                    \
  inline double NAME PARAMETERS { return vgpu::norm_of({__VA_ARGS__}); }                    \
  inline double r##NAME PARAMETERS { return 1 / vgpu::norm_of({__VA_ARGS__}); }
VGPU_NORM(norm3d, (double a, double b, double c), a, b, c)
VGPU_NORM(norm4d, (double a, double b, double c, double d), a, b, c, d)
#undef VGPU_NORM
inline double rhypot(double a, double b) { return 1 / std::hypot(a, b); }
inline float norm3df(float a, float b, float c) { return float(norm3d(a, b, c)); }
inline float norm4df(float a, float b, float c, float d) { return float(norm4d(a, b, c, d)); }
inline float rnorm3df(float a, float b, float c) { return float(rnorm3d(a, b, c)); }
inline float rnorm4df(float a, float b, float c, float d) { return float(rnorm4d(a, b, c, d)); }
inline float rhypotf(float a, float b) { return float(rhypot(a, b)); }
inline void sincospi(double x, double* s, double* c) { *s = sinpi(x), *c = cospi(x); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }

inline float __saturatef(float x) { return vgpu::saturate(x); }
// Beyond 2^126 the divisor's reciprocal underflows: the quotient is zero, or NaN of an infinity.
inline float __fdividef(float a, float b) {
  const float divisor = std::fabs(b);
  if (divisor > 0x1p126f && divisor < INFINITY) return std::isinf(a) ? NAN : a / b * 0.0f;
  return a / b;
}
inline float fdividef(float a, float b) { return a / b; }

// The double-underscore fast functions. glibc owns some of these names for its own entry points
// (__expf, __logf, ...), so they are macros over the accurate functions.
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __tanhf(x) tanhf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)

#define VGPU_LOAD(NAME)                                                                     \
  template <class T>                                                                        \
  inline T NAME(const T* p) {                                                               \
    return *p;                                                                              \
  }
VGPU_LOAD(__ldg)
VGPU_LOAD(__ldca)
VGPU_LOAD(__ldcg)
VGPU_LOAD(__ldcs)
VGPU_LOAD(__ldcv)
VGPU_LOAD(__ldlu)
#undef VGPU_LOAD
#define VGPU_STORE(NAME)                                                                    \
  template <class T>                                                                        \
  inline void NAME(T* p, T v) {                                                             \
    *p = v;                                                                                 \
  }
VGPU_STORE(__stcg)
VGPU_STORE(__stcs)
VGPU_STORE(__stwb)
VGPU_STORE(__stwt)
#undef VGPU_STORE

// 16-bit functions: evaluated in float and rounded once.
#define VGPU_HALF_FUNCTION(NAME, CALL)                                                      \
  inline half_t NAME(half_t x) { return half_t(CALL(float(x))); }                           \
  inline bfloat16_t NAME(bfloat16_t x) { return bfloat16_t(CALL(float(x))); }
#define VGPU_HALF_FUNCTIONS(NAME, CALL)                                                     \
  VGPU_HALF_FUNCTION(h##NAME, CALL)                                                         \
  inline half2 h2##NAME(half2 v) { return {h##NAME(v.x), h##NAME(v.y)}; }                   \
  inline __nv_bfloat162 h2##NAME(__nv_bfloat162 v) { return {h##NAME(v.x), h##NAME(v.y)}; }
VGPU_HALF_FUNCTIONS(exp, expf)
VGPU_HALF_FUNCTIONS(exp2, exp2f)
VGPU_HALF_FUNCTIONS(exp10, exp10f)
VGPU_HALF_FUNCTIONS(log, logf)
VGPU_HALF_FUNCTIONS(log2, log2f)
VGPU_HALF_FUNCTIONS(log10, log10f)
VGPU_HALF_FUNCTIONS(sqrt, sqrtf)
VGPU_HALF_FUNCTIONS(rsqrt, rsqrtf)
VGPU_HALF_FUNCTIONS(rcp, __frcp_rn)
VGPU_HALF_FUNCTIONS(sin, sinf)
VGPU_HALF_FUNCTIONS(cos, cosf)
VGPU_HALF_FUNCTIONS(tanh, tanhf)
VGPU_HALF_FUNCTIONS(tanh_approx, tanhf)
VGPU_HALF_FUNCTIONS(floor, floorf)
VGPU_HALF_FUNCTIONS(ceil, ceilf)
VGPU_HALF_FUNCTIONS(rint, rintf)
VGPU_HALF_FUNCTIONS(trunc, truncf)
VGPU_HALF_FUNCTION(hnearbyint, nearbyintf)
VGPU_HALF_FUNCTION(htan, tanf)
VGPU_HALF_FUNCTION(hsinh, sinhf)
VGPU_HALF_FUNCTION(hcosh, coshf)
VGPU_HALF_FUNCTION(hatan, atanf)
VGPU_HALF_FUNCTION(herf, erff)
#undef VGPU_HALF_FUNCTIONS
#undef VGPU_HALF_FUNCTION

#define VGPU_HALF_BINARY(NAME, CALL)                                                        \
  inline half_t NAME(half_t a, half_t b) { return half_t(CALL(float(a), float(b))); }       \
  inline bfloat16_t NAME(bfloat16_t a, bfloat16_t b) {                                      \
    return bfloat16_t(CALL(float(a), float(b)));                                            \
  }
VGPU_HALF_BINARY(hpow, powf)
VGPU_HALF_BINARY(hfmod, fmodf)
#undef VGPU_HALF_BINARY

namespace tl {

// rcp.approx.ftz: subnormals count as zero on both sides.
inline float fast_rcp(float x) {
  const auto flush = [](float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; };
  return flush(1.0f / flush(x));
}

// Only float takes the number where the other is NaN; elsewhere a comparison decides.
template <class T>
inline T fast_max(T a, T b) {
  if constexpr (std::is_same_v<T, float>) return vgpu::max_number(a, b);
  return a < b ? b : a;
}
template <class T>
inline T fast_min(T a, T b) {
  if constexpr (std::is_same_v<T, float>) return vgpu::min_number(a, b);
  return b < a ? b : a;
}

#define VGPU_FP8_EXTREMES(T)                                                                \
  inline T max(T a, T b) { return T(vgpu::max_number(float(a), float(b))); }                \
  inline T min(T a, T b) { return T(vgpu::min_number(float(a), float(b))); }
VGPU_FP8_EXTREMES(float_e4m3_t)
VGPU_FP8_EXTREMES(float_e5m2_t)
#undef VGPU_FP8_EXTREMES

// A NaN anywhere comes out: x's first, then low's. 16-bit numbers yield the canonical one.
template <class T>
inline T clamp(T x, T low, T high) {
  if constexpr (std::is_same_v<T, half_t> || std::is_same_v<T, bfloat16_t>) {
    return __hmin_nan(__hmax_nan(x, low), high);
  } else if constexpr (std::is_floating_point_v<T>) {
    if (x != x) return x;
    if (low != low) return low;
    if (high != high) return high;
    return vgpu::min_number(vgpu::max_number(x, low), high);
  } else {
    return T(clamp(float(x), float(low), float(high)));
  }
}

inline float RoundTiesAwayFromZero(float x) { return std::round(x); }
inline double RoundTiesAwayFromZero(double x) { return std::round(x); }
template <class Narrow>
inline auto RoundTiesAwayFromZero(Narrow x) -> decltype(Narrow::bitcast(x.raw())) {
  return Narrow(std::round(float(x)));
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
