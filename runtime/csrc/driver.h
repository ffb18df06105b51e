// The one table of entry points between a generated launcher and whatever executes kernels:
// libcuda, the virtual GPU, or a null driver that returns at once. The launcher binary is the
// same for all three; only this table differs.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// Bump when a field changes; launchers refuse a table of another version.
#define TILEPROOF_DRIVER_ABI 2

typedef struct tp_dim3 {
  uint32_t x, y, z;
} tp_dim3;

// What cuTensorMapEncodeTiled takes, or cuTensorMapEncodeIm2col if `pixels` are given: dimensions
// innermost first, strides in bytes without the innermost, numbers of the driver's enumerations.
typedef struct tp_tensor_map {
  int32_t type;
  uint32_t rank;
  uint64_t address, extents[5], strides[4];
  uint32_t box[5], steps[5];
  int32_t lower[3], upper[3];
  uint32_t channels, pixels;
  int32_t interleave, swizzle, l2, fill;
} tp_tensor_map;

// Every entry returns 0 or a driver-specific non-zero code that `error` turns into words.
typedef struct tp_driver {
  uint32_t abi;
  const char* name;  // "cuda", "virtual", "null"

  // image: what this driver loads. cuda: the cubin's bytes. virtual: the path of the shared object
  // built from the CUDA text, NUL-terminated. null: ignored.
  int (*module_load)(int device, const void* image, size_t size, void** module);
  int (*module_unload)(void* module);
  // Resolves a kernel and opts it in to `dynamic_smem` bytes of dynamic shared memory.
  int (*function_get)(void* module, const char* kernel, uint32_t dynamic_smem, void** function);
  // args[i] points at the i-th kernel parameter. Asynchronous on `stream` where the driver has one.
  int (*launch)(void* function, tp_dim3 grid, tp_dim3 cluster, tp_dim3 block,
                uint32_t dynamic_smem, void* stream, void** args);
  // Words for the last error on this thread; valid until the next call on this thread.
  const char* (*error)(int code);
  // As `launch`, but all blocks are there at once and may wait for each other.
  int (*launch_cooperative)(void* function, tp_dim3 grid, tp_dim3 cluster, tp_dim3 block,
                            uint32_t dynamic_smem, void* stream, void** args);
  // Encodes a tensor map into 128 bytes aligned to 64.
  int (*tensor_map)(const tp_tensor_map* what, void* map);
} tp_driver;

}  // extern "C"
