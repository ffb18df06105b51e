// Block and warp reductions and scans, in the order the hardware code performs them: every lane
// combines its value with its partner's, farthest partner first, so the bits come out the same.
#pragma once
#include <limits>

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
VGPU_OPERATION(MaxOp, max(x, y))
VGPU_OPERATION(MinOp, min(x, y))
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

// TileLang's NaN-keeping operations differ from the plain ones for the 16-bit types only.
struct MaxOpNan : MaxOp {
  using MaxOp::operator();
  half_t operator()(half_t x, half_t y) const { return __hmax_nan(x, y); }
  bfloat16_t operator()(bfloat16_t x, bfloat16_t y) const { return __hmax_nan(x, y); }
};
struct MinOpNan : MinOp {
  using MinOp::operator();
  half_t operator()(half_t x, half_t y) const { return __hmin_nan(x, y); }
  bfloat16_t operator()(bfloat16_t x, bfloat16_t y) const { return __hmin_nan(x, y); }
};

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
    for (int offset = threads / 2; offset >= scale; offset /= 2) {
      if (offset >= 32) {
        const int me = static_cast<int>(threadIdx.x) - thread_offset;
        Barrier::template sync<1>();
        for (int i = 0; i < count; ++i) workspace[me + i * workspace_stride] = x[i];
        Barrier::template sync<2>();
        for (int i = 0; i < count; ++i)
          x[i] = Op()(x[i], workspace[(me ^ offset) + i * workspace_stride]);
      } else {
        for (int i = 0; i < count; ++i)
          x[i] = Op()(x[i], shfl_xor_sync(vgpu::kFullMask, x[i], offset));
      }
    }
  }
};

template <class T, class Op>
inline T warp_reduce(T value, Op op) {
  for (int offset = 16; offset; offset /= 2)
    value = op(value, shfl_xor_sync(vgpu::kFullMask, value, offset));
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

// --- inclusive scans: one segment of lanes walks a line, carrying the last value ---------------

struct ScanSumOp : SumOp {
  template <class T>
  static T identity() {
    return T(0);
  }
};
struct ScanMaxOp : MaxOp {
  template <class T>
  static T identity() {
    if constexpr (std::is_integral_v<T>) return std::numeric_limits<T>::lowest();
    return T(-INFINITY);
  }
};

template <class Op, bool reverse, class T, int segment>
inline void scan_line(const T* source, T* target, int extent, int source_stride,
                      int target_stride) {
  const int lane = static_cast<int>(threadIdx.x) % segment;
  const int segments = (extent + segment - 1) / segment;
  T carry = Op::template identity<T>();
  for (int step = 0; step < segments; ++step) {
    const int i = (reverse ? segments - 1 - step : step) * segment + lane;
    T value = i < extent ? source[i * source_stride] : Op::template identity<T>();
    for (int offset = 1; offset < segment; offset *= 2) {
      const T other = reverse ? shfl_down_sync(vgpu::kFullMask, value, offset)
                              : shfl_up_sync(vgpu::kFullMask, value, offset);
      if (reverse ? lane < segment - offset : lane >= offset) value = Op()(value, other);
    }
    value = Op()(value, carry);
    if (i < extent) target[i * target_stride] = value;
    carry = shfl_sync(vgpu::kFullMask, value, reverse ? 0 : segment - 1);
  }
}

template <class Op, int threads, bool reverse>
struct Scan1D {
  template <class T, int segment = 32>
  static void run(const T* source, T* target, int extent) {
    if (threadIdx.x >= segment) return;
    scan_line<Op, reverse, T, segment>(source, target, extent, 1, 1);
  }
};

template <class Op, int threads, int axis, bool reverse>
struct Scan2D {
  static_assert(axis == 0 || axis == 1, "a 2-d scan runs along axis 0 or 1");
  template <class T, int segment = 32>
  static void run(const T* source, T* target, int height, int width, int source_stride,
                  int target_stride) {
    const int lines = axis == 1 ? height : width;
    for (int line = static_cast<int>(threadIdx.x) / segment; line < lines;
         line += threads / segment) {
      if constexpr (axis == 1) {
        scan_line<Op, reverse, T, segment>(source + line * source_stride,
                                           target + line * target_stride, width, 1, 1);
      } else {
        scan_line<Op, reverse, T, segment>(source + line, target + line, height, source_stride,
                                           target_stride);
      }
    }
  }
};

template <int threads, bool reverse = false>
struct CumSum1D : Scan1D<ScanSumOp, threads, reverse> {};
template <int threads, int axis = 0, bool reverse = false>
struct CumSum2D : Scan2D<ScanSumOp, threads, axis, reverse> {};
template <int threads, bool reverse = false>
struct CumMax1D : Scan1D<ScanMaxOp, threads, reverse> {};
template <int threads, int axis = 0, bool reverse = false>
struct CumMax2D : Scan2D<ScanMaxOp, threads, axis, reverse> {};

}  // namespace tl
