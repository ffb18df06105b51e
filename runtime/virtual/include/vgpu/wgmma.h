// wgmma of sm_90a: matrix multiply of a warpgroup with operands in shared memory.
//
// Each warp computes its own 16 of the 64 rows when its 32 lanes have come, as the hardware lets
// warps of a group drift apart. Operands are read through real descriptors: start address, strides
// and swizzle mode decide which bytes of shared memory an element is.
#pragma once
#include "vgpu/counting.h"
#include "vgpu/operand.h"

namespace tl {

// The 64-bit matrix descriptor of the PTX manual. Addresses and offsets in units of 16 bytes.
struct GmmaDescriptor {
  uint64_t bits = 0;

  operator uint64_t() const { return bits; }
  // Generated code steps through a tile by adding to the start address.
  template <class T>
  GmmaDescriptor operator+(T offset) const {
    GmmaDescriptor moved = *this;
    moved.advance(static_cast<uint32_t>(offset));
    return moved;
  }
  void advance(uint32_t units) {
    bits = (bits & ~uint64_t(0xffffffff)) | static_cast<uint32_t>(bits + units);
  }
};

template <int layout = 0, int leading_offset = 0, int stride_offset = 0, class T>
inline void initialize_wgmma_descriptor(GmmaDescriptor& descriptor, T* start) {
  static_assert(layout >= 0 && layout < 4, "wgmma has four swizzle modes");
  descriptor.bits = uint64_t(vgpu_shared_address(start) >> 4 & 0x3fff) |
                    uint64_t(leading_offset & 0x3fff) << 16 |
                    uint64_t(stride_offset & 0x3fff) << 32 | uint64_t(layout) << 62;
}

template <class T>
inline void increase_descriptor_offset(GmmaDescriptor& descriptor, T bytes) {
  descriptor.advance(static_cast<uint32_t>(bytes >> 4));
}

}  // namespace tl

namespace vgpu {

VGPU_LEAF inline OperandLayout wgmma_operand(uint64_t descriptor) {
  if (descriptor >> 49 & 7) vgpu_fail("wgmma descriptor with a base offset is not modelled");
  return {static_cast<uint32_t>(descriptor & 0x3fff) << 4,
          static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4,
          static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4,
          descriptor >> 62 == 0 ? 16u : 256u >> (descriptor >> 62)};
}

// Element (line, k) of the operand goes to place(line, k), for lines first .. first + Lines.
template <class T, int Lines, int K, class Place>
VGPU_LEAF inline void gather(uint64_t descriptor, bool mn_major, uint32_t first, Place place) {
  const OperandLayout layout = wgmma_operand(descriptor);
  constexpr int kChunk = 16 / sizeof(T);
  for (int major = 0; major < (mn_major ? K : Lines); ++major)
    for (int minor = 0; minor < (mn_major ? Lines : K); minor += kChunk) {
      T part[kChunk];
      const uint32_t line = static_cast<uint32_t>(major) + (mn_major ? 0 : first);
      const uint32_t along = static_cast<uint32_t>(minor) + (mn_major ? first : 0);
      std::memcpy(static_cast<void*>(part), layout.chunk(mn_major, line, along / kChunk), 16);
      for (int i = 0; i < kChunk; ++i)
        (mn_major ? place(minor + i, major) : place(major, minor + i)) = part[i];
    }
}

// One wgmma of one warp: everything it needs after its lanes have gone on.
struct WgmmaRecord {
  uint64_t a, b;
  const uint32_t* a_registers[kWarp];  // null: A comes from shared memory
  void* c[kWarp];
  uint32_t warp;  // in its group
  bool accumulate;
};

struct WgmmaOperand {
  uint64_t a, b;
  const uint32_t* a_registers;
  void* c;
  bool accumulate;
};

template <class A, class B, class C, int N, int K, bool AMnMajor, bool BMnMajor, int Sign>
struct WgmmaWork {
  static constexpr int kPack = 4 / sizeof(A);

  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, "wgmma");
    const auto& first = operand_of<WgmmaOperand>(site, 0);
    WgmmaRecord record{first.a, first.b, {}, {}, vgpu_self().warp->index % 4, first.accumulate};
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& me = operand_of<WgmmaOperand>(site, lane);
      if (me.a != first.a || me.b != first.b || me.accumulate != first.accumulate)
        vgpu_fail("wgmma: lanes of a warp disagree about the descriptors");
      record.a_registers[lane] = me.a_registers;
      record.c[lane] = me.c;
    }
    Registers registers;
    for (int lane = 0; lane < kWarp; ++lane) {
      registers.written[lane] = record.c[lane];
      registers.read[lane] = record.a_registers[lane];
    }
    registers.written_bytes = N / 2 * sizeof(C);
    registers.read_bytes = record.a_registers[0] ? 16 * K / kWarp * sizeof(A) : 0;
    vgpu_defer(perform, &record, sizeof record, &registers);
  }

  VGPU_LEAF static void perform(const void* memory) {
    const auto& record = *static_cast<const WgmmaRecord*>(memory);
    alignas(64) A a[16][K];
    if (record.a_registers[0]) {
      for (int lane = 0; lane < kWarp; ++lane)
        for (int r = 0; r < K / kPack / 2; ++r)
          std::memcpy(static_cast<void*>(&a[lane / 4 + 8 * (r % 2)]
                                           [(lane % 4 + 4 * (r / 2)) * kPack]),
                      record.a_registers[lane] + r, 4);
    } else {
      gather<A, 16, K>(record.a, AMnMajor, record.warp * 16,
                       [&](int m, int k) VGPU_LEAF -> A& { return a[m][k]; });
    }
    if (Sign < 0)  // of A's elements, so that a sum that is zero stays +0
      for (auto& row : a)
        for (A& element : row) reinterpret_cast<uint8_t*>(&element)[sizeof(A) - 1] ^= 0x80;
    for (int n = 0; n < N; n += 8) {
      alignas(64) B b[K][8];
      gather<B, 8, K>(record.b, BMnMajor, static_cast<uint32_t>(n),
                      [&](int column, int k) VGPU_LEAF -> B& { return b[k][column]; });
      Wide8<A> sum[16] = {};
      if (record.accumulate) exchange<false>(record, n, sum);
      multiply(a, b, sum);
      exchange<true>(record, n, sum);
    }
  }

 private:
  // Element i of a lane: row lane/4 + 8(i/2%2) of the warp's 16, column 8(i/4) + 2(lane%4) + i%2.
  template <bool Store>
  VGPU_LEAF static void exchange(const WgmmaRecord& record, int n, Wide8<A> (&sum)[16]) {
    for (int lane = 0; lane < kWarp; ++lane) {
      C* c = static_cast<C*>(record.c[lane]) + n / 2;
      for (int i = 0; i < 4; ++i) {
        auto& row = sum[lane / 4 + 8 * (i / 2)];
        const int column = 2 * (lane % 4) + i % 2;
        if (Store) {
          c[i] = C(row[column]);
        } else {
          row[column] = c[i];
        }
      }
    }
  }
};

struct WgmmaCommit {
  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, "wgmma.commit_group");
    vgpu_defer_commit();
  }
};

struct WgmmaWait {
  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, "wgmma.wait_group");
    vgpu_defer_wait(operand_of<int>(site, 0));
  }
};

template <tl::DataType AType, tl::DataType BType, tl::DataType CType, int M, int N, int K,
          bool AMnMajor, bool BMnMajor, int ScaleA, int ScaleB>
inline void wgmma(WgmmaOperand operand) {
  using A = typename MmaType<AType>::type;
  static_assert(M == 64 && N % 8 == 0 && N >= 8 && N <= 256 && K * sizeof(A) == 32 &&
                    mma_modelled(AType, BType, CType, K),
                "the virtual GPU does not model this wgmma");
  static_assert(sizeof(A) == 2 || (!AMnMajor && !BMnMajor),
                "only 16-bit operands of wgmma may be MN-major");
  static_assert((ScaleA == 1 || ScaleA == -1) && (ScaleB == 1 || ScaleB == -1),
                "wgmma scales by +1 or -1");
  static_assert(ScaleA * ScaleB == 1 || CType != tl::DataType::kInt32,
                "wgmma of integers scales by +1 only");
  // Of a warp: 16 rows of A, each 32 bytes; B, which four warps share, with the first of them.
  count_matrix(MatrixUnit::kWgmma, matrix_type(AType), 2 * 16 * N * K,
               (operand.a_registers ? 0 : 16 * 32) + (thread_index() / kWarp % 4 ? 0 : N * 32));
  rendezvous<WgmmaWork<A, typename MmaType<BType>::type, typename MmaType<CType>::type, N, K,
                       AMnMajor, BMnMajor, ScaleA * ScaleB>>("wgmma", kFullMask, operand);
}

}  // namespace vgpu

namespace tl {

template <DataType AType, DataType BType, DataType CType, int M, int N, int K, bool AMnMajor,
          bool BMnMajor, int ScaleA = 1, int ScaleB = 1>
VGPU_ONLY_SM90A
inline void wgmma_ss(uint64_t a, uint64_t b, uint32_t* c, bool accumulate) {
  vgpu::wgmma<AType, BType, CType, M, N, K, AMnMajor, BMnMajor, ScaleA, ScaleB>(
      {a, b, nullptr, c, accumulate});
}
template <DataType AType, DataType BType, DataType CType, int M, int N, int K, bool AMnMajor,
          bool BMnMajor, int ScaleA = 1, int ScaleB = 1>
VGPU_ONLY_SM90A
inline void wgmma_rs(const uint32_t* a, uint64_t b, uint32_t* c, bool accumulate) {
  static_assert(!AMnMajor, "register operands of wgmma are K-major");
  vgpu::wgmma<AType, BType, CType, M, N, K, AMnMajor, BMnMajor, ScaleA, ScaleB>(
      {0, b, a, c, accumulate});
}

VGPU_ONLY_SM90A
inline void warpgroup_commit_batch() {
  int nothing = 0;
  vgpu::rendezvous<vgpu::WgmmaCommit>("wgmma.commit_group", vgpu::kFullMask, nothing);
}
template <int pending>
VGPU_ONLY_SM90A
inline void warpgroup_wait() {
  int groups = pending;
  vgpu::rendezvous<vgpu::WgmmaWait>("wgmma.wait_group", vgpu::kFullMask, groups);
}
template <int pending>
VGPU_ONLY_SM90A
inline void wait_wgmma() {
  warpgroup_wait<pending>();
}

// Fences order accesses the virtual GPU already performs in order.
VGPU_ONLY_SM90A
inline void warpgroup_arrive() { vgpu::compiler_fence(); }
template <class T>
inline void warpgroup_fence_operand(T*, int) {
  vgpu::compiler_fence();
}

}  // namespace tl
