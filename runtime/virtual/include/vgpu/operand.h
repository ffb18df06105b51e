// Matrix operands in shared memory as descriptors of wgmma and tcgen05 lay them out: groups of
// lines, strides between them and a swizzle.
#pragma once
#include "vgpu/runtime.h"

namespace vgpu {

// Where the 16-byte chunks of an operand lie.
struct OperandLayout {
  uint32_t start, leading, stride;  // bytes
  uint32_t width;                   // bytes of a swizzled line, 16 without swizzle
  bool coarse = false;              // 128-byte swizzle of 32-byte units over 4 lines

  // Offset in the shared window of chunk `chunk` along the contiguous dimension of line `line`.
  // K-major: a line is a row of A or a column of B; MN-major: a line is one k.
  VGPU_LEAF uint32_t address(bool mn_major, uint32_t line, uint32_t chunk) const {
    const uint32_t along = chunk * 16, lines = coarse ? 4 : 8;
    uint32_t offset = line % lines * width + along % width;
    if (width == 16 && mn_major) {
      offset += along / 16 * stride + line / lines * leading;
    } else {
      offset += line / lines * stride + along / width * leading;
    }
    const uint32_t at = start + offset;
    // The line number is XORed into the chunk number; `start` may point into a line.
    return coarse ? at ^ (at >> 2 & 0x60) : at ^ (at >> 3 & (width - 16));
  }

  VGPU_LEAF const void* chunk(bool mn_major, uint32_t line, uint32_t chunk) const {
    return vgpu_shared_pointer(address(mn_major, line, chunk), 16);
  }
};

}  // namespace vgpu
