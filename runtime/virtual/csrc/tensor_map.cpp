// cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col, with the rules of the driver API's manual.
#include "tensor_map.h"

#include <cstdarg>
#include <string>

namespace vgpu {

namespace {

thread_local std::string words;

// Thrown by `require`, caught at the entry points.
struct Refused {};

__attribute__((format(printf, 2, 3))) void require(bool holds, const char* format, ...) {
  if (holds) return;
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  words = std::string("tensor map: ") + text;
  throw Refused();
}

struct Type {
  const char* name;
  uint8_t bits;
  bool is_float;
};

// By CUtensorMapDataType; without bits: not modelled.
constexpr Type kTypes[] = {
    {"uint8", 8, false},     {"uint16", 16, false},    {"uint32", 32, false},
    {"int32", 32, false},    {"uint64", 64, false},    {"int64", 64, false},
    {"float16", 16, true},   {"float32", 32, true},    {"float64", 64, true},
    {"bfloat16", 16, true},  {"float32_ftz", 0, true}, {"tfloat32", 0, true},
    {"tfloat32_ftz", 0, true}, {"16u4_align8b", 4, false}, {"16u4_align16b", 0, false},
    {"16u6_align16b", 0, false}};
constexpr int kPacked4 = 13;
constexpr const char* kSwizzles[] = {
    "none", "32b", "64b", "128b", "128b_atom_32b", "128b_atom_32b_flip_8b", "128b_atom_64b"};

void check_common(TensorMap& map, int type, uint32_t rank, uint64_t address,
                  const uint64_t* extents, const uint64_t* strides, const uint32_t* steps,
                  int interleave, int swizzle, int l2, int fill) {
  require(type >= 0 && type < int(std::size(kTypes)), "there is no data type %d", type);
  const Type& element = kTypes[type];
  require(element.bits, "data type %s is not modelled", element.name);
  require(rank >= 1 && rank <= kMaxRank, "rank is 1 to 5, got %u", rank);
  require(interleave == 0, "interleaved layouts are not modelled, got interleave %d", interleave);
  require(swizzle >= 0 && swizzle < int(std::size(kSwizzles)), "there is no swizzle %d", swizzle);
  require(swizzle <= 3, "swizzle %s is not modelled", kSwizzles[swizzle]);
  require(l2 >= 0 && l2 <= 3, "there is no L2 promotion %d", l2);
  require(fill == 0 || fill == 1, "there is no out-of-bounds fill %d", fill);
  require(!fill || element.is_float, "NaN fill needs a float type, got %s", element.name);
  require(address && address % 16 == 0, "the global address is a multiple of 16, got %#llx",
          static_cast<unsigned long long>(address));
  for (uint32_t i = 0; i < rank; ++i) {
    const unsigned long long extent = extents[i];
    require(extent >= 1 && extent <= 1ull << 32, "dimension %u has 1 to 2^32 elements, got %llu", i,
            extent);
    require(steps[i] >= 1 && steps[i] <= 8, "element stride %u is 1 to 8, got %u", i, steps[i]);
    map.extent[i] = static_cast<uint32_t>(extent - 1);
    map.step[i] = static_cast<uint8_t>(i ? steps[i] : 1);  // the innermost one is ignored
  }
  require(type != kPacked4 || extents[0] % 2 == 0,
          "dimension 0 of %s has a multiple of 2 elements, got %llu", element.name,
          static_cast<unsigned long long>(extents[0]));
  for (uint32_t i = 0; i + 1 < rank; ++i) {
    const unsigned long long stride = strides[i];
    require(stride % 16 == 0 && stride < 1ull << 40,
            "the stride of dimension %u is a multiple of 16 below 2^40 bytes, got %llu", i + 1,
            stride);
    map.stride[i] = stride;
  }
  map.address = address;
  map.mark = kTensorMapMark;
  map.type = static_cast<uint8_t>(type);
  map.rank = static_cast<uint8_t>(rank);
  map.element_bits = element.bits;
  map.swizzle = static_cast<uint8_t>(swizzle ? 16 << swizzle : 0);
  map.fill_nan = fill == 1;
}

// The innermost row of a box, in shared memory.
void check_row(const TensorMap& map, uint32_t elements) {
  const uint32_t bytes = elements * map.element_bits / 8;
  require(bytes % 16 == 0 && elements * map.element_bits % 8 == 0,
          "a box row is a multiple of 16 bytes, got %u elements of %u bits", elements,
          map.element_bits);
  require(!map.swizzle || bytes <= map.swizzle,
          "a box row is at most the swizzle's %u bytes, got %u", map.swizzle, bytes);
}

template <class Fill>
int encode(CUtensorMap* out, Fill fill) {
  try {
    require(reinterpret_cast<uintptr_t>(out) % 64 == 0, "its own address is a multiple of 64");
    TensorMap map{};
    fill(map);
    memset(out, 0, sizeof *out);
    memcpy(out, &map, sizeof map);
    return 0;
  } catch (const Refused&) {
    return 1;
  }
}

}  // namespace

}  // namespace vgpu

using namespace vgpu;

VGPU_API int vgpu_tensor_map_tiled(CUtensorMap* out, int type, uint32_t rank, uint64_t address,
                                   const uint64_t* extents, const uint64_t* strides,
                                   const uint32_t* box, const uint32_t* steps, int interleave,
                                   int swizzle, int l2, int fill) {
  return encode(out, [=](TensorMap& map) {
    check_common(map, type, rank, address, extents, strides, steps, interleave, swizzle, l2, fill);
    for (uint32_t i = 0; i < rank; ++i) {
      require(box[i] >= 1 && box[i] <= 256, "box dimension %u is 1 to 256, got %u", i, box[i]);
      map.box[i] = static_cast<uint16_t>(box[i]);
    }
    check_row(map, box[0]);
  });
}

VGPU_API int vgpu_tensor_map_im2col(CUtensorMap* out, int type, uint32_t rank, uint64_t address,
                                    const uint64_t* extents, const uint64_t* strides,
                                    const int* lower, const int* upper, uint32_t channels,
                                    uint32_t pixels, const uint32_t* steps, int interleave,
                                    int swizzle, int l2, int fill) {
  return encode(out, [=](TensorMap& map) {
    check_common(map, type, rank, address, extents, strides, steps, interleave, swizzle, l2, fill);
    require(rank >= 3, "im2col takes rank 3 to 5, got %u", rank);
    const int limit = rank == 3 ? 1 << 15 : rank == 4 ? 1 << 7 : 1 << 4;
    for (uint32_t i = 0; i < rank - 2; ++i) {
      require(lower[i] >= -limit && lower[i] < limit && upper[i] >= -limit && upper[i] < limit,
              "corners of a rank-%u im2col are %d to %d, got %d and %d", rank, -limit, limit - 1,
              lower[i], upper[i]);
      map.lower[i] = static_cast<int16_t>(lower[i]);
      map.upper[i] = static_cast<int16_t>(upper[i]);
    }
    require(channels >= 1 && channels <= 256, "channels per pixel are 1 to 256, got %u", channels);
    require(pixels >= 1 && pixels <= 1024, "pixels per column are 1 to 1024, got %u", pixels);
    map.im2col = true;
    map.box[0] = static_cast<uint16_t>(channels);
    map.box[1] = static_cast<uint16_t>(pixels);
    check_row(map, channels);
  });
}

// Why this OS thread's last encoding was refused.
VGPU_API const char* vgpu_tensor_map_error() { return words.c_str(); }
