// Warp collectives: shuffles, votes, elections, redux.
#pragma once
#include "vgpu/numbers.h"
#include "vgpu/runtime.h"

namespace vgpu {

enum class Shuffle { kIndex, kUp, kDown, kXor };

// PTX shfl.sync on 32-bit registers: the segment of `width` lanes bounds the source; out of it, or
// at a lane that takes no part, a thread gets its own value, respectively nonsense.
template <class T>
struct ShuffleOperand {
  T in, out;
  Shuffle kind;
  int by, width;
};

template <class T>
struct ShuffleWork {
  VGPU_LEAF static void run(const Site& site) {
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(site.arrived >> lane & 1)) continue;
      auto& me = operand_of<ShuffleOperand<T>>(site, lane);
      const int first = lane & ~(me.width - 1), last = first + me.width - 1;
      int from = lane;
      switch (me.kind) {
        case Shuffle::kIndex: from = first + (me.by & (me.width - 1)); break;
        case Shuffle::kUp: from = lane - me.by < first ? lane : lane - me.by; break;
        case Shuffle::kDown: from = lane + me.by > last ? lane : lane + me.by; break;
        case Shuffle::kXor: from = (lane ^ me.by) > last ? lane : lane ^ me.by; break;
      }
      if (site.arrived >> from & 1) {
        me.out = operand_of<ShuffleOperand<T>>(site, from).in;
      } else {
        std::memset(static_cast<void*>(&me.out), 0xff, sizeof(T));
      }
    }
  }
};

template <class T>
inline T shuffle(uint32_t mask, T value, Shuffle kind, int by, int width,
                 const char* op = "__shfl_sync") {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "shfl moves up to 64 bits");
  ShuffleOperand<T> operand{value, value, kind, by, width};
  rendezvous<ShuffleWork<T>>(op, mask, operand);
  return operand.out;
}

struct VoteOperand {
  bool predicate;
  uint32_t ballot;
};

struct VoteWork {
  VGPU_LEAF static void run(const Site& site) {
    uint32_t ballot = 0;
    for (int lane = 0; lane < kWarp; ++lane)
      if (site.arrived >> lane & 1)
        ballot |= uint32_t(operand_of<VoteOperand>(site, lane).predicate) << lane;
    for (int lane = 0; lane < kWarp; ++lane)
      if (site.arrived >> lane & 1) operand_of<VoteOperand>(site, lane).ballot = ballot;
  }
};

inline uint32_t ballot(uint32_t mask, bool predicate) {
  VoteOperand operand{predicate, 0};
  rendezvous<VoteWork>("__ballot_sync", mask, operand);
  return operand.ballot;
}

}  // namespace vgpu

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize) {
  return vgpu::shuffle(mask, value, vgpu::Shuffle::kIndex, lane, width);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return vgpu::shuffle(mask, value, vgpu::Shuffle::kUp, static_cast<int>(delta), width);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return vgpu::shuffle(mask, value, vgpu::Shuffle::kDown, static_cast<int>(delta), width);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize) {
  return vgpu::shuffle(mask, value, vgpu::Shuffle::kXor, lane_mask, width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return vgpu::ballot(mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline void __syncwarp(unsigned mask = vgpu::kFullMask) { vgpu::ballot(mask, false); }

// Which lanes happen to run together is nowhere promised. Here all that have not exited must ask;
// asking in a branch that some do not take is an error.
inline unsigned __activemask() {
  vgpu::VoteOperand operand{true, 0};
  vgpu::rendezvous<vgpu::VoteWork>("__activemask", vgpu::kFullMask, operand);
  return operand.ballot;
}

namespace vgpu {

template <class T>
struct MatchOperand {
  T value;
  uint32_t equal;  // the lanes with the same bits
};

template <class T>
struct MatchWork {
  VGPU_LEAF static void run(const Site& site) {
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(site.arrived >> lane & 1)) continue;
      auto& me = operand_of<MatchOperand<T>>(site, lane);
      me.equal = 0;
      for (int other = 0; other < kWarp; ++other)
        if (site.arrived >> other & 1 &&
            std::memcmp(&me.value, &operand_of<MatchOperand<T>>(site, other).value, sizeof(T)) == 0)
          me.equal |= 1u << other;
    }
  }
};

}  // namespace vgpu

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value) {
  using Promoted = decltype(+value);
  static_assert(sizeof(Promoted) == 4 || sizeof(Promoted) == 8, "match.sync compares 32 or 64 bits");
  vgpu::MatchOperand<Promoted> operand{value, 0};
  vgpu::rendezvous<vgpu::MatchWork<Promoted>>("__match_sync", mask, operand);
  return operand.equal;
}
template <class T>
inline unsigned __match_all_sync(unsigned mask, T value, int* all_equal) {
  *all_equal = __match_any_sync(mask, value) == mask;
  return *all_equal ? mask : 0;
}

namespace vgpu {

// The lanes of a mask folded in ascending order; redux is exact, so the order is not observable.
template <class T, class Fold>
inline T redux(unsigned mask, T value, Fold fold) {
  T total{};
  bool first = true;
  for (int lane = 0; lane < kWarp; ++lane) {
    const T other = shuffle(mask, value, Shuffle::kIndex, lane, kWarp, "redux.sync");
    if (!(mask >> lane & 1)) continue;
    total = first ? other : fold(total, other);
    first = false;
  }
  return total;
}

}  // namespace vgpu

#define VGPU_REDUX(NAME, EXPRESSION)                                                        \
  template <class T>                                                                        \
  inline T __reduce_##NAME##_sync(unsigned mask, T value) {                                 \
    static_assert(std::is_integral_v<T> && sizeof(T) == 4, "redux.sync is for 32-bit integers"); \
    return vgpu::redux(mask, value, [](T a, T b) -> T { return EXPRESSION; });              \
  }
VGPU_REDUX(add, T(unsigned(a) + unsigned(b)))
VGPU_REDUX(max, a > b ? a : b)
VGPU_REDUX(min, a < b ? a : b)
VGPU_REDUX(and, a & b)
VGPU_REDUX(or, a | b)
VGPU_REDUX(xor, a ^ b)
#undef VGPU_REDUX

namespace tl {

template <class T>
inline T shfl_sync(unsigned mask, T value, int lane) {
  return __shfl_sync(mask, value, lane);
}
template <class T>
inline T shfl_up_sync(unsigned mask, T value, int delta) {
  return __shfl_up_sync(mask, value, delta);
}
template <class T>
inline T shfl_down_sync(unsigned mask, T value, int delta) {
  return __shfl_down_sync(mask, value, delta);
}
template <class T>
inline T shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return __shfl_xor_sync(mask, value, lane_mask);
}

// Sizes of zero or less mean the usual ones.
inline int get_lane_idx(int warp = 32) {
  return static_cast<int>(vgpu::thread_index()) % (warp > 0 ? warp : 32);
}
inline int get_warp_idx(int warp = 32) {
  return static_cast<int>(vgpu::thread_index()) / (warp > 0 ? warp : 32);
}
inline int get_warp_idx_sync(int warp = 32) { return get_warp_idx(warp); }
inline int get_warp_group_idx(int warp = 32, int warps = 4) {
  return get_warp_idx(warp) / (warps > 0 ? warps : 4);
}

// One lane of each group of whole warps that holds `extent` threads; 0 means one of the block. The
// hardware may elect any lane of the group's first warp; it takes the lowest, and so does this.
template <int extent>
VGPU_FROM_SM90
inline bool tl_shuffle_elect() {
  constexpr unsigned kGroup = (extent + 31) / 32 * 32;
  const unsigned index = vgpu::thread_index();
  return kGroup == 0 ? index == 0 : index % (kGroup == 0 ? 1 : kGroup) == 0;
}

}  // namespace tl
