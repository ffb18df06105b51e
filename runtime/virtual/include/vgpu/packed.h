// Arithmetic on packed pairs (float2, bf16x2, half2): one rounding per element.
#pragma once
#include "vgpu/numbers.h"

namespace tl {

template <class T>
inline T from_uint1(uint1 v) {
  return vgpu::bit_cast<T>(v);
}
template <class T>
inline uint1 to_uint1(T v) {
  return vgpu::bit_cast<uint1>(v);
}
inline uint1 pack_half2(half_t a, half_t b) { return {__pack_half2(a, b)}; }

template <class V, class E, class... Ts>
inline V make_vec(E first, Ts... rest) {
  return vgpu::pack<V, E>(first, rest...);
}

}  // namespace tl

namespace vgpu {

inline float max_number(float a, float b) { return fmaxf(a, b); }
inline float min_number(float a, float b) { return fminf(a, b); }
inline float max_nan(float a, float b) { return a != a || b != b ? NAN : fmaxf(a, b); }
inline float min_nan(float a, float b) { return a != a || b != b ? NAN : fminf(a, b); }

}  // namespace vgpu

#define VGPU_PAIR(PAIR, E)                                                                  \
  namespace tl {                                                                            \
  inline PAIR add2(PAIR a, PAIR b) { return {E(a.x + b.x), E(a.y + b.y)}; }                 \
  inline PAIR sub2(PAIR a, PAIR b) { return {E(a.x - b.x), E(a.y - b.y)}; }                 \
  inline PAIR mul2(PAIR a, PAIR b) { return {E(a.x * b.x), E(a.y * b.y)}; }                 \
  inline PAIR max2(PAIR a, PAIR b) {                                                        \
    return {E(vgpu::max_number(a.x, b.x)), E(vgpu::max_number(a.y, b.y))};                  \
  }                                                                                         \
  inline PAIR min2(PAIR a, PAIR b) {                                                        \
    return {E(vgpu::min_number(a.x, b.x)), E(vgpu::min_number(a.y, b.y))};                  \
  }                                                                                         \
  inline PAIR abs2(PAIR a) { return {E(fabsf(a.x)), E(fabsf(a.y))}; }                       \
  inline PAIR max2_nan(PAIR a, PAIR b) {                                                    \
    return {E(vgpu::max_nan(a.x, b.x)), E(vgpu::max_nan(a.y, b.y))};                        \
  }                                                                                         \
  inline PAIR min2_nan(PAIR a, PAIR b) {                                                    \
    return {E(vgpu::min_nan(a.x, b.x)), E(vgpu::min_nan(a.y, b.y))};                        \
  }                                                                                         \
  }
VGPU_PAIR(float2, float)
VGPU_PAIR(__nv_bfloat162, __nv_bfloat16)
VGPU_PAIR(__half2, __half)
#undef VGPU_PAIR

namespace tl {

// FFMA2 and HFMA2 round once.
inline float2 fma2(float2 a, float2 b, float2 c) {
  return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)};
}
// Known deviation: rounds to float first, which differs from HFMA2 in rare double-rounding ties.
template <class Pair, class = std::enable_if_t<sizeof(Pair) == 4>>
inline Pair fma2(Pair a, Pair b, Pair c) {
  using E = decltype(a.x);
  return {E(fmaf(a.x, b.x, c.x)), E(fmaf(a.y, b.y, c.y))};
}

}  // namespace tl
