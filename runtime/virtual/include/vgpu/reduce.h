// Block and warp reductions, in the order the hardware code performs them: every lane
// combines its value with its partner's, farthest partner first, so the bits come out the same.
#pragma once
#include "vgpu/barrier.h"
#include "vgpu/math.h"
#include "vgpu/warp.h"

namespace tl {

#define VGPU_OPERATION(NAME, EXPRESSION)                                                    \
  struct NAME {                                                                             \
    template <class T>                                                                      \
    T operator()(const T& x, const T& y) const {                                            \
      return EXPRESSION;                                                                    \
    }                                                                                       \
  };
VGPU_OPERATION(SumOp, T(x + y))
VGPU_OPERATION(BitAndOp, T(x & y))
VGPU_OPERATION(BitOrOp, T(x | y))
VGPU_OPERATION(BitXorOp, T(x ^ y))
VGPU_OPERATION(SumOp_f32x2, add2(x, y))
VGPU_OPERATION(MaxOp_f32x2, max2(x, y))
VGPU_OPERATION(MinOp_f32x2, min2(x, y))
#define VGPU_PACKED_OPERATION(NAME, PAIR, CALL)                                             \
  VGPU_OPERATION(NAME, to_uint1(CALL(from_uint1<PAIR>(x), from_uint1<PAIR>(y))))
VGPU_PACKED_OPERATION(SumOp_bf16x2, __nv_bfloat162, add2)
VGPU_PACKED_OPERATION(MaxOp_bf16x2, __nv_bfloat162, max2)
VGPU_PACKED_OPERATION(MinOp_bf16x2, __nv_bfloat162, min2)
VGPU_PACKED_OPERATION(MaxOpNan_bf16x2, __nv_bfloat162, max2_nan)
VGPU_PACKED_OPERATION(MinOpNan_bf16x2, __nv_bfloat162, min2_nan)
VGPU_PACKED_OPERATION(SumOp_fp16x2, __half2, add2)
VGPU_PACKED_OPERATION(MaxOp_fp16x2, __half2, max2)
VGPU_PACKED_OPERATION(MinOp_fp16x2, __half2, min2)
VGPU_PACKED_OPERATION(MaxOpNan_fp16x2, __half2, max2_nan)
VGPU_PACKED_OPERATION(MinOpNan_fp16x2, __half2, min2_nan)
#undef VGPU_PACKED_OPERATION
#undef VGPU_OPERATION

// Extremes of 16-bit numbers have instructions of their own, which differ in what a NaN does.
#define VGPU_EXTREME(NAME, CALL, HALF_CALL)                                                 \
  struct NAME {                                                                             \
    template <class T>                                                                      \
    T operator()(const T& x, const T& y) const {                                            \
      if constexpr (std::is_same_v<T, half_t> || std::is_same_v<T, bfloat16_t>)             \
        return HALF_CALL(x, y);                                                             \
      else                                                                                  \
        return CALL(x, y);                                                                  \
    }                                                                                       \
  };
VGPU_EXTREME(MaxOp, fast_max, __hmax)
VGPU_EXTREME(MinOp, fast_min, __hmin)
VGPU_EXTREME(MaxOpNan, fast_max, __hmax_nan)
VGPU_EXTREME(MinOpNan, fast_min, __hmin_nan)
#undef VGPU_EXTREME

// x = op(x, its value in lane ^ offset) for offset = first, first / 2 … last, on `count` values.
template <class Op, int first, int last, int count, class T>
struct ButterflyWork {
  VGPU_LEAF static void run(const vgpu::Site& site) {
    constexpr int kWarp = vgpu::kWarp;
    T value[kWarp], next[kWarp];
    for (int i = 0; i < count; ++i) {
      std::memset(static_cast<void*>(value), 0xff, sizeof value);  // of lanes that have exited
      for (int lane = 0; lane < kWarp; ++lane)
        if (site.arrived >> lane & 1) value[lane] = (&vgpu::operand_of<T>(site, lane))[i];
      for (int offset = first; offset >= last; offset /= 2) {
        for (int lane = 0; lane < kWarp; ++lane) next[lane] = Op()(value[lane], value[lane ^ offset]);
        for (int lane = 0; lane < kWarp; ++lane)
          if (site.arrived >> lane & 1) value[lane] = next[lane];
      }
      for (int lane = 0; lane < kWarp; ++lane)
        if (site.arrived >> lane & 1) (&vgpu::operand_of<T>(site, lane))[i] = value[lane];
    }
  }
};

// A checked build shuffles step by step; a run build does all steps when the lanes have met.
template <class Op, int first, int last, int count, class T>
inline void butterfly(T* x) {
#if defined(VGPU_CHECKED)
  for (int offset = first; offset >= last; offset /= 2)
    for (int i = 0; i < count; ++i)
      x[i] = Op()(x[i], shfl_xor_sync(vgpu::kFullMask, x[i], offset));
#else
  if constexpr (first >= last)
    vgpu::rendezvous<ButterflyWork<Op, first, last, count, T>>("__shfl_sync", vgpu::kFullMask, *x);
#endif
}

// Reduces over groups of `threads` consecutive threads, of which every `scale`-th takes part, and
// leaves the result with all. Partners 32 or more apart meet in shared memory (`workspace`, one
// element per thread), nearer ones shuffle.
template <class Op, int threads, int scale, int thread_offset = 0,
          class Barrier = SyncThreadsBarrier, int batch = 1, int workspace_stride = 0>
struct AllReduce {
  static constexpr bool power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }
  static_assert(scale > 0 && threads % scale == 0, "threads must be a multiple of scale");
  static_assert(power_of_two(threads / scale) && power_of_two(scale),
                "AllReduce folds powers of two");

  template <class T>
  static T run(T x, T* workspace = nullptr) {
    fold<1>(&x, workspace);
    return x;
  }

  template <class T>
  static void run_batch(T* x, T* workspace = nullptr) {
    fold<batch>(x, workspace);
  }

 private:
  template <int count, class T>
  static void fold(T* x, T* workspace) {
    for (int offset = threads / 2; offset >= scale && offset >= vgpu::kWarp; offset /= 2) {
      const int me = static_cast<int>(threadIdx.x) - thread_offset;
      Barrier::template sync<1>();
      for (int i = 0; i < count; ++i) workspace[me + i * workspace_stride] = x[i];
      Barrier::template sync<2>();
      for (int i = 0; i < count; ++i)
        x[i] = Op()(x[i], workspace[(me ^ offset) + i * workspace_stride]);
    }
    butterfly<Op, (threads < 2 * vgpu::kWarp ? threads / 2 : vgpu::kWarp / 2), scale, count>(x);
  }
};

template <class T, class Op>
inline T warp_reduce(T value, Op) {
  butterfly<Op, vgpu::kWarp / 2, 1, 1>(&value);
  return value;
}
template <class T>
inline T warp_reduce_sum(T value) {
  return warp_reduce(value, SumOp());
}
template <class T>
inline T warp_reduce_max(T value) {
  return warp_reduce(value, MaxOp());
}
template <class T>
inline T warp_reduce_min(T value) {
  return warp_reduce(value, MinOp());
}
template <class T>
inline T warp_reduce_bitand(T value) {
  return warp_reduce(value, BitAndOp());
}
template <class T>
inline T warp_reduce_bitor(T value) {
  return warp_reduce(value, BitOrOp());
}

}  // namespace tl
