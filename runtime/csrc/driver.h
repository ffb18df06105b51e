// The one table of entry points between a generated launcher and whatever executes kernels:
// libcuda, the virtual GPU, or a null driver that returns at once. The launcher binary is the
// same for all three; only this table differs.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// Bump when a field changes; launchers refuse a table of another version.
#define TILEPROOF_DRIVER_ABI 1

typedef struct tp_dim3 {
  uint32_t x, y, z;
} tp_dim3;

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
} tp_driver;

}  // extern "C"
