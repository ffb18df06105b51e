// ldmatrix and stmatrix: a warp moves 8x8 matrices between shared memory and registers.
#pragma once
#include "vgpu/runtime.h"

namespace vgpu {

typedef uint16_t Bits8 __attribute__((vector_size(16)));
typedef uint32_t Words4 __attribute__((vector_size(16)));

VGPU_LEAF inline void transpose(Words4 (&m)[4]) {
  const Words4 low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, left = {0, 1, 4, 5}, right = {2, 3, 6, 7};
  const Words4 a = __builtin_shuffle(m[0], m[1], low), b = __builtin_shuffle(m[2], m[3], low);
  const Words4 c = __builtin_shuffle(m[0], m[1], high), d = __builtin_shuffle(m[2], m[3], high);
  m[0] = __builtin_shuffle(a, b, left);
  m[1] = __builtin_shuffle(a, b, right);
  m[2] = __builtin_shuffle(c, d, left);
  m[3] = __builtin_shuffle(c, d, right);
}

VGPU_LEAF inline void transpose(Bits8 (&m)[8]) {
  // Interleaving rows i and i + 4 rotates the bits of (row, column) by one; three times is half round.
  const Bits8 low = {0, 8, 1, 9, 2, 10, 3, 11}, high = {4, 12, 5, 13, 6, 14, 7, 15};
  VGPU_UNROLL
  for (int round = 0; round < 3; ++round) {
    Bits8 next[8];
    VGPU_UNROLL
    for (int i = 0; i < 4; ++i) {
      next[2 * i] = __builtin_shuffle(m[i], m[i + 4], low);
      next[2 * i + 1] = __builtin_shuffle(m[i], m[i + 4], high);
    }
    VGPU_UNROLL
    for (int i = 0; i < 8; ++i) m[i] = next[i];
  }
}

// Count 8x8 matrices of 16-bit elements. Lane 8i + r holds the address of row r of matrix i. Lane l's
// register i holds elements 2(l%4) and 2(l%4)+1 of row l/4 of matrix i, or of the transposed matrix.

struct MatrixOperand {
  void* row;
  uint32_t* registers;
};

template <int Count, bool Transposed, bool Store>
struct MatrixWork {
  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, Store ? "stmatrix" : "ldmatrix");
    void* rows[8 * Count];
    for (int i = 0; i < 8 * Count; ++i) rows[i] = operand_of<MatrixOperand>(site, i).row;
    const auto registers = [&site](int lane) VGPU_LEAF {
      return operand_of<MatrixOperand>(site, lane).registers;
    };
    if constexpr (Store) store(rows, registers);
    else load(rows, registers);
  }

  // registers(lane): where those of a lane are.
  template <class Registers>
  VGPU_LEAF static void load(void* const (&rows)[8 * Count], Registers registers) {
    vgpu_check_rows(rows, Count, false);
    Bits8 matrix[4][8] = {};
    for (int i = 0; i < Count; ++i) {
      VGPU_UNROLL
      for (int r = 0; r < 8; ++r) std::memcpy(&matrix[i][r], rows[8 * i + r], 16);
      if (Transposed) transpose(matrix[i]);
    }
    for (int g = 0; g < 8; ++g) {
      Words4 word[4];  // a row of each matrix, then the registers of each lane
      VGPU_UNROLL
      for (int i = 0; i < 4; ++i) word[i] = reinterpret_cast<Words4>(matrix[i][g]);
      transpose(word);
      VGPU_UNROLL
      for (int t = 0; t < 4; ++t) std::memcpy(registers(4 * g + t), &word[t], 4 * Count);
    }
  }

  template <class Registers>
  VGPU_LEAF static void store(void* const (&rows)[8 * Count], Registers registers) {
    vgpu_check_rows(rows, Count, true);
    Bits8 matrix[4][8];
    for (int g = 0; g < 8; ++g) {
      Words4 word[4] = {};
      VGPU_UNROLL
      for (int t = 0; t < 4; ++t) std::memcpy(&word[t], registers(4 * g + t), 4 * Count);
      transpose(word);
      VGPU_UNROLL
      for (int i = 0; i < 4; ++i) matrix[i][g] = reinterpret_cast<Bits8>(word[i]);
    }
    for (int i = 0; i < Count; ++i) {
      if (Transposed) transpose(matrix[i]);
      VGPU_UNROLL
      for (int r = 0; r < 8; ++r) std::memcpy(rows[8 * i + r], &matrix[i][r], 16);
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
      vgpu_check_rows(reinterpret_cast<void* const*>(columns), 1, true);
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
  VGPU_FROM_SM90 inline void ptx_stmatrix_##NAME(const void* row, const V&... values) {                    \
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
  VGPU_ONLY_SM100A inline void ptx_stmatrix_m16n8_x##COUNT##_trans(const void* row,         \
                                                                   const V&... values) {    \
    vgpu::store_byte_matrix(row, values...);                                                \
  }
VGPU_STMATRIX_BYTES(1)
VGPU_STMATRIX_BYTES(2)
VGPU_STMATRIX_BYTES(4)
#undef VGPU_STMATRIX_BYTES

}  // namespace tl
