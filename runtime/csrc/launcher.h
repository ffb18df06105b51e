// What a generated launcher states about one specialization of an op, and the two functions that
// read it. The generated file holds tables of these structs and nothing else; launcher.cpp checks
// a call against them and launches.
#pragma once
#include <tvm/ffi/c_api.h>

#include <cstdint>

#include "driver.h"

namespace tileproof {

constexpr int kMaxTensors = 24;
constexpr int kMaxLetters = 12;
constexpr int kMaxParameters = 32;
constexpr int kMaxLaunches = 4;
constexpr int kMaxMaps = 8;  // tensor maps of one launch

// The size or stride of one axis: a number, or (letter >= 0) a dim read from the call, or (value > 0
// as well) as many as it takes to have one for each `value` of a dim that an earlier axis showed.
// `label` is the declaration's word for it, null for a literal.
struct Size {
  const char* label;
  int64_t value;
  int letter;
};

struct Tensor {
  const char* name;
  DLDataType dtype;
  uint32_t align;  // bytes the data pointer must be a multiple of
  bool written;
  int ndim;
  const Size* axes;
  const Size* strides;  // in elements; null: contiguous
};

// A dim that travels with the call: lo <= value <= hi, value % multiple == 0.
struct Letter {
  const char* name;
  int64_t lo, hi, multiple;
};

// One parameter of a device kernel: a tensor's data pointer, a dim as int32 or int64, a tensor map.
struct Parameter {
  enum Kind : uint8_t { kPointer, kInt32, kInt64, kMap } kind;
  uint8_t index;  // of the tensor, the letter or the launch's map
};

// A tensor map follows from the tensor's address and the dims.
struct Map {
  int tensor;
  void (*fill)(const int64_t* dims, tp_tensor_map* map);  // all but the address
};

struct Launch {
  const char* kernel;
  int parameter_count;
  const Parameter* parameters;
  void (*grid)(const int64_t* dims, int64_t* grid);  // dims in the order of Kernel::letters
  tp_dim3 cluster, block;
  uint32_t smem;     // dynamic shared memory, bytes
  bool optional;     // only checks arguments on the device
  bool cooperative;  // all blocks at once
  int map_count;
  const Map* maps;
};

// The launches of one call. Architectures with equal launches share a plan.
struct Plan {
  int launch_count;
  const Launch* launches;
};

struct Kernel {
  const char* op;
  int tensor_count;
  const Tensor* tensors;  // inputs, then outputs, in the op's order
  int letter_count;
  const Letter* letters;
  int plan_count;
  const Plan* plans;
};

// FFI function (plan, driver, device_type, device_id, image, image_bytes, optional) -> function of
// the op's tensors. Addresses travel as integers. The device is DLPack's; the driver's table and the
// image are what driver.h says. The image is not needed after the call. `optional`: whether optional
// launches are made.
int bind(const Kernel& kernel, const TVMFFIAny* args, int32_t count, TVMFFIAny* result);

}  // namespace tileproof

#define TILEPROOF_EXPORT extern "C" __attribute__((visibility("default")))

// Exports `bind_<symbol>` for one Kernel.
#define TILEPROOF_BIND(symbol, kernel)                                                  \
  TILEPROOF_EXPORT int __tvm_ffi_bind_##symbol(void*, const TVMFFIAny* args, int32_t n, \
                                               TVMFFIAny* result) {                     \
    return tileproof::bind(kernel, args, n, result);                                    \
  }
