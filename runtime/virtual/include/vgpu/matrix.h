// ldmatrix, stmatrix and mma.sync: warp-wide matrix fragments as the PTX manual lays them out.
#pragma once
#include "vgpu/numbers.h"
#include "vgpu/runtime.h"

namespace vgpu {

// --- ldmatrix / stmatrix: Count 8x8 matrices of 16-bit elements --------------------------------
// Lane 8i + r holds the address of row r of matrix i. Lane l's register i holds elements 2(l%4)
// and 2(l%4)+1 of row l/4 of matrix i, or of the transposed matrix.

struct MatrixOperand {
  void* row;
  uint32_t* registers;
};

template <int Count, bool Transposed, bool Store>
struct MatrixWork {
  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, Store ? "stmatrix" : "ldmatrix");
    for (int matrix = 0; matrix < Count; ++matrix) {
      uint16_t* rows[8];
      for (int r = 0; r < 8; ++r) {
        void* row = operand_of<MatrixOperand>(site, matrix * 8 + r).row;
        rows[r] = static_cast<uint16_t*>(row);
      }
      vgpu_check_rows(reinterpret_cast<void* const*>(rows), Store);
      for (int lane = 0; lane < kWarp; ++lane) {
        uint32_t& fragment = operand_of<MatrixOperand>(site, lane).registers[matrix];
        for (int e = 0; e < 2; ++e) {
          const int i = lane / 4, j = 2 * (lane % 4) + e;
          uint16_t& element = Transposed ? rows[j][i] : rows[i][j];
          if (Store) {
            element = static_cast<uint16_t>(fragment >> 16 * e);
          } else {
            fragment = e ? fragment | uint32_t(element) << 16 : element;
          }
        }
      }
    }
  }
};

template <int Count, bool Transposed>
inline void load_matrix(const void* row, void* registers) {
  MatrixOperand operand{const_cast<void*>(row), static_cast<uint32_t*>(registers)};
  rendezvous<MatrixWork<Count, Transposed, false>>("ldmatrix", kFullMask, operand);
}

template <bool Transposed, class... Values>
inline void store_matrix(const void* row, Values... values) {
  uint32_t registers[] = {static_cast<uint32_t>(values)...};
  MatrixOperand operand{const_cast<void*>(row), registers};
  rendezvous<MatrixWork<sizeof...(Values), Transposed, true>>("stmatrix", kFullMask, operand);
}

// Count 16x8 matrices of bytes, stored as their transposes: 8 rows of 16 bytes, row c of matrix i at
// the address of lane 8i + c. Lane l's register i holds rows l/4 and l/4 + 8 of matrix i, columns
// 2(l%4) and 2(l%4) + 1, a row after the other.
template <int Count>
struct ByteMatrixWork {
  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, "stmatrix");
    for (int matrix = 0; matrix < Count; ++matrix) {
      uint8_t* columns[8];
      for (int c = 0; c < 8; ++c) {
        void* column = operand_of<MatrixOperand>(site, matrix * 8 + c).row;
        columns[c] = static_cast<uint8_t*>(column);
      }
      vgpu_check_rows(reinterpret_cast<void* const*>(columns), true);
      for (int lane = 0; lane < kWarp; ++lane) {
        const uint32_t fragment = operand_of<MatrixOperand>(site, lane).registers[matrix];
        for (int e = 0; e < 4; ++e)
          columns[2 * (lane % 4) + e % 2][lane / 4 + 8 * (e / 2)] =
              static_cast<uint8_t>(fragment >> 8 * e);
      }
    }
  }
};

template <class... Values>
inline void store_byte_matrix(const void* row, Values... values) {
  uint32_t registers[] = {static_cast<uint32_t>(values)...};
  MatrixOperand operand{const_cast<void*>(row), registers};
  rendezvous<ByteMatrixWork<sizeof...(Values)>>("stmatrix", kFullMask, operand);
}

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
typedef uint16_t Bits8 __attribute__((vector_size(16)));
typedef uint32_t Wider8 __attribute__((vector_size(32)));
VGPU_LEAF inline Float8 widen8(const bfloat16_t* p) {
  Bits8 bits;
  std::memcpy(&bits, p, sizeof bits);
  return reinterpret_cast<Float8>(__builtin_convertvector(bits, Wider8) << 16);
}
#if defined(__F16C__) && !defined(__clang__)
VGPU_LEAF inline Float8 widen8(const half* p) {
  short bits __attribute__((vector_size(16)));
  std::memcpy(&bits, p, sizeof bits);
  return __builtin_ia32_vcvtph2ps256(bits);
}
#endif

// a * b + c rounded once. Products of two 8- or 16-bit floats are exact, so this is what separate
// rounding gives too, except where the product alone is too small or too large for a float.
VGPU_LEAF inline Float8 multiply_add(Float8 a, Float8 b, Float8 c) {
#if defined(__FMA__) && !defined(__clang__)
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

typedef uint32_t Words4 __attribute__((vector_size(16)));
typedef uint64_t Pairs4 __attribute__((vector_size(32)));

VGPU_LEAF inline void transpose(Words4 (&m)[4]) {
  const Words4 low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, left = {0, 1, 4, 5}, right = {2, 3, 6, 7};
  const Words4 a = __builtin_shuffle(m[0], m[1], low), b = __builtin_shuffle(m[2], m[3], low);
  const Words4 c = __builtin_shuffle(m[0], m[1], high), d = __builtin_shuffle(m[2], m[3], high);
  m[0] = __builtin_shuffle(a, b, left);
  m[1] = __builtin_shuffle(a, b, right);
  m[2] = __builtin_shuffle(c, d, left);
  m[3] = __builtin_shuffle(c, d, right);
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
    if constexpr (sizeof(A) == 2 && K == 16 && std::is_same_v<C, float>) return run_half(site);
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
  // arrays of elements.
  VGPU_LEAF static void run_half(const Site& site) {
    alignas(32) float a[16][K];
    Float8 b[K], c[16];
    for (int g = 0; g < 8; ++g) {
      Words4 word[4];  // the four registers of four lanes, then register by register
      VGPU_UNROLL
      for (int t = 0; t < 4; ++t) std::memcpy(&word[t], operand_of<MmaOperand>(site, 4 * g + t).a, 16);
      transpose(word);
      VGPU_UNROLL
      for (int r = 0; r < 4; ++r) {
        A row[8];
        std::memcpy(static_cast<void*>(row), &word[r], 16);
        const Float8 wide = widen8(row);
        std::memcpy(&a[g + 8 * (r % 2)][8 * (r / 2)], &wide, sizeof wide);
      }
      Pairs4 pair[2];
      VGPU_UNROLL
      for (int i = 0; i < 8; ++i)
        pair[i / 4][i % 4] = static_cast<const uint64_t*>(operand_of<MmaOperand>(site, 4 * g + i % 4).c)[i / 4];
      c[g] = reinterpret_cast<Float8>(pair[0]);
      c[g + 8] = reinterpret_cast<Float8>(pair[1]);
    }
    for (int t = 0; t < 4; ++t)
      for (int r = 0; r < 2; ++r) {
        Wider8 word;
        VGPU_UNROLL
        for (int g = 0; g < 8; ++g)
          word[g] = static_cast<const uint32_t*>(operand_of<MmaOperand>(site, 4 * g + t).b)[r];
        VGPU_UNROLL
        for (int i = 0; i < 2; ++i) {
          A column[8];
          const Bits8 bits = __builtin_convertvector(word >> 16 * i & 0xffff, Bits8);
          std::memcpy(static_cast<void*>(column), &bits, sizeof bits);
          b[2 * (t + 4 * r) + i] = widen8(column);
        }
      }
    multiply_wide(a, b, c);
    for (int g = 0; g < 8; ++g)
      for (int half = 0; half < 2; ++half) {
        const Pairs4 pair = reinterpret_cast<Pairs4>(c[g + 8 * half]);
        VGPU_UNROLL
        for (int t = 0; t < 4; ++t)
          static_cast<uint64_t*>(operand_of<MmaOperand>(site, 4 * g + t).c)[half] = pair[t];
      }
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
    case D::kBFloat16: return (k == 8 || k == 16) && c == D::kFloat32;
    case D::kTensorFloat32: return (k == 4 || k == 8) && c == D::kFloat32;
    case D::kInt8:
    case D::kUInt8: return (k == 16 || k == 32) && c == D::kInt32;
    default: return false;
  }
}

}  // namespace vgpu

namespace tl {

#define VGPU_LDMATRIX(COUNT)                                                                \
  inline void ptx_ldmatrix_x##COUNT(const void* row, void* registers) {                     \
    vgpu::load_matrix<COUNT, false>(row, registers);                                        \
  }                                                                                         \
  inline void ptx_ldmatrix_x##COUNT##_trans(const void* row, void* registers) {             \
    vgpu::load_matrix<COUNT, true>(row, registers);                                         \
  }
VGPU_LDMATRIX(1)
VGPU_LDMATRIX(2)
VGPU_LDMATRIX(4)
#undef VGPU_LDMATRIX

#define VGPU_STMATRIX(NAME, COUNT, TRANSPOSED)                                              \
  template <class... V, class = std::enable_if_t<sizeof...(V) == COUNT>>                    \
  inline void ptx_stmatrix_##NAME(const void* row, const V&... values) {                    \
    vgpu::store_matrix<TRANSPOSED>(row, values...);                                         \
  }
VGPU_STMATRIX(x1, 1, false)
VGPU_STMATRIX(x2, 2, false)
VGPU_STMATRIX(x4, 4, false)
VGPU_STMATRIX(x1_trans, 1, true)
VGPU_STMATRIX(x2_trans, 2, true)
VGPU_STMATRIX(x4_trans, 4, true)
VGPU_STMATRIX(m8n8_x1, 1, false)
VGPU_STMATRIX(m8n8_x2, 2, false)
VGPU_STMATRIX(m8n8_x4, 4, false)
VGPU_STMATRIX(m8n8_x1_trans, 1, true)
VGPU_STMATRIX(m8n8_x2_trans, 2, true)
VGPU_STMATRIX(m8n8_x4_trans, 4, true)
#undef VGPU_STMATRIX

// stmatrix.m16n8.b8 of sm_100a, always transposed.
#define VGPU_STMATRIX_BYTES(COUNT)                                                          \
  template <class... V, class = std::enable_if_t<sizeof...(V) == COUNT>>                    \
  inline void ptx_stmatrix_m16n8_x##COUNT##_trans(const void* row, const V&... values) {    \
    vgpu::store_byte_matrix(row, values...);                                                \
  }
VGPU_STMATRIX_BYTES(1)
VGPU_STMATRIX_BYTES(2)
VGPU_STMATRIX_BYTES(4)
#undef VGPU_STMATRIX_BYTES

}  // namespace tl
