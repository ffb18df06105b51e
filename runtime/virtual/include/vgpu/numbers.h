// Narrow floating-point numbers: bit-exact conversions, round to nearest even.
#pragma once
#include <cmath>

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

using F16 = Format<5, 10, 0x7bff, 0x7c00, 0x7fff>;
using E4M3 = Format<4, 3, 0x7e, 0x7e, 0x7f>;
using E5M2 = Format<5, 2, 0x7b, 0x7b, 0x7f>;

// e5m2 has infinities although conversions to it saturate.
inline float decode_e5m2(unsigned code) { return F16::decode(code << 8); }

// Through the compiler's own half type where the machine converts it in one instruction.
#if defined(__F16C__) && defined(__FLT16_MAX__)
inline float half_to_float(uint16_t code) { return bit_cast<_Float16>(code); }
inline uint16_t float_to_half(float value) {
  return value == value ? bit_cast<uint16_t>(static_cast<_Float16>(value)) : 0x7fff;
}
#else
inline float half_to_float(uint16_t code) { return F16::decode(code); }
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

// tf32 keeps a float's storage; the tensor core reads the upper 19 bits.
inline float truncate_tf32(uint32_t bits) { return bit_cast<float>(bits & 0xffffe000u); }

}  // namespace vgpu

// CUDA has a native and a CUTLASS type for each 16-bit format; both hold the same bits, and here
// they are one type.
struct __nv_bfloat16
    : vgpu::Narrow<__nv_bfloat16, uint16_t, vgpu::bf16_to_float, vgpu::float_to_bf16> {
  using Narrow::Narrow;
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
}  // namespace tl

namespace cutlass {
using ::bfloat16_t;
using ::half_t;
using float_e4m3_t = tl::float_e4m3_t;
using float_e5m2_t = tl::float_e5m2_t;
}  // namespace cutlass
namespace cute {
using tl::float_e4m3_t;
using tl::float_e5m2_t;
}  // namespace cute

// --- 16-bit conversions under CUDA's names ----------------------------------------------------

inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16(v); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
  return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline float __half2float(__half v) { return v; }
inline __half __float2half(float v) { return __half(v); }
inline __half __float2half_rn(float v) { return __half(v); }
inline float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }

inline unsigned __pack_half2(__half x, __half y) { return unsigned(y.bits) << 16 | x.bits; }
inline unsigned __pack_half2(__nv_bfloat16 x, __nv_bfloat16 y) {
  return unsigned(y.bits) << 16 | x.bits;
}
inline unsigned __pack_nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return unsigned(y.bits) << 16 | x.bits;
}
