// Narrow floating-point numbers: bit-exact conversions, round to nearest even.
#pragma once
#include <cmath>
#include <limits>

#include "vgpu/vectors.h"

namespace vgpu {

// A binary format of E exponent and M mantissa bits. LARGEST is the code of the largest finite
// magnitude, ABOVE what a larger magnitude becomes (infinity, or LARGEST where the format
// saturates), NAN_CODE the canonical NaN the hardware writes.
template <int E, int M, unsigned LARGEST, unsigned ABOVE, unsigned NAN_CODE>
struct Format {
  static constexpr int kBias = (1 << (E - 1)) - 1;
  static constexpr unsigned kSign = 1u << (E + M);

  static unsigned encode(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return NAN_CODE;
    const unsigned sign = (bits >> 31) ? kSign : 0;
    unsigned code;
    if (magnitude >= static_cast<uint32_t>(128 - kBias) << 23) {  // normal in this format
      constexpr int kDrop = 23 - M;
      const uint32_t even = (magnitude >> kDrop) & 1;
      const uint32_t rounded = magnitude + (1u << (kDrop - 1)) - 1 + even;
      code = (rounded >> kDrop) - (static_cast<unsigned>(127 - kBias) << M);
    } else {  // subnormal: the scaled product is exact, nearbyint rounds to even
      code = static_cast<unsigned>(
          std::nearbyint(std::ldexp(bit_cast<float>(magnitude), kBias - 1 + M)));
    }
    return sign | (code > LARGEST ? ABOVE : code);
  }

  static float decode(unsigned code) {
    const unsigned magnitude = code & (kSign - 1);
    float value;
    if (magnitude > LARGEST) {
      value = ABOVE > LARGEST && magnitude == ABOVE ? INFINITY : NAN;
    } else if (magnitude >> M) {
      value = bit_cast<float>((magnitude << (23 - M)) + (static_cast<uint32_t>(127 - kBias) << 23));
    } else {
      value = std::ldexp(static_cast<float>(magnitude), 1 - kBias - M);
    }
    return code & kSign ? -value : value;
  }
};

// The float next to `value` toward zero, its last bit set if anything was cut off. Rounding that to
// a narrower format is rounding `value` itself, in any direction.
inline float round_to_odd(double value) {
  const float near = static_cast<float>(value);
  if (value != value || static_cast<double>(near) == value) return near;
  const uint32_t away = std::fabs(static_cast<double>(near)) > std::fabs(value);
  return bit_cast<float>((bit_cast<uint32_t>(near) - away) | 1);
}
// a + b in double, rounded to odd. Exact arithmetic of narrower types starts here.
inline double add_to_odd(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double from_b = sum - a, error = (a - (sum - from_b)) + (b - from_b);
  uint64_t bits = bit_cast<uint64_t>(sum);
  if (error == 0 || bits & 1) return sum;
  return bit_cast<double>(bits + ((error > 0) == (sum > 0) ? 1 : -1));
}

using F16 = Format<5, 10, 0x7bff, 0x7c00, 0x7fff>;
using E4M3 = Format<4, 3, 0x7e, 0x7e, 0x7f>;
using E5M2 = Format<5, 2, 0x7b, 0x7b, 0x7f>;
// No infinities and no NaNs: a NaN becomes the largest number.
using E2M1 = Format<2, 1, 7, 7, 7>;
using E2M3 = Format<2, 3, 0x1f, 0x1f, 0x1f>;
using E3M2 = Format<3, 2, 0x1f, 0x1f, 0x1f>;

// e5m2 has infinities although conversions to it saturate.
inline float decode_e5m2(unsigned code) { return F16::decode(code << 8); }

// Through the compiler's own half type where the machine converts it in one instruction.
#if defined(__F16C__) && defined(__FLT16_MAX__) && !defined(VGPU_PORTABLE)
inline float half_to_float(uint16_t code) { return bit_cast<_Float16>(code); }
inline uint16_t float_to_half(float value) {
  return value == value ? bit_cast<uint16_t>(static_cast<_Float16>(value)) : 0x7fff;
}
#else
inline float half_to_float(uint16_t code) {
  if ((code & 0x7fff) <= 0x7c00) return F16::decode(code);
  return bit_cast<float>((code & 0x8000u) << 16 | 0x7fc00000u | (code & 0x3ffu) << 13);
}
inline uint16_t float_to_half(float value) { return static_cast<uint16_t>(F16::encode(value)); }
#endif

inline float bf16_to_float(uint16_t code) {
  return bit_cast<float>(static_cast<uint32_t>(code) << 16);
}

inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A stored narrow number that computes in float and rounds once per operation. For + - * / of two
// such numbers that equals the correctly rounded narrow result (24 >= 2 * 11 + 2 bits).
template <class Self, class Bits, float (*Decode)(Bits), Bits (*Encode)(float)>
struct Narrow {
  Bits bits;

  Narrow() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  explicit Narrow(T value) : bits(Encode(static_cast<float>(value))) {}
  operator float() const { return Decode(bits); }

  static Self bitcast(Bits code) {
    Self self;
    self.bits = code;
    return self;
  }
  Bits raw() const { return bits; }
  Bits& storage() { return bits; }

#define VGPU_NARROW_OPERATOR(OP)                                                            \
  friend Self operator OP(Self a, Self b) { return Self(float(a) OP float(b)); }            \
  Self& operator OP##=(Self b) { return static_cast<Self&>(*this) = Self(float(*this) OP float(b)); }
  VGPU_NARROW_OPERATOR(+)
  VGPU_NARROW_OPERATOR(-)
  VGPU_NARROW_OPERATOR(*)
  VGPU_NARROW_OPERATOR(/)
#undef VGPU_NARROW_OPERATOR
  friend Self operator-(Self a) { return bitcast(a.bits ^ (Bits(1) << (8 * sizeof(Bits) - 1))); }
};

inline float decode_e4m3_byte(uint8_t code) { return E4M3::decode(code); }
inline float decode_e5m2_byte(uint8_t code) { return decode_e5m2(code); }
inline uint8_t encode_e4m3_byte(float v) { return static_cast<uint8_t>(E4M3::encode(v)); }
inline uint8_t encode_e5m2_byte(float v) { return static_cast<uint8_t>(E5M2::encode(v)); }

// tf32 keeps a float's storage, of which the upper 19 bits count. Conversion adds half a unit of
// them and leaves the rest for the reader to drop, as CUTLASS does: ties go away from zero.
inline float tf32_to_float(uint32_t bits) { return bit_cast<float>(bits & 0xffffe000u); }
inline uint32_t float_to_tf32(float value) {
  return bit_cast<uint32_t>(value) + (std::isfinite(value) ? 0x1000u : 0u);
}

}  // namespace vgpu

// CUDA has a native and a CUTLASS type for each 16-bit format; both hold the same bits, and here
// they are one type.
struct __nv_bfloat16
    : vgpu::Narrow<__nv_bfloat16, uint16_t, vgpu::bf16_to_float, vgpu::float_to_bf16> {
  using Narrow::Narrow;
  // CUTLASS's type, the one generated code casts to, cuts integers off instead of rounding them.
  template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
  explicit __nv_bfloat16(T value) {
    bits = static_cast<uint16_t>(vgpu::bit_cast<uint32_t>(static_cast<float>(value)) >> 16);
  }
  const __nv_bfloat16& to_nv_bfloat16() const { return *this; }
};
struct __half : vgpu::Narrow<__half, uint16_t, vgpu::half_to_float, vgpu::float_to_half> {
  using Narrow::Narrow;
  const __half& to_half() const { return *this; }
};
using bfloat16_t = __nv_bfloat16;
using half = __half;
using half_t = __half;
using __nv_bfloat16_raw = __nv_bfloat16;
using __half_raw = __half;

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
using __half2_raw = __half2;
using __nv_bfloat162_raw = __nv_bfloat162;

namespace tl {
struct float_e4m3_t
    : vgpu::Narrow<float_e4m3_t, uint8_t, vgpu::decode_e4m3_byte, vgpu::encode_e4m3_byte> {
  using Narrow::Narrow;
  explicit float_e4m3_t(__nv_bfloat16 v) : Narrow(float(v)) {}
  explicit float_e4m3_t(__half v) : Narrow(float(v)) {}
};
struct float_e5m2_t
    : vgpu::Narrow<float_e5m2_t, uint8_t, vgpu::decode_e5m2_byte, vgpu::encode_e5m2_byte> {
  using Narrow::Narrow;
  explicit float_e5m2_t(__nv_bfloat16 v) : Narrow(float(v)) {}
  explicit float_e5m2_t(__half v) : Narrow(float(v)) {}
};
struct tfloat32_t
    : vgpu::Narrow<tfloat32_t, uint32_t, vgpu::tf32_to_float, vgpu::float_to_tf32> {
  using Narrow::Narrow;
  explicit tfloat32_t(__nv_bfloat16 v) : Narrow(float(v)) {}
};
}  // namespace tl
using tl::tfloat32_t;

namespace cutlass {
using ::bfloat16_t;
using ::half_t;
using float_e4m3_t = tl::float_e4m3_t;
using float_e5m2_t = tl::float_e5m2_t;
using tl::tfloat32_t;
}  // namespace cutlass
namespace cute {
using tl::float_e4m3_t;
using tl::float_e5m2_t;
}  // namespace cute

namespace std {
#define VGPU_LIMITS(T, LOWEST, LARGEST, INFINITE, NOT_A_NUMBER)                             \
  template <>                                                                               \
  struct numeric_limits<T> {                                                                \
    static constexpr bool is_specialized = true, is_integer = false, has_infinity = true;   \
    static T lowest() { return T::bitcast(LOWEST); }                                        \
    static T max() { return T::bitcast(LARGEST); }                                          \
    static T infinity() { return T::bitcast(INFINITE); }                                    \
    static T quiet_NaN() { return T::bitcast(NOT_A_NUMBER); }                               \
  };
VGPU_LIMITS(__half, 0xfbff, 0x7bff, 0x7c00, 0x7fff)
VGPU_LIMITS(__nv_bfloat16, 0xff7f, 0x7f7f, 0x7f80, 0x7fff)
#undef VGPU_LIMITS
}  // namespace std
