// mma.sync: warp-wide matrix fragments as the PTX manual lays them out.
#pragma once
#include "vgpu/ldmatrix.h"
#include "vgpu/numbers.h"

namespace vgpu {

// --- mma.sync -----------------------------------------------------------------------------------
// One rule covers every m16n8 shape. With P elements to a 32-bit register, g = lane/4, t = lane%4:
//   A register r: row g + 8(r%2),  columns (t + 4(r/2))P ...
//   B register r: column g,        rows    (t + 4r)P ...
//   C element e:  row g + 8(e/2),  column  2t + e%2
// Products are exact in float (or int); each C element sums them in ascending k, which real tensor
// cores do not promise: compare with a tolerance.

typedef float Float8 __attribute__((vector_size(32)));
typedef int Int8 __attribute__((vector_size(32)));

struct Tf32 {
  uint32_t bits;
};

template <class T>
VGPU_LEAF inline float widen(T v) {
  return float(v);
}
VGPU_LEAF inline float widen(Tf32 v) { return tf32_to_float(v.bits); }
VGPU_LEAF inline int widen(int v) { return v; }
VGPU_LEAF inline int widen(int8_t v) { return v; }
VGPU_LEAF inline int widen(uint8_t v) { return v; }

template <class T>
using Wide = decltype(widen(T{}));
template <class T>
using Wide8 = std::conditional_t<std::is_same_v<Wide<T>, float>, Float8, Int8>;

template <class T>
VGPU_LEAF inline Wide8<T> widen8(const T* p) {
  Wide8<T> wide;
  for (int i = 0; i < 8; ++i) wide[i] = widen(p[i]);
  return wide;
}
typedef uint64_t Pairs4 __attribute__((vector_size(32)));
typedef uint32_t Wider8 __attribute__((vector_size(32)));
VGPU_LEAF inline Float8 widen8(const bfloat16_t* p) {
  Bits8 bits;
  std::memcpy(&bits, p, sizeof bits);
  return reinterpret_cast<Float8>(__builtin_convertvector(bits, Wider8) << 16);
}
#if defined(__F16C__) && !defined(__clang__) && !defined(VGPU_PORTABLE)
VGPU_LEAF inline Float8 widen8(const half* p) {
  short bits __attribute__((vector_size(16)));
  std::memcpy(&bits, p, sizeof bits);
  return __builtin_ia32_vcvtph2ps256(bits);
}
#endif

// a * b + c rounded once. Products of two 8- or 16-bit floats are exact, so this is what separate
// rounding gives too, except where the product alone is too small or too large for a float.
VGPU_LEAF inline Float8 multiply_add(Float8 a, Float8 b, Float8 c) {
#if defined(__FMA__) && !defined(__clang__) && !defined(VGPU_PORTABLE)
  return __builtin_ia32_vfmaddps256(a, b, c);
#else
  for (int i = 0; i < 8; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}
VGPU_LEAF inline Int8 multiply_add(Int8 a, Int8 b, Int8 c) { return c + a * b; }

// c += a * b, each element of c summed in ascending k.
template <class T, class Vector, int K>
VGPU_LEAF inline void multiply_wide(const T (&a)[16][K], const Vector (&b)[K], Vector (&c)[16]) {
  constexpr int kRows = 8;  // sums that proceed side by side
  for (int m = 0; m < 16; m += kRows) {
    Vector sums[kRows];
    VGPU_UNROLL
    for (int r = 0; r < kRows; ++r) sums[r] = c[m + r];
    for (int k = 0; k < K; ++k) {
      VGPU_UNROLL
      for (int r = 0; r < kRows; ++r) sums[r] = multiply_add(a[m + r][k] - Vector{}, b[k], sums[r]);
    }
    VGPU_UNROLL
    for (int r = 0; r < kRows; ++r) c[m + r] = sums[r];
  }
}
template <class A, class B, int K>
VGPU_LEAF inline void multiply(const A (&a)[16][K], const B (&b)[K][8], Wide8<A> (&c)[16]) {
  Wide8<A> columns[K];
  for (int k = 0; k < K; ++k) columns[k] = widen8(b[k]);
  Wide<A> rows[16][K];
  for (int m = 0; m < 16; ++m) {
    if constexpr (K % 8 == 0) {
      for (int k = 0; k < K; k += 8) {
        const Wide8<A> part = widen8(&a[m][k]);
        std::memcpy(&rows[m][k], &part, sizeof part);
      }
    } else {
      for (int k = 0; k < K; ++k) rows[m][k] = widen(a[m][k]);
    }
  }
  multiply_wide(rows, columns, c);
}

struct MmaOperand {
  void* c;
  const void* a;
  const void* b;
};

template <class A, class B, class C, int K>
struct MmaWork {
  static constexpr int kPack = 4 / sizeof(A);  // elements to a register
  static constexpr int kARegisters = K / kPack / 2, kBRegisters = K / kPack / 4;
  static_assert(sizeof(A) == sizeof(B), "mma.sync operands have one width");

  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, "mma.sync");
    if constexpr (kHalf) return run_half(site);
    alignas(64) A a[16][K];
    alignas(64) B b[K][8];
    Wide8<A> c[16];
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& me = operand_of<MmaOperand>(site, lane);
      const int g = lane / 4, t = lane % 4;
      VGPU_UNROLL
      for (int r = 0; r < kARegisters; ++r)
        std::memcpy(static_cast<void*>(&a[g + 8 * (r % 2)][(t + 4 * (r / 2)) * kPack]),
                    static_cast<const uint32_t*>(me.a) + r, 4);
      VGPU_UNROLL
      for (int i = 0; i < kBRegisters * kPack; ++i)
        b[(t + 4 * (i / kPack)) * kPack + i % kPack][g] = static_cast<const B*>(me.b)[i];
      VGPU_UNROLL
      for (int e = 0; e < 4; ++e) c[g + 8 * (e / 2)][2 * t + e % 2] = static_cast<C*>(me.c)[e];
    }
    multiply(a, b, c);
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& me = operand_of<MmaOperand>(site, lane);
      const int g = lane / 4, t = lane % 4;
      VGPU_UNROLL
      for (int e = 0; e < 4; ++e) static_cast<C*>(me.c)[e] = C(c[g + 8 * (e / 2)][2 * t + e % 2]);
    }
  }

  // The instruction GEMM and attention live on: from registers to vectors without a detour through
  // arrays of elements. at(lane) is where the lane's registers are.
  static constexpr bool kHalf = sizeof(A) == 2 && K == 16 && std::is_same_v<C, float>;

  template <class At>
  VGPU_LEAF static void load_a(At at, float (&a)[16][16]) {
    for (int g = 0; g < 8; ++g) {
      Words4 word[4];  // the four registers of four lanes, then register by register
      VGPU_UNROLL
      for (int t = 0; t < 4; ++t) std::memcpy(&word[t], at(4 * g + t), 16);
      transpose(word);
      VGPU_UNROLL
      for (int r = 0; r < 4; ++r) {
        A row[8];
        std::memcpy(static_cast<void*>(row), &word[r], 16);
        const Float8 wide = widen8(row);
        std::memcpy(&a[g + 8 * (r % 2)][8 * (r / 2)], &wide, sizeof wide);
      }
    }
  }

  template <class At>
  VGPU_LEAF static void load_b(At at, Float8 (&b)[16]) {
    for (int t = 0; t < 4; ++t)
      for (int r = 0; r < 2; ++r) {
        Wider8 word;
        VGPU_UNROLL
        for (int g = 0; g < 8; ++g) word[g] = static_cast<const uint32_t*>(at(4 * g + t))[r];
        VGPU_UNROLL
        for (int i = 0; i < 2; ++i) {
          A column[8];
          const Bits8 bits = __builtin_convertvector(word >> 16 * i & 0xffff, Bits8);
          std::memcpy(static_cast<void*>(column), &bits, sizeof bits);
          b[2 * (t + 4 * r) + i] = widen8(column);
        }
      }
  }

  template <class At>
  VGPU_LEAF static void load_c(At at, Float8 (&c)[16]) {
    for (int g = 0; g < 8; ++g) {
      Pairs4 pair[2];
      VGPU_UNROLL
      for (int i = 0; i < 8; ++i)
        pair[i / 4][i % 4] = static_cast<const uint64_t*>(at(4 * g + i % 4))[i / 4];
      c[g] = reinterpret_cast<Float8>(pair[0]);
      c[g + 8] = reinterpret_cast<Float8>(pair[1]);
    }
  }

  template <class At>
  VGPU_LEAF static void store_c(At at, const Float8 (&c)[16]) {
    for (int g = 0; g < 8; ++g) {
      uint64_t* lane[4];  // looked up before the stores, which could be of anything
      VGPU_UNROLL
      for (int t = 0; t < 4; ++t) lane[t] = static_cast<uint64_t*>(at(4 * g + t));
      VGPU_UNROLL
      for (int i = 0; i < 8; ++i)
        lane[i % 4][i / 4] = reinterpret_cast<Pairs4>(c[g + 8 * (i / 4)])[i % 4];
    }
  }

  VGPU_LEAF static void run_half(const Site& site) {
    alignas(32) float a[16][16];
    Float8 b[16], c[16];
    const auto at_c = [&](int lane) VGPU_LEAF { return operand_of<MmaOperand>(site, lane).c; };
    load_a([&](int lane) VGPU_LEAF { return operand_of<MmaOperand>(site, lane).a; }, a);
    load_b([&](int lane) VGPU_LEAF { return operand_of<MmaOperand>(site, lane).b; }, b);
    load_c(at_c, c);
    multiply_wide(a, b, c);
    store_c(at_c, c);
  }
};

}  // namespace vgpu

namespace tl {

enum class DataType : int {
  kInt4, kUInt4, kInt8, kUInt8, kInt16, kUInt16, kInt32, kUInt32, kInt64, kUInt64,
  kFloat8_e4m3, kFloat8_e5m2, kFloat16, kBFloat16, kFloat16x2, kFloat32, kTensorFloat32, kFloat64,
  kBit1, kBit8, kBit16, kBit32, kBit64, kFloat6_e2m3fn, kFloat6_e3m2fn, kFloat4_e2m1fn,
};

}  // namespace tl

namespace vgpu {

template <tl::DataType>
struct MmaType;
#define VGPU_MMA_TYPE(NAME, ...)                                                            \
  template <>                                                                               \
  struct MmaType<tl::DataType::NAME> {                                                      \
    using type = __VA_ARGS__;                                                               \
  };
VGPU_MMA_TYPE(kInt8, int8_t)
VGPU_MMA_TYPE(kUInt8, uint8_t)
VGPU_MMA_TYPE(kInt32, int)
VGPU_MMA_TYPE(kFloat8_e4m3, tl::float_e4m3_t)
VGPU_MMA_TYPE(kFloat8_e5m2, tl::float_e5m2_t)
VGPU_MMA_TYPE(kFloat16, half)
VGPU_MMA_TYPE(kBFloat16, bfloat16_t)
VGPU_MMA_TYPE(kFloat32, float)
VGPU_MMA_TYPE(kTensorFloat32, Tf32)

constexpr bool is_float8(tl::DataType t) {
  return t == tl::DataType::kFloat8_e4m3 || t == tl::DataType::kFloat8_e5m2;
}

// The type pairs of the PTX manual that the fast path multiplies.
constexpr bool mma_modelled(tl::DataType a, tl::DataType b, tl::DataType c, int k) {
  using D = tl::DataType;
  if (is_float8(a) && is_float8(b)) return k == 32 && (c == D::kFloat32 || c == D::kFloat16);
  if (a != b) return false;
  switch (a) {
    case D::kFloat16: return (k == 8 || k == 16) && (c == D::kFloat32 || c == D::kFloat16);
    case D::kBFloat16: return k == 16 && c == D::kFloat32;
    case D::kTensorFloat32: return (k == 4 || k == 8) && c == D::kFloat32;
    case D::kInt8:
    case D::kUInt8: return k == 32 && c == D::kInt32;
    default: return false;
  }
}

}  // namespace vgpu
