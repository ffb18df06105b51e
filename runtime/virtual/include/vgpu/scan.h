// Inclusive scans: one segment of lanes walks a line, carrying the last value along.
#pragma once
#include "vgpu/reduce.h"

namespace tl {

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

template <class Op, int threads, bool reverse = false>
struct InclusiveScan1D {
  template <class T, int segment = 32>
  static void run(const T* source, T* target, int extent) {
    if (threadIdx.x >= segment) return;
    scan_line<Op, reverse, T, segment>(source, target, extent, 1, 1);
  }
};

template <class Op, int threads, int axis = 0, bool reverse = false>
struct InclusiveScan2D {
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
struct CumSum1D : InclusiveScan1D<ScanSumOp, threads, reverse> {};
template <int threads, int axis = 0, bool reverse = false>
struct CumSum2D : InclusiveScan2D<ScanSumOp, threads, axis, reverse> {};
template <int threads, bool reverse = false>
struct CumMax1D : InclusiveScan1D<ScanMaxOp, threads, reverse> {};
template <int threads, int axis = 0, bool reverse = false>
struct CumMax2D : InclusiveScan2D<ScanMaxOp, threads, axis, reverse> {};

}  // namespace tl
