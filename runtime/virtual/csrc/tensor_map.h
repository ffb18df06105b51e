// What a CUtensorMap holds here. Dimensions are innermost first, as CUDA counts them.
#pragma once
#include "vgpu/tma.h"

namespace vgpu {

constexpr uint32_t kMaxRank = 5;
constexpr uint32_t kTensorMapMark = 0x70a3c0de;

struct TensorMap {
  uint64_t address;
  uint64_t stride[kMaxRank - 1];  // bytes, of dimensions 1..
  uint32_t extent[kMaxRank];      // elements, minus 1: 2^32 is allowed
  uint32_t mark;
  uint16_t box[kMaxRank];     // im2col: channels per pixel, pixels per column
  int16_t lower[3], upper[3];  // im2col: corners of the bounding box of W, H, D
  uint8_t step[kMaxRank];      // elements from one box row to the next
  uint8_t type, rank, element_bits;
  uint8_t swizzle;  // bytes of a swizzled row; 0 for none
  bool im2col, fill_nan;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

}  // namespace vgpu

// As the driver API's functions without their `cu`; 0, or 1 with words in vgpu_tensor_map_error.
VGPU_API int vgpu_tensor_map_tiled(CUtensorMap* out, int type, uint32_t rank, uint64_t address,
                                   const uint64_t* extents, const uint64_t* strides,
                                   const uint32_t* box, const uint32_t* steps, int interleave,
                                   int swizzle, int l2, int fill);
VGPU_API int vgpu_tensor_map_im2col(CUtensorMap* out, int type, uint32_t rank, uint64_t address,
                                    const uint64_t* extents, const uint64_t* strides,
                                    const int* lower, const int* upper, uint32_t channels,
                                    uint32_t pixels, const uint32_t* steps, int interleave,
                                    int swizzle, int l2, int fill);
VGPU_API const char* vgpu_tensor_map_error();
