// mma.sync: which shapes and types exist, and those the fast path of matrix.h leaves out.
#pragma once
#include "vgpu/counting.h"
#include "vgpu/fp4.h"

namespace vgpu {

// Elements of a 32-bit register that are narrower than a byte.
template <class T>
struct SubByte;
template <bool Signed>
struct Nibble {};
template <bool Signed>
struct SubByte<Nibble<Signed>> {
  using Wide = int;
  static constexpr int kBits = 4;
  VGPU_LEAF static int widen(uint32_t code) {
    return Signed ? (static_cast<int>(code) ^ 8) - 8 : static_cast<int>(code);
  }
};
struct Fp4 {};
template <>
struct SubByte<Fp4> {
  using Wide = float;
  static constexpr int kBits = 4;
  VGPU_LEAF static float widen(uint32_t code) { return fp4_to_float(code); }
};

// A matrix operand's registers, element by element: how many fill a register, and their values.
template <class T, class = void>
struct Register {
  using Storage = uint32_t;
  using Value = Wide<T>;
  static constexpr int kCount = 4 / sizeof(T);
  VGPU_LEAF static Value element(uint32_t bits, int i) {
    T parts[kCount];
    std::memcpy(static_cast<void*>(parts), &bits, 4);
    return widen(parts[i]);
  }
};
template <class T>
struct Register<T, std::void_t<typename SubByte<T>::Wide>> {
  using Storage = uint32_t;
  using Value = typename SubByte<T>::Wide;
  static constexpr int kCount = 32 / SubByte<T>::kBits;
  VGPU_LEAF static Value element(uint32_t bits, int i) {
    return SubByte<T>::widen(bits >> i * SubByte<T>::kBits & ((1u << SubByte<T>::kBits) - 1));
  }
};
template <>
struct Register<double> {
  using Storage = double;
  using Value = double;
  static constexpr int kCount = 1;
  VGPU_LEAF static double element(double value, int) { return value; }
};

// The rule of matrix.h for any type and for 8 rows as well as 16, through element-wise copies.
template <class A, class B, class C, int M, int K>
struct GenericMma {
  using RegisterA = Register<A>;
  using RegisterB = Register<B>;
  using Value = typename RegisterA::Value;
  static constexpr int kHalves = M / 8, kPack = RegisterA::kCount;
  static constexpr int kARegisters = kHalves * K / kPack / 4, kBRegisters = K / kPack / 4;

  struct Tile {
    Value a[M][K], b[K][8];

    VGPU_LEAF void load(const Site& site) {
      for (int lane = 0; lane < kWarp; ++lane) {
        const auto& me = operand_of<MmaOperand>(site, lane);
        const auto* a_registers = static_cast<const typename RegisterA::Storage*>(me.a);
        const auto* b_registers = static_cast<const typename RegisterB::Storage*>(me.b);
        const int g = lane / 4, t = lane % 4;
        for (int r = 0; r < kARegisters; ++r)
          for (int i = 0; i < kPack; ++i)
            a[g + 8 * (r % kHalves)][(t + 4 * (r / kHalves)) * kPack + i] =
                RegisterA::element(a_registers[r], i);
        for (int r = 0; r < kBRegisters; ++r)
          for (int i = 0; i < kPack; ++i)
            b[(t + 4 * r) * kPack + i][g] = RegisterB::element(b_registers[r], i);
      }
    }
  };

  VGPU_LEAF static C multiply_add(Value a, Value b, C c) {
    if constexpr (std::is_same_v<C, double>) return std::fma(a, b, c);
    else return C(c + a * b);
  }

  // Calls element(c, row, column) for every element of the accumulator.
  template <class Element>
  VGPU_LEAF static void for_each(const Site& site, Element element) {
    for (int lane = 0; lane < kWarp; ++lane) {
      C* c = static_cast<C*>(operand_of<MmaOperand>(site, lane).c);
      for (int e = 0; e < 2 * kHalves; ++e)
        element(c[e], lane / 4 + 8 * (e / 2), 2 * (lane % 4) + e % 2);
    }
  }

  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, "mma.sync");
    Tile tile;
    tile.load(site);
    for_each(site, [&tile](C& c, int row, int column) VGPU_LEAF {
      for (int k = 0; k < K; ++k) c = multiply_add(tile.a[row][k], tile.b[k][column], c);
    });
  }
};

VGPU_MMA_TYPE(kInt4, Nibble<true>)
VGPU_MMA_TYPE(kUInt4, Nibble<false>)
VGPU_MMA_TYPE(kFloat64, double)
VGPU_MMA_TYPE(kFloat4_e2m1fn, Fp4)
#undef VGPU_MMA_TYPE

// The shapes of the PTX manual that TileLang can emit.
constexpr bool mma_shape_modelled(tl::DataType a, tl::DataType b, tl::DataType c, int m, int k) {
  using D = tl::DataType;
  const bool int4 = a == D::kInt4 || a == D::kUInt4, int8 = a == D::kInt8 || a == D::kUInt8;
  if (m == 16 && !int4) return mma_modelled(a, b, c, k);
  if (a == D::kFloat64) return m == 8 && k == 4 && b == a && c == a;
  if (b != a || c != D::kInt32) return false;
  return m == 16 ? k == 32 || k == 64 : m == 8 && ((int4 && k == 32) || (int8 && k == 16));
}

// What one mma.sync of TileLang's does, once the lanes have met.
template <tl::DataType AType, tl::DataType BType, tl::DataType CType, int M, int N, int K, bool TransA,
          bool TransB, bool Saturate, class ARegister, class BRegister>
struct MmaInstruction {
  static_assert(N == 8 && !TransA && TransB && !Saturate &&
                    mma_shape_modelled(AType, BType, CType, M, K),
                "the virtual GPU does not model this mma.sync");
  static_assert(VGPU_FROM(89) || !is_float8(AType),
                VGPU_ARCH_NAME " lacks mma_sync of fp8, it exists from sm_89 on");
  using A = typename MmaType<AType>::type;
  using B = typename MmaType<BType>::type;
  using C = typename MmaType<CType>::type;
  static_assert(sizeof(ARegister) == sizeof(typename Register<A>::Storage) &&
                    sizeof(BRegister) == sizeof(ARegister),
                "operands are 32-bit registers, or doubles");
  static constexpr bool kFast =
      M == 16 && AType != tl::DataType::kInt4 && AType != tl::DataType::kUInt4;
  using Work = std::conditional_t<kFast, MmaWork<A, B, C, K>, GenericMma<A, B, C, M, K>>;
};

}  // namespace vgpu

namespace tl {

// c (registers of this lane) += a * b, c as float, int, double or packed half, a and b as 32-bit
// registers or doubles.
template <DataType AType, DataType BType, DataType CType, int M, int N, int K, bool TransA,
          bool TransB, bool Saturate = false, class CRegister, class ARegister, class BRegister>
inline void mma_sync(CRegister* c, const ARegister* a, const BRegister* b) {
  using Instruction = vgpu::MmaInstruction<AType, BType, CType, M, N, K, TransA, TransB, Saturate,
                                           ARegister, BRegister>;
  vgpu::count_matrix(vgpu::MatrixUnit::kMma, vgpu::matrix_type(AType), 2 * M * N * K);
  vgpu::MmaOperand operand{c, a, b};
  vgpu::rendezvous<typename Instruction::Work>("mma.sync", vgpu::kFullMask, operand);
}

// --- block-scaled mma.sync of sm_120a ----------------------------------------------------------

enum class SM120MmaBlockScaledKind : int { kMxf4nvf4 };
enum class SM120MmaScaleType : int { kUE4M3 };

}  // namespace tl

namespace vgpu {

struct ScaledMmaOperand : MmaOperand {
  const float* addend;
  uint32_t scale_a, scale_b;
  uint16_t thread_a, thread_b;
};

// m16n8k64 of e2m1 with an unsigned e4m3 scale for every 16 k of a row of A or column of B. Scales
// of a line are the bytes of one register: of A's rows g and g + 8 that of lanes 2 * thread_a and
// + 1 of the quad, of B's column g that of lane thread_b.
struct ScaledMma : GenericMma<Fp4, Fp4, float, 16, 64> {
  VGPU_LEAF static float scale(uint32_t bytes, int k) {
    return E4M3::decode(bytes >> k / 16 * 8 & 0x7f);
  }

  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, "mma.sync.block_scale");
    Tile tile;
    for (int lane = 0; lane < kWarp; ++lane) {
      // The base of the operand is what Tile::load reads.
      auto& me = operand_of<ScaledMmaOperand>(site, lane);
      const auto& first = operand_of<ScaledMmaOperand>(site, 0);
      if (me.thread_a != first.thread_a || me.thread_b != first.thread_b || me.thread_a > 1 ||
          me.thread_b > 3)
        vgpu_fail("mma.sync.block_scale takes scales of thread pair 0 or 1 for A and thread 0 to 3"
                  " for B, the same in all lanes, got %u and %u", me.thread_a, me.thread_b);
    }
    tile.load(site);
    const int pair = 2 * operand_of<ScaledMmaOperand>(site, 0).thread_a;
    const int single = operand_of<ScaledMmaOperand>(site, 0).thread_b;
    for (int row = 0; row < 16; ++row) {
      const int lane = row % 8 * 4 + pair + row / 8;
      for (int k = 0; k < 64; ++k)
        tile.a[row][k] *= scale(operand_of<ScaledMmaOperand>(site, lane).scale_a, k);
    }
    for (int column = 0; column < 8; ++column)
      for (int k = 0; k < 64; ++k)
        tile.b[k][column] *=
            scale(operand_of<ScaledMmaOperand>(site, column * 4 + single).scale_b, k);
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& me = operand_of<ScaledMmaOperand>(site, lane);
      for (int e = 0; e < 4; ++e) static_cast<float*>(me.c)[e] = me.addend[e];
    }
    for_each(site, [&tile](float& c, int row, int column) VGPU_LEAF {
      for (int k = 0; k < 64; ++k) c += tile.a[row][k] * tile.b[k][column];
    });
  }
};

}  // namespace vgpu

namespace tl {

template <SM120MmaBlockScaledKind Kind, int ScaleVectorSize, SM120MmaScaleType ScaleType>
VGPU_ONLY_SM120A
inline void sm120_mma_sync_blockscaled(float* d, const uint32_t* a, const uint32_t* b,
                                       const float* c, uint32_t scale_a, uint32_t scale_b,
                                       uint16_t byte_a = 0, uint16_t thread_a = 0,
                                       uint16_t byte_b = 0, uint16_t thread_b = 0) {
  static_assert(ScaleVectorSize == 4, "kind::mxf4nvf4 is modelled with scale_vec::4X");
  if (byte_a || byte_b)
    vgpu_fail("scale_vec::4X uses all bytes of a scale register: byte selectors are 0, got %u and %u",
              byte_a, byte_b);
  vgpu::count_matrix(vgpu::MatrixUnit::kMma, vgpu::MatrixType::kFp4, 2 * 16 * 8 * 64);
  vgpu::ScaledMmaOperand operand{{d, a, b}, c, scale_a, scale_b, thread_a, thread_b};
  vgpu::rendezvous<vgpu::ScaledMma>("mma.sync.block_scale", vgpu::kFullMask, operand);
}

}  // namespace tl
