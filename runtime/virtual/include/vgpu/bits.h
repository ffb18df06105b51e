// Integer and bit intrinsics, and packed 4-bit integers.
#pragma once
#include "vgpu/numbers.h"

inline int __float_as_int(float x) { return vgpu::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return vgpu::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return vgpu::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return vgpu::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return vgpu::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return vgpu::bit_cast<double>(x); }
inline int __double2hiint(double x) { return static_cast<int>(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return static_cast<int>(__double_as_longlong(x)); }
inline double __hiloint2double(int high, int low) {
  return vgpu::bit_cast<double>(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}

// Byte i of the result is byte `selector nibble i` of y:x; with the nibble's top bit, that byte's
// sign eight times.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> 4 * i & 15;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (nibble & 7) & 0xff);
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << 8 * i;
  }
  return result;
}

// The upper word of high:low shifted left, the lower one of it shifted right; `c` forms stop at 32.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((uint64_t(high) << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((uint64_t(high) << 32 | low) >> (by & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned by) {
  return by >= 32 ? low : __funnelshift_l(low, high, by);
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned by) {
  return by >= 32 ? high : __funnelshift_r(low, high, by);
}

// Position of the offset-th set bit at or above `base` (offset > 0) or at or below it (offset < 0);
// offset 0 asks whether bit `base` is set. All ones if there is none.
inline unsigned __fns(unsigned mask, unsigned base, int offset) {
  if (base > 31) return 0xffffffffu;
  if (offset == 0) return mask >> base & 1 ? base : 0xffffffffu;
  const int step = offset > 0 ? 1 : -1;
  for (int i = static_cast<int>(base); i >= 0 && i < 32; i += step)
    if (mask >> i & 1 && (offset -= step) == 0) return static_cast<unsigned>(i);
  return 0xffffffffu;
}

inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline long long __mul64hi(long long a, long long b) {
  return static_cast<long long>(static_cast<__int128>(a) * b >> 64);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
inline unsigned __sad(int a, int b, unsigned c) {
  return (a > b ? unsigned(a) - unsigned(b) : unsigned(b) - unsigned(a)) + c;
}
inline unsigned __usad(unsigned a, unsigned b, unsigned c) { return (a > b ? a - b : b - a) + c; }
inline int __hadd(int a, int b) { return static_cast<int>((int64_t(a) + b) >> 1); }
inline int __rhadd(int a, int b) { return static_cast<int>((int64_t(a) + b + 1) >> 1); }
inline unsigned __uhadd(unsigned a, unsigned b) { return unsigned((uint64_t(a) + b) >> 1); }
inline unsigned __urhadd(unsigned a, unsigned b) { return unsigned((uint64_t(a) + b + 1) >> 1); }

namespace vgpu {
// c plus the dot product of the Count elements of type A and B in two words, `first` of b's first.
template <class A, class B, int Count, class C>
inline C dot(uint32_t a, uint64_t b, C c) {
  A x[Count];
  B y[Count];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  for (int i = 0; i < Count; ++i) c += static_cast<C>(x[i]) * static_cast<C>(y[i]);
  return c;
}
}  // namespace vgpu

inline int __dp4a(int a, int b, int c) {
  return vgpu::dot<int8_t, int8_t, 4>(unsigned(a), unsigned(b), c);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  return vgpu::dot<uint8_t, uint8_t, 4>(a, b, c);
}
inline int __dp2a_lo(int a, int b, int c) {
  return vgpu::dot<int16_t, int8_t, 2>(unsigned(a), unsigned(b) & 0xffff, c);
}
inline int __dp2a_hi(int a, int b, int c) {
  return vgpu::dot<int16_t, int8_t, 2>(unsigned(a), unsigned(b) >> 16, c);
}
inline unsigned __dp2a_lo(unsigned a, unsigned b, unsigned c) {
  return vgpu::dot<uint16_t, uint8_t, 2>(a, b & 0xffff, c);
}
inline unsigned __dp2a_hi(unsigned a, unsigned b, unsigned c) {
  return vgpu::dot<uint16_t, uint8_t, 2>(a, b >> 16, c);
}

template <class In, class Out>
inline void DP4A(In* a, In* b, Out* c) {
  int words[3];
  std::memcpy(&words[0], a, 4);
  std::memcpy(&words[1], b, 4);
  std::memcpy(&words[2], c, 4);
  *c = __dp4a(words[0], words[1], words[2]);
}

// Two 4-bit integers in a byte, the first in the low half.
inline int8_t tl_pack_int4x2(int low, int high) {
  return static_cast<int8_t>((low & 15) | (high & 15) << 4);
}
inline uint8_t tl_pack_uint4x2(unsigned low, unsigned high) {
  return static_cast<uint8_t>((low & 15) | (high & 15) << 4);
}
inline unsigned tl_uint4_packed_load(const unsigned char* packed, int i) {
  return packed[i >> 1] >> (i & 1) * 4 & 15u;
}
inline int tl_int4_packed_load(const signed char* packed, int i) {
  const unsigned code = tl_uint4_packed_load(reinterpret_cast<const unsigned char*>(packed), i);
  return (static_cast<int>(code) ^ 8) - 8;
}
inline void tl_uint4_packed_store(unsigned char* packed, int i, unsigned v) {
  const int shift = (i & 1) * 4;
  packed[i >> 1] = static_cast<unsigned char>((packed[i >> 1] & ~(15u << shift)) | (v & 15) << shift);
}
inline void tl_int4_packed_store(signed char* packed, int i, int v) {
  tl_uint4_packed_store(reinterpret_cast<unsigned char*>(packed), i, static_cast<unsigned>(v));
}
