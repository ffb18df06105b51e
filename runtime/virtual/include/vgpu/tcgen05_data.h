// tcgen05.ld and tcgen05.st in the forms TileLang calls them.
#pragma once
#include "vgpu/tensor_memory.h"

namespace vgpu {

struct TensorAccessOperand {
  TensorAccess access;
  uint32_t* registers;
};

struct TensorAccessWork {
  VGPU_LEAF static void run(const Site& site) {
    const auto& first = operand_of<TensorAccessOperand>(site, 0);
    require_full_warp(site, first.access.store ? "tcgen05.st" : "tcgen05.ld");
    uint32_t* registers[kWarp];
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& me = operand_of<TensorAccessOperand>(site, lane);
      if (me.access.address != first.access.address)
        vgpu_fail("tcgen05.ld/st: lanes of a warp disagree about the address");
      registers[lane] = me.registers;
    }
    vgpu_tensor_access(first.access, registers);
  }
};

struct TensorWaitWork {
  VGPU_LEAF static void run(const Site& site) {
    const bool store = operand_of<bool>(site, 0);
    require_full_warp(site, store ? "tcgen05.wait::st" : "tcgen05.wait::ld");
    vgpu_tensor_wait(store);
  }
};

inline void tensor_wait(bool store) {
  rendezvous<TensorWaitWork>(store ? "tcgen05.wait::st" : "tcgen05.wait::ld", kFullMask, store);
}

constexpr int floor_power_of_two(int n) {
  int power = 1;
  while (power * 2 <= n) power *= 2;
  return power;
}

// Largest .num of a shape: 128 registers.
constexpr int tensor_access_limit(int bits) {
  return bits == 256 ? 32 : bits == 128 ? 64 : 128;
}

// N repetitions as the largest power of two an instruction has, then the rest. 32 lanes of the
// wider shapes take one instruction per half. The next piece lies as many columns on as the piece
// had repetitions, whatever the shape: so TileLang's helper has it.
template <bool Store, int Lanes, int Bits, int N, bool Packed, class T>
inline void tensor_access(uint32_t address, T* values) {
  static_assert(N > 0, "tcgen05.ld/st needs at least one repetition");
  constexpr int kLimit = tensor_access_limit(Bits);
  constexpr int kPiece = floor_power_of_two(N < kLimit ? N : kLimit);
  constexpr int kHalves = Lanes == 32 && Bits > 32 ? 2 : 1;
  for (int half = 0; half < kHalves; ++half) {
    TensorAccessOperand operand{
        {Store, Packed, Lanes / kHalves, Bits, kPiece, address + (uint32_t(half) << 20)}, nullptr};
    operand.registers = reinterpret_cast<uint32_t*>(values) +
                        static_cast<uint32_t>(half) * operand.access.registers();
    rendezvous<TensorAccessWork>(Store ? "tcgen05.st" : "tcgen05.ld", kFullMask, operand);
  }
  if constexpr (N > kPiece)
    tensor_access<Store, Lanes, Bits, N - kPiece, Packed>(address + kPiece,
                                                          values + kPiece * 4 / sizeof(T));
}

}  // namespace vgpu

namespace tl {

VGPU_ONLY_SM100A
inline void fence_view_async_tmem_load() { vgpu::tensor_wait(false); }
VGPU_ONLY_SM100A
inline void fence_view_async_tmem_store() { vgpu::tensor_wait(true); }

#define VGPU_TENSOR_ACCESS(NAME, LANES, BITS)                                               \
  template <int N, bool pack16, class T>                                                    \
  VGPU_ONLY_SM100A                                                                          \
  inline void tcgen05_ld_##NAME(const uint32_t& start, const uint32_t& column, T* values) { \
    vgpu::tensor_access<false, LANES, BITS, N, pack16>(start + column, values);             \
    vgpu::tensor_wait(false);                                                               \
  }                                                                                         \
  template <int N, bool unpack16, class T>                                                  \
  VGPU_ONLY_SM100A                                                                          \
  inline void tcgen05_st_##NAME(const uint32_t& start, const uint32_t& column,              \
                                const T* values) {                                          \
    vgpu::tensor_access<true, LANES, BITS, N, unpack16>(start + column,                     \
                                                        const_cast<T*>(values));            \
    vgpu::tensor_wait(true);                                                                \
  }
VGPU_TENSOR_ACCESS(32dp32bNx, 32, 32)
VGPU_TENSOR_ACCESS(32dp64bNx, 32, 64)
VGPU_TENSOR_ACCESS(32dp128bNx, 32, 128)
VGPU_TENSOR_ACCESS(32dp256bNx, 32, 256)
VGPU_TENSOR_ACCESS(16dp64bNx, 16, 64)
VGPU_TENSOR_ACCESS(16dp128bNx, 16, 128)
VGPU_TENSOR_ACCESS(16dp256bNx, 16, 256)
#undef VGPU_TENSOR_ACCESS

}  // namespace tl
