// Matrix instructions tell the counters of a checked build what they multiply.
#pragma once
#include "vgpu/matrix.h"

namespace vgpu {

enum class MatrixUnit : uint32_t { kMma, kWgmma, kTcgen05 };
enum class MatrixType : uint32_t { kF64, kTf32, kF16, kBf16, kFp8, kFp6, kFp4, kInt8, kInt4 };
constexpr uint32_t kMatrixUnits = 3, kMatrixTypes = 9;

constexpr MatrixType matrix_type(tl::DataType operand) {
  using D = tl::DataType;
  switch (operand) {
    case D::kFloat64: return MatrixType::kF64;
    case D::kTensorFloat32: return MatrixType::kTf32;
    case D::kFloat16: return MatrixType::kF16;
    case D::kBFloat16: return MatrixType::kBf16;
    case D::kFloat8_e4m3: case D::kFloat8_e5m2: return MatrixType::kFp8;
    case D::kInt8: case D::kUInt8: return MatrixType::kInt8;
    default: return MatrixType::kInt4;
  }
}

}  // namespace vgpu

// `operations` as 2 M N K; `operand_bytes`: of shared memory the unit reads.
VGPU_API void vgpu_count_matrix(vgpu::MatrixUnit unit, vgpu::MatrixType type, uint64_t operations,
                                uint64_t operand_bytes);

namespace vgpu {

// For all lanes of a warp, called by each.
VGPU_LEAF inline void count_matrix([[maybe_unused]] MatrixUnit unit,
                                   [[maybe_unused]] MatrixType type,
                                   [[maybe_unused]] uint64_t operations,
                                   [[maybe_unused]] uint64_t operand_bytes = 0) {
#if defined(VGPU_CHECKED)
  if (vgpu_self().lane == 0) vgpu_count_matrix(unit, type, operations, operand_bytes);
#endif
}

}  // namespace vgpu
