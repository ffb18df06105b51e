// Block rasterisation: the block index renumbered so that panels of `width` rows (or columns) run
// together, back and forth.
#pragma once
#include "vgpu/runtime.h"

namespace vgpu {

// Walks a grid of `length` x `lanes` blocks in panels of `width` lanes; returns {along, across}.
inline uint2 rasterize(unsigned index, unsigned length, unsigned lanes, unsigned width) {
  const unsigned panel = index / (width * length), offset = index % (width * length);
  const unsigned first = panel * width;
  const unsigned here = lanes - first < width ? lanes - first : width;
  const unsigned along = panel & 1 ? length - 1 - offset / here : offset / here;
  return {along, first + offset % here};
}

}  // namespace vgpu

namespace tl {

template <int width>
inline dim3 rasterization2DRow() {
  const uint2 at =
      vgpu::rasterize(blockIdx.x + blockIdx.y * gridDim.x, gridDim.x, gridDim.y, width);
  return {at.x, at.y, blockIdx.z};
}
template <int width>
inline dim3 rasterization2DColumn() {
  const uint2 at =
      vgpu::rasterize(blockIdx.x + blockIdx.y * gridDim.x, gridDim.y, gridDim.x, width);
  return {at.y, at.x, blockIdx.z};
}

}  // namespace tl
