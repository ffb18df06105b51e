// tcgen05.mma: descriptors and the multiply.
#include <cmath>

#include "machine.h"
#include "vgpu/counting.h"
#include "vgpu/matrix.h"

namespace vgpu {

namespace {

enum class Element { kF16, kBf16, kTf32, kE4m3, kE5m2, kE2m3, kE3m2, kE2m1, kU8, kS8 };

// The 32-bit instruction descriptor, decoded.
struct Instruction {
  uint32_t m, n;
  Element a, b;
  bool half_result;  // D is float16, one to a column
  bool negate_a, negate_b, mn_major_a, mn_major_b;
  uint32_t scale_id_a, scale_id_b;
};

const char* kind_name(TensorKind kind) {
  switch (kind) {
    case TensorKind::kF16: return "f16";
    case TensorKind::kTf32: return "tf32";
    case TensorKind::kF8f6f4: return "f8f6f4";
    case TensorKind::kI8: return "i8";
    default: return "mxf8f6f4";
  }
}

Element element_of(TensorKind kind, uint32_t code, char operand) {
  switch (kind) {
    case TensorKind::kF16:
      if (code < 2) return code ? Element::kBf16 : Element::kF16;
      break;
    case TensorKind::kTf32:
      if (code == 2) return Element::kTf32;
      break;
    case TensorKind::kI8:
      if (code < 2) return code ? Element::kS8 : Element::kU8;
      break;
    default: {
      constexpr Element kElements[] = {Element::kE4m3, Element::kE5m2, Element::kE4m3,
                                     Element::kE2m3, Element::kE3m2, Element::kE2m1};
      if (code < 6 && code != 2) return kElements[code];
    }
  }
  vgpu_fail("tcgen05.mma.kind::%s: the instruction descriptor gives %c the type code %u, which "
            "does not exist",
            kind_name(kind), operand, code);
}

bool is_narrow(Element element) { return element >= Element::kE2m3 && element <= Element::kE2m1; }

// The shapes of the manual, dense. M counts both CTAs of a pair.
bool shape_exists(const TensorMma& mma, uint32_t m, uint32_t n) {
  if (mma.weight_stationary)
    return (m == 32 || m == 64 || m == 128) && (n == 64 || n == 128 || n == 256);
  if (n == 0 || n > 256) return false;
  if (mma.pair) {
    const bool by_32 = mma.kind == TensorKind::kI8 || mma.a_in_tensor_memory;
    return (m == 128 || m == 256) && n % (by_32 ? 32 : 16) == 0;
  }
  if (mma.kind == TensorKind::kMxf8f6f4) return m == 128 && n % 8 == 0;
  if (m != 64 && m != 128) return false;
  if (mma.kind == TensorKind::kI8) return n == 8 || n == 24 || n % 16 == 0;
  return n % (m == 64 ? 8 : 16) == 0;
}

Instruction decode(const TensorMma& mma) {
  const uint32_t bits = mma.instruction;
  const auto field = [bits](int first, int count) { return bits >> first & ((1u << count) - 1); };
  const char* kind = kind_name(mma.kind);
  const bool scaled = mma.kind == TensorKind::kMxf8f6f4;
  if (field(2, 1)) vgpu_fail("tcgen05.mma: the virtual GPU does not model sparse operands");
  // Bits that must be zero: the sparsity selector of a dense multiply and reserved ones.
  uint32_t zero = scaled ? 0x8700004bu : 0x20800043u;
  if (mma.kind != TensorKind::kI8) zero |= 1u << 3;
  if (!mma.weight_stationary && !scaled) zero |= 3u << 30;
  if (bits & zero)
    vgpu_fail("tcgen05.mma.kind::%s: bits %#x of the instruction descriptor %#x must be zero", kind,
              bits & zero, bits);
  if (field(3, 1)) vgpu_fail("tcgen05.mma: the virtual GPU does not model saturation");
  Instruction decoded{};
  decoded.m = field(24, 5) << 4;
  decoded.n = field(17, 6) << 3;
  decoded.a = element_of(mma.kind, field(7, 3), 'A');
  decoded.b = element_of(mma.kind, field(10, 3), 'B');
  decoded.negate_a = field(13, 1);
  decoded.negate_b = field(14, 1);
  decoded.mn_major_a = field(15, 1);
  decoded.mn_major_b = field(16, 1);
  if (scaled) {
    if (!field(23, 1))
      vgpu_fail("tcgen05.mma.kind::mxf8f6f4 has UE8M0 scales, the instruction descriptor says UE4M3");
    decoded.scale_id_a = field(29, 2);
    decoded.scale_id_b = field(4, 2);
  } else {
    // Type of D: float16, float32 or int32.
    const uint32_t wanted = mma.kind == TensorKind::kI8 ? 2 : 1, got = field(4, 2);
    decoded.half_result =
        got == 0 && (mma.kind == TensorKind::kF8f6f4 ||
                     (mma.kind == TensorKind::kF16 && decoded.a == Element::kF16));
    if (got != wanted && !decoded.half_result)
      vgpu_fail("tcgen05.mma.kind::%s: D cannot have the type code %u", kind, got);
  }
  if (mma.kind == TensorKind::kF16 && decoded.a != decoded.b)
    vgpu_fail("tcgen05.mma.kind::f16: A and B must have one type");
  if (mma.kind == TensorKind::kI8 && (decoded.negate_a || decoded.negate_b))
    vgpu_fail("tcgen05.mma.kind::i8 cannot negate");
  if (!shape_exists(mma, decoded.m, decoded.n))
    vgpu_fail("tcgen05.mma%s.cta_group::%d.kind::%s has no shape M=%u, N=%u",
              mma.weight_stationary ? ".ws" : "", mma.pair ? 2 : 1, kind, decoded.m, decoded.n);
  if ((decoded.mn_major_a && is_narrow(decoded.a)) || (decoded.mn_major_b && is_narrow(decoded.b)))
    vgpu_fail("tcgen05.mma: operands of 4 and 6 bits must be K-major");
  if (mma.a_in_tensor_memory && decoded.mn_major_a)
    vgpu_fail("tcgen05.mma: A in tensor memory must be K-major");
  if (mma.a_in_tensor_memory && is_narrow(decoded.a))
    vgpu_fail("tcgen05.mma: the virtual GPU does not model A of 4 or 6 bits in tensor memory");
  if (mma.a_in_tensor_memory && mma.pair && decoded.m == 128)
    vgpu_fail("tcgen05.mma.cta_group::2 with M=128: the virtual GPU does not model A in tensor "
              "memory, where both halves of the lanes hold it");
  return decoded;
}

// Which cell holds element (m, n) of D, from D's first lane and column: the data path layouts of
// the manual. Rows that do not fill the lanes are stacked with parts of the columns, except in a
// plain multiply of one CTA with M = 64, which leaves every other half of a warp's lanes unused.
struct Placement {
  uint32_t rows, parts, part_columns;
  bool half_lanes;

  Placement(const TensorMma& mma, const Instruction& instruction)
      : rows(instruction.m / (mma.pair ? 2 : 1)),
        parts(rows == 128 ? 1 : 128 / rows),
        half_lanes(rows == 64 && !mma.weight_stationary && !mma.pair) {
    if (half_lanes) parts = 1;
    part_columns = instruction.n / parts;
  }
  uint32_t lane(uint32_t m, uint32_t n) const {
    return half_lanes ? m / 16 * 32 + m % 16 : m + n / part_columns * rows;
  }
};

// Elements packed from the first bit of 16 bytes on; what they leave over is padding.
template <int Bits, class Small>
void unpack_small(const unsigned char* chunk, float* values) {
  for (int i = 0; i < 16; ++i) {
    const int bit = i * Bits;
    const uint32_t two = chunk[bit / 8] | uint32_t(chunk[bit / 8 + 1]) << 8;
    values[i] = Small::decode(two >> bit % 8 & ((1u << Bits) - 1));
  }
}

template <class T, class Value>
void widen_chunk(const unsigned char* chunk, Value* values) {
  T elements[16 / sizeof(T)];
  memcpy(static_cast<void*>(elements), chunk, 16);
  for (size_t i = 0; i < 16 / sizeof(T); ++i) values[i] = static_cast<Value>(widen(elements[i]));
}

// The elements of 16 bytes.
void decode_chunk(Element element, const unsigned char* chunk, float* values) {
  switch (element) {
    case Element::kF16: return widen_chunk<half>(chunk, values);
    case Element::kBf16: return widen_chunk<bfloat16_t>(chunk, values);
    case Element::kTf32: return widen_chunk<Tf32>(chunk, values);
    case Element::kE4m3: return widen_chunk<tl::float_e4m3_t>(chunk, values);
    case Element::kE5m2: return widen_chunk<tl::float_e5m2_t>(chunk, values);
    case Element::kE2m3: return unpack_small<6, E2M3>(chunk, values);
    case Element::kE3m2: return unpack_small<6, E3M2>(chunk, values);
    case Element::kE2m1: return unpack_small<4, E2M1>(chunk, values);
    default: __builtin_unreachable();
  }
}
void decode_chunk(Element element, const unsigned char* chunk, int* values) {
  if (element == Element::kU8) return widen_chunk<uint8_t>(chunk, values);
  widen_chunk<int8_t>(chunk, values);
}

// Element (line, k) of an operand in the owner's shared memory goes to place(line, k).
template <class Value, int K, class Place>
void gather(const Block& owner, const OperandLayout& layout, Element element, bool mn_major,
            uint32_t lines, bool negate, Place place) {
  constexpr uint32_t kChunk = K / 2;  // elements of 16 bytes: K of them take 32
  Value values[16];
  const uint32_t majors = mn_major ? K : lines, minors = mn_major ? lines : K;
  for (uint32_t major = 0; major < majors; ++major)
    for (uint32_t minor = 0; minor < minors; minor += kChunk) {
      const void* chunk = shared_pointer(owner, layout.address(mn_major, major, minor / kChunk), 16,
                                         __builtin_frame_address(0));
      decode_chunk(element, static_cast<const unsigned char*>(chunk), values);
      for (uint32_t i = 0; i < kChunk && minor + i < minors; ++i)
        (mn_major ? place(minor + i, major) : place(major, minor + i)) =
            negate ? -values[i] : values[i];
    }
}

// A scale of block `id` for row or column `index`: a byte of one cell, in each quarter of the lanes.
float scale_of(const TensorMemory& memory, uint32_t address, uint32_t index, uint32_t quarter,
               uint32_t id) {
  const uint32_t cell =
      memory.cells[quarter * 32 + index % 32][column_of(address) + index / 32];
  const uint32_t exponent = cell >> 8 * id & 0xff;
  return exponent == 0xff ? NAN : std::ldexp(1.0f, static_cast<int>(exponent) - 127);
}

uint32_t float_to_half(float value) {
  const half rounded(value);
  uint16_t bits;
  memcpy(&bits, static_cast<const void*>(&rounded), 2);
  return 0xffff0000 | bits;  // the manual leaves the upper half open: NaN
}

template <class Value, int K>
struct Operands {
  Value a[kTensorLanes][K];
  Value b[kTensorColumns / 2 / 8][K][8];
};

// D (+)= A B in one block's tensor memory.
template <class Value, int K>
void multiply_rows(TensorMemory& memory, const TensorMma& mma, const Instruction& instruction,
                   const Placement& placement, Operands<Value, K>& operands) {
  const uint32_t base_lane = lane_of(mma.d), base_column = column_of(mma.d);
  const bool scaled = mma.kind == TensorKind::kMxf8f6f4;
  for (uint32_t n = 0; n < instruction.n; n += 8) {
    const uint32_t column = base_column + n % placement.part_columns;
    for (uint32_t m = 0; m < placement.rows; m += 16) {
      auto& a = *reinterpret_cast<Value(*)[16][K]>(operands.a[m]);
      Wide8<Value> sum[16] = {};
      for (uint32_t r = 0; r < 16 && mma.accumulate && !scaled; ++r) {
        const uint32_t* cells = memory.cells[base_lane + placement.lane(m + r, n)] + column;
        if (instruction.half_result) {
          for (int i = 0; i < 8; ++i) sum[r][i] = static_cast<Value>(half_to_float(static_cast<uint16_t>(cells[i])));
        } else {
          memcpy(&sum[r], cells, 32);
        }
      }
      multiply(a, operands.b[n / 8], sum);
      for (uint32_t r = 0; r < 16; ++r) {
        const uint32_t lane = base_lane + placement.lane(m + r, n);
        if (mma.disabled[lane / 32] >> lane % 32 & 1) continue;
        uint32_t* cells = memory.cells[lane] + column;
        if constexpr (std::is_same_v<Value, float>) {
          if (instruction.half_result) {
            for (int i = 0; i < 8; ++i) cells[i] = float_to_half(sum[r][i]);
            continue;
          }
          // The sum of one block, scaled, is what is added to D.
          if (scaled) {
            const double row_scale =
                scale_of(memory, mma.scale_a, m + r, lane / 32, instruction.scale_id_a);
            for (uint32_t i = 0; i < 8; ++i) {
              float old = 0;
              if (mma.accumulate) memcpy(&old, cells + i, 4);
              const double both =
                  row_scale *
                  scale_of(memory, mma.scale_b, n + i, lane / 32, instruction.scale_id_b);
              sum[r][i] = old + static_cast<float>(sum[r][i] * both);
            }
          }
        }
        memcpy(cells, &sum[r], 32);
      }
    }
  }
}

// The rows of A of one block: of its shared memory or of its tensor memory.
template <class Value, int K>
void gather_a(const Block& owner, const TensorMemory& memory, const TensorMma& mma,
              const Instruction& instruction, const Placement& placement, Value (*a)[K]) {
  if (!mma.a_in_tensor_memory)
    return gather<Value, K>(owner, tensor_operand(mma.a, "A of tcgen05.mma"), instruction.a,
                            instruction.mn_major_a, placement.rows, instruction.negate_a,
                            [&](uint32_t m, uint32_t k) -> Value& { return a[m][k]; });
  const auto address = static_cast<uint32_t>(mma.a);
  for (uint32_t m = 0; m < placement.rows; ++m) {
    const uint32_t* row = memory.cells[lane_of(address) + placement.lane(m, 0)];
    for (int half = 0; half < 2; ++half) {
      unsigned char chunk[16];
      memcpy(chunk, row + column_of(address) + 4 * half, 16);
      decode_chunk(instruction.a, chunk, a[m] + half * K / 2);
    }
    if (instruction.negate_a)
      for (int k = 0; k < K; ++k) a[m][k] = -a[m][k];
  }
}

template <class Value, int K>
void multiply_operands(const TensorGroup& group, const TensorMma& mma,
                       const Instruction& instruction) {
  static_assert(sizeof(Operands<Value, K>) <= sizeof TensorMemory::scratch);
  auto& operands = *reinterpret_cast<Operands<Value, K>*>(group.memory[0]->scratch);
  const Placement placement(mma, instruction);
  // Each block holds its share of the columns of B and of the rows of A and D.
  const uint32_t share = instruction.n / group.size;
  const OperandLayout b = tensor_operand(mma.b, "B of tcgen05.mma");
  for (uint32_t i = 0; i < group.size; ++i)
    gather<Value, K>(*group.block[i], b, instruction.b, instruction.mn_major_b, share,
                     instruction.negate_b, [&](uint32_t n, uint32_t k) -> Value& {
                       return operands.b[(i * share + n) / 8][k][n % 8];
                     });
  for (uint32_t i = 0; i < group.size; ++i) {
    gather_a<Value, K>(*group.block[i], *group.memory[i], mma, instruction, placement, operands.a);
    multiply_rows<Value, K>(*group.memory[i], mma, instruction, placement, operands);
  }
}

}  // namespace

OperandLayout tensor_operand(uint64_t descriptor, const char* what) {
  const auto field = [descriptor](int first, int count) {
    return static_cast<uint32_t>(descriptor >> first & ((1u << count) - 1));
  };
  if (field(46, 2) != 1)
    vgpu_fail("%s: bits 46-47 of the shared memory descriptor must be 1, got %u", what,
              field(46, 2));
  if (field(14, 2) || field(30, 2) || field(48, 1) || field(53, 8))
    vgpu_fail("%s: reserved bits of the shared memory descriptor %#llx are set", what,
              static_cast<unsigned long long>(descriptor));
  if (field(49, 3)) vgpu_fail("%s: the virtual GPU does not model a base offset, got %u", what,
                              field(49, 3));
  if (field(52, 1)) vgpu_fail("%s: the virtual GPU does not model absolute leading offsets", what);
  const uint32_t mode = field(61, 3);
  constexpr uint32_t kWidths[] = {16, 128, 128, 0, 64, 0, 32, 0};
  if (!kWidths[mode]) vgpu_fail("%s: swizzle mode %u does not exist", what, mode);
  return {field(0, 14) << 4, field(16, 14) << 4, field(32, 14) << 4, kWidths[mode], mode == 1};
}

// A row of an operand is 32 bytes along K.
static void count_mma(const TensorMma& mma, const Instruction& instruction) {
  const uint32_t m = instruction.m, n = instruction.n;
  const auto [type, k] = mma.kind == TensorKind::kTf32 ? std::pair(MatrixType::kTf32, 8u)
                         : mma.kind == TensorKind::kI8 ? std::pair(MatrixType::kInt8, 32u)
                         : mma.kind != TensorKind::kF16 ? std::pair(MatrixType::kFp8, 32u)
                         : instruction.a == Element::kBf16 ? std::pair(MatrixType::kBf16, 16u)
                                                           : std::pair(MatrixType::kF16, 16u);
  vgpu_count_matrix(MatrixUnit::kTcgen05, type, uint64_t(2) * m * n * k,
                    32 * (n + (mma.a_in_tensor_memory ? 0 : m)));
}

void check_mma(const TensorGroup& group, const TensorMma& mma) {
  const Instruction instruction = decode(mma);
  count_mma(mma, instruction);
  const Placement placement(mma, instruction);
  const uint32_t lane = lane_of(mma.d);
  if (lane != 0 && !(placement.half_lanes && lane == 16))
    vgpu_fail("tcgen05.mma with M=%u: D starts at lane 0%s, got lane %u", instruction.m,
              placement.half_lanes ? " or 16" : "", lane);
  const auto require_columns = [&](const char* what, uint32_t address, uint32_t columns) {
    for (uint32_t i = 0; i < group.size; ++i)
      group.memory[i]->require_columns(what, column_of(address), columns);
  };
  require_columns("D of tcgen05.mma", mma.d, placement.part_columns);
  const auto lanes = static_cast<uint8_t>(placement.half_lanes ? 0x55 << lane / 16 : 0xff);
  group.touch({lanes, column_of(mma.d), placement.part_columns}, true);
  const auto check_major = [](const OperandLayout& layout, Element element, bool mn_major,
                              const char* what) {
    if (layout.coarse && !(element == Element::kTf32 && mn_major))
      vgpu_fail("%s: swizzling by units of 32 bytes is for MN-major tf32", what);
    if (element == Element::kTf32 && mn_major && !layout.coarse)
      vgpu_fail("%s: MN-major tf32 needs the swizzle of 128 bytes by units of 32", what);
  };
  if (mma.a_in_tensor_memory) {
    const auto address = static_cast<uint32_t>(mma.a);
    if (lane_of(address) != lane)
      vgpu_fail("tcgen05.mma: A in tensor memory starts at lane %u, D at lane %u",
                lane_of(address), lane);
    require_columns("A of tcgen05.mma", address, 8);
    group.touch({lanes, column_of(address), 8}, false);
  } else {
    check_major(tensor_operand(mma.a, "A of tcgen05.mma"), instruction.a, instruction.mn_major_a,
                "A of tcgen05.mma");
  }
  check_major(tensor_operand(mma.b, "B of tcgen05.mma"), instruction.b, instruction.mn_major_b,
              "B of tcgen05.mma");
  if (mma.kind != TensorKind::kMxf8f6f4) return;
  if (lane_of(mma.scale_a) || lane_of(mma.scale_b))
    vgpu_fail("tcgen05.mma: scales lie in all lanes, from lane 0 on");
  const uint32_t rows = placement.rows / 32, columns = (instruction.n + 31) / 32;
  require_columns("scales of A of tcgen05.mma", mma.scale_a, rows);
  require_columns("scales of B of tcgen05.mma", mma.scale_b, columns);
  group.touch({0xff, column_of(mma.scale_a), rows}, false);
  group.touch({0xff, column_of(mma.scale_b), columns}, false);
}

void perform_mma(const TensorGroup& group, const TensorMma& mma) {
  const Instruction instruction = decode(mma);
  switch (mma.kind) {
    case TensorKind::kF16: return multiply_operands<float, 16>(group, mma, instruction);
    case TensorKind::kTf32: return multiply_operands<float, 8>(group, mma, instruction);
    case TensorKind::kI8: return multiply_operands<int, 32>(group, mma, instruction);
    default: return multiply_operands<float, 32>(group, mma, instruction);
  }
}

}  // namespace vgpu
