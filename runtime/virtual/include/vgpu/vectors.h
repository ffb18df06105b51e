// CUDA's built-in vector types, with CUDA's sizes and alignments.
#pragma once
#include "vgpu/platform.h"

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

#define VGPU_VECTORS(T, NAME, A2, A4)                                                       \
  struct NAME##1 { T x; };                                                                  \
  struct alignas(A2) NAME##2 { T x, y; };                                                   \
  struct NAME##3 { T x, y, z; };                                                            \
  struct alignas(A4) NAME##4 { T x, y, z, w; };                                             \
  inline NAME##1 make_##NAME##1(T x) { return {x}; }                                        \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                        \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

VGPU_VECTORS(signed char, char, 2, 4)
VGPU_VECTORS(unsigned char, uchar, 2, 4)
VGPU_VECTORS(short, short, 4, 8)
VGPU_VECTORS(unsigned short, ushort, 4, 8)
VGPU_VECTORS(int, int, 8, 16)
VGPU_VECTORS(unsigned int, uint, 8, 16)
VGPU_VECTORS(long long, longlong, 16, 16)
VGPU_VECTORS(unsigned long long, ulonglong, 16, 16)
VGPU_VECTORS(float, float, 8, 16)
VGPU_VECTORS(double, double, 16, 16)
#undef VGPU_VECTORS

using int4_t = int4;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace vgpu {

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  std::memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

// Lays `parts` out in order in the bytes of V: how generated code fills a wide vector from bytes,
// shorts or packed pairs.
template <class V, class E, class... Ts>
inline V pack(E first, Ts... rest) {
  const E parts[] = {first, static_cast<E>(rest)...};
  static_assert(sizeof(parts) == sizeof(V), "the parts must fill the vector exactly");
  V whole;
  std::memcpy(static_cast<void*>(&whole), parts, sizeof(V));
  return whole;
}

}  // namespace vgpu

// Wide vectors from narrow parts. The count of arguments and the type of the first decide, so a
// call that fits no layout does not compile.
#define VGPU_WIDE_MAKE(V, E)                                                                \
  template <class... Ts,                                                                    \
            class = std::enable_if_t<(sizeof...(Ts) + 2) * sizeof(E) == sizeof(V) &&        \
                                     (std::is_convertible_v<Ts, E> && ...)>>                \
  inline V make_##V(E a, E b, Ts... rest) {                                                 \
    return vgpu::pack<V, E>(a, b, rest...);                                                 \
  }
VGPU_WIDE_MAKE(int2, signed char)
VGPU_WIDE_MAKE(int4, signed char)
VGPU_WIDE_MAKE(int4, short)
VGPU_WIDE_MAKE(uint2, unsigned char)
VGPU_WIDE_MAKE(uint4, unsigned char)
VGPU_WIDE_MAKE(uint4, unsigned short)
VGPU_WIDE_MAKE(longlong4, int)
VGPU_WIDE_MAKE(longlong4, signed char)
VGPU_WIDE_MAKE(ulonglong4, unsigned char)
#undef VGPU_WIDE_MAKE

inline int make_int(signed char a, signed char b, signed char c, signed char d) {
  return vgpu::pack<int, signed char>(a, b, c, d);
}
inline unsigned make_uint(unsigned char a, unsigned char b, unsigned char c, unsigned char d) {
  return vgpu::pack<unsigned, unsigned char>(a, b, c, d);
}
template <class T>
inline unsigned pack_b8x4(T a, T b, T c, T d) {
  static_assert(sizeof(T) == 1, "pack_b8x4 takes bytes");
  return vgpu::pack<unsigned, T>(a, b, c, d);
}

namespace tl {

template <class V, class E, class... Ts>
inline V make_vec(E first, Ts... rest) {
  return vgpu::pack<V, E>(first, rest...);
}
// A vector of copies of `unit`.
template <class V, class U>
inline V broadcast(U unit) {
  static_assert(sizeof(V) % sizeof(U) == 0, "a vector is a whole number of units");
  V vector;
  for (size_t i = 0; i < sizeof(V); i += sizeof(U))
    std::memcpy(reinterpret_cast<char*>(&vector) + i, &unit, sizeof(U));
  return vector;
}

}  // namespace tl
