// Arithmetic with a rounding direction, under CUDA's names.
#pragma once
#include <cfenv>

#include "vgpu/conversions.h"

namespace vgpu {

// `operation` of x, y, z in the floating-point environment `direction`. Volatile keeps the compiler,
// which knows one direction only, from computing it anywhere else.
template <int direction, class F, class Operation>
inline F directed(Operation operation, F x, F y = 0, F z = 0) {
  if constexpr (direction == FE_TONEAREST) return operation(x, y, z);
  volatile F a = x, b = y, c = z;
  std::fesetround(direction);
  volatile F result = operation(a, b, c);
  std::fesetround(FE_TONEAREST);
  return result;
}

}  // namespace vgpu

#define VGPU_DIRECTION(SUFFIX, DIRECTION, F, ADD, SUB, MUL, DIV, FMA, RCP, SQRT, FUSED)     \
  inline F ADD##SUFFIX(F x, F y) {                                                          \
    return vgpu::directed<DIRECTION, F>([](F a, F b, F) { return a + b; }, x, y);           \
  }                                                                                         \
  inline F SUB##SUFFIX(F x, F y) {                                                          \
    return vgpu::directed<DIRECTION, F>([](F a, F b, F) { return a - b; }, x, y);           \
  }                                                                                         \
  inline F MUL##SUFFIX(F x, F y) {                                                          \
    return vgpu::directed<DIRECTION, F>([](F a, F b, F) { return a * b; }, x, y);           \
  }                                                                                         \
  inline F DIV##SUFFIX(F x, F y) {                                                          \
    return vgpu::directed<DIRECTION, F>([](F a, F b, F) { return a / b; }, x, y);           \
  }                                                                                         \
  inline F FMA##SUFFIX(F x, F y, F z) {                                                     \
    return vgpu::directed<DIRECTION, F>([](F a, F b, F c) { return FUSED(a, b, c); }, x, y, z); \
  }                                                                                         \
  inline F RCP##SUFFIX(F x) {                                                               \
    return vgpu::directed<DIRECTION, F>([](F a, F, F) { return F(1) / a; }, x);             \
  }                                                                                         \
  inline F SQRT##SUFFIX(F x) {                                                              \
    return vgpu::directed<DIRECTION, F>([](F a, F, F) { return std::sqrt(a); }, x);         \
  }
#define VGPU_DIRECTIONS(F, ...)                                                             \
  VGPU_DIRECTION(_rn, FE_TONEAREST, F, __VA_ARGS__)                                         \
  VGPU_DIRECTION(_rz, FE_TOWARDZERO, F, __VA_ARGS__)                                        \
  VGPU_DIRECTION(_ru, FE_UPWARD, F, __VA_ARGS__)                                            \
  VGPU_DIRECTION(_rd, FE_DOWNWARD, F, __VA_ARGS__)
VGPU_DIRECTIONS(float, __fadd, __fsub, __fmul, __fdiv, __fmaf, __frcp, __fsqrt, std::fmaf)
VGPU_DIRECTIONS(double, __dadd, __dsub, __dmul, __ddiv, __fma, __drcp, __dsqrt, std::fma)
#undef VGPU_DIRECTIONS
#undef VGPU_DIRECTION

inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(double(x))); }
