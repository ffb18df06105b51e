// libcuda as a driver. It is opened at run time, so the library loads on a machine without a GPU,
// and its few entry points are declared here, so no CUDA header is needed to build.
#include <dlfcn.h>
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "launcher.h"

namespace {

// The CUDA driver API's types and numbers, as its documentation gives them.
using Result = int;
using Device = int;
using Context = void*;
constexpr Result kFileNotFound = 301;
constexpr int kMaxDynamicSharedSize = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kCapabilityMajor = 75, kCapabilityMinor = 76;  // CU_DEVICE_ATTRIBUTE_...
constexpr uint32_t kSharedWithoutOptIn = 48 * 1024;
constexpr int kCooperative = 2, kClusterDimension = 4;  // CU_LAUNCH_ATTRIBUTE_...
constexpr int kCaptureRelaxed = 2;                      // CU_STREAM_CAPTURE_MODE_RELAXED

struct LaunchAttribute {
  int id;
  char padding[4];
  union {
    char bytes[64];
    tp_dim3 cluster;
    int cooperative;
  } value;
};

struct LaunchConfig {
  tp_dim3 grid, block;
  unsigned shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

struct Api {
  Result (*Init)(unsigned);
  Result (*DeviceGet)(Device*, int);
  Result (*DeviceGetCount)(int*);
  Result (*DeviceGetAttribute)(int*, int, Device);
  Result (*DevicePrimaryCtxRetain)(Context*, Device);
  Result (*CtxGetCurrent)(Context*);
  Result (*CtxPushCurrent)(Context);
  Result (*CtxPopCurrent)(Context*);
  Result (*ModuleLoadData)(void**, const void*);
  Result (*ModuleUnload)(void*);
  Result (*ModuleGetFunction)(void**, void*, const char*);
  Result (*FuncSetAttribute)(void*, int, int);
  Result (*LaunchKernel)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                         unsigned, void*, void**, void**);
  Result (*LaunchKernelEx)(const LaunchConfig*, void*, void**, void**);
  Result (*TensorMapEncodeTiled)(void*, int, uint32_t, void*, const uint64_t*, const uint64_t*,
                                 const uint32_t*, const uint32_t*, int, int, int, int);
  Result (*TensorMapEncodeIm2col)(void*, int, uint32_t, void*, const uint64_t*, const uint64_t*,
                                  const int*, const int*, uint32_t, uint32_t, const uint32_t*, int,
                                  int, int, int);
  Result (*ThreadExchangeStreamCaptureMode)(int*);
  Result (*GetErrorName)(Result, const char**);
  Result (*GetErrorString)(Result, const char**);
};

Api api;
thread_local char words[512];

// CUDA does not survive a fork: its threads are not in the child.
bool forked = false;

Result check_process() {
  if (!forked) return 0;
  snprintf(words, sizeof words,
           "this process was forked from one that used CUDA; start it with the spawn method");
  return 3;  // CUDA_ERROR_NOT_INITIALIZED
}

// Loading a module is no work on a stream: another thread may be capturing a graph meanwhile.
class Uncaptured {
 public:
  Uncaptured() { api.ThreadExchangeStreamCaptureMode(&mode_); }
  ~Uncaptured() { api.ThreadExchangeStreamCaptureMode(&mode_); }

 private:
  int mode_ = kCaptureRelaxed;  // exchanged for the thread's, and back
};

// Makes a context current for one scope; free when it already is, as it is under torch.
class Current {
 public:
  explicit Current(Context context) {
    Context now = nullptr;
    api.CtxGetCurrent(&now);
    pushed_ = now != context && api.CtxPushCurrent(context) == 0;
  }
  ~Current() {
    Context popped;
    if (pushed_) api.CtxPopCurrent(&popped);
  }

 private:
  bool pushed_;
};

struct Function {
  void* handle;
  Context context;
  Function* next;
};

struct Module {
  void* handle;
  Context context;
  Function* functions;
};

// Errors a running kernel leaves behind. A launch reports them for whatever ran before it.
bool is_left_behind(Result code) {
  switch (code) {
    case 214: /* ECC_UNCORRECTABLE */
    case 700: /* ILLEGAL_ADDRESS */
    case 702: /* LAUNCH_TIMEOUT */
    case 710: /* ASSERT */
    case 714: /* HARDWARE_STACK_ERROR */
    case 715: /* ILLEGAL_INSTRUCTION */
    case 716: /* MISALIGNED_ADDRESS */
    case 717: /* INVALID_ADDRESS_SPACE */
    case 718: /* INVALID_PC */
    case 719: /* LAUNCH_FAILED */ return true;
    default: return false;
  }
}

Result failed(const char* what, Result code) {
  const char *name = nullptr, *meaning = nullptr;
  api.GetErrorName(code, &name);
  api.GetErrorString(code, &meaning);
  if (is_left_behind(code))
    snprintf(words, sizeof words,
             "not launched: a kernel that ran earlier on this device failed with %s (%s)",
             name ? name : "an unknown error", meaning ? meaning : "no description");
  else
    snprintf(words, sizeof words, "%s: %s (%d: %s)", what, name ? name : "an unknown error", code,
             meaning ? meaning : "no description");
  return code;
}

// Opens libcuda once. On failure `words` says why.
Result open() {
  static std::mutex mutex;
  static bool ready = false;
  const std::lock_guard<std::mutex> lock(mutex);
  if (ready) return check_process();
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(words, sizeof words, "no CUDA driver on this machine: %s", dlerror());
    return kFileNotFound;
  }
#define LOAD(field, symbol)                                                                  \
  if (!(*reinterpret_cast<void**>(&api.field) = dlsym(library, symbol))) {                   \
    snprintf(words, sizeof words, "the CUDA driver lacks %s; update the NVIDIA driver", symbol); \
    return kFileNotFound;                                                                    \
  }
  LOAD(Init, "cuInit")
  LOAD(DeviceGet, "cuDeviceGet")
  LOAD(DeviceGetCount, "cuDeviceGetCount")
  LOAD(DeviceGetAttribute, "cuDeviceGetAttribute")
  LOAD(DevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain")
  LOAD(CtxGetCurrent, "cuCtxGetCurrent")
  LOAD(CtxPushCurrent, "cuCtxPushCurrent_v2")
  LOAD(CtxPopCurrent, "cuCtxPopCurrent_v2")
  LOAD(ModuleLoadData, "cuModuleLoadData")
  LOAD(ModuleUnload, "cuModuleUnload")
  LOAD(ModuleGetFunction, "cuModuleGetFunction")
  LOAD(FuncSetAttribute, "cuFuncSetAttribute")
  LOAD(LaunchKernel, "cuLaunchKernel")
  LOAD(LaunchKernelEx, "cuLaunchKernelEx")
  LOAD(TensorMapEncodeTiled, "cuTensorMapEncodeTiled")
  LOAD(TensorMapEncodeIm2col, "cuTensorMapEncodeIm2col")
  LOAD(ThreadExchangeStreamCaptureMode, "cuThreadExchangeStreamCaptureMode")
  LOAD(GetErrorName, "cuGetErrorName")
  LOAD(GetErrorString, "cuGetErrorString")
#undef LOAD
  if (const Result code = api.Init(0)) return failed("cuInit", code);
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  ready = true;
  return 0;
}

int module_load(int device, const void* image, size_t, void** module) {
  if (const Result code = open()) return code;
  Device handle;
  Context context;
  if (const Result code = api.DeviceGet(&handle, device)) return failed("cuDeviceGet", code);
  // The primary context is the one torch, CuPy and JAX use. It is retained for the process.
  if (const Result code = api.DevicePrimaryCtxRetain(&context, handle))
    return failed("cuDevicePrimaryCtxRetain", code);
  const Current current(context);
  const Uncaptured uncaptured;
  void* loaded;
  if (const Result code = api.ModuleLoadData(&loaded, image))
    return failed("cuModuleLoadData", code);
  *module = new Module{loaded, context, nullptr};
  return 0;
}

int module_unload(void* module) {
  auto* loaded = static_cast<Module*>(module);
  if (!forked) {
    const Current current(loaded->context);
    const Uncaptured uncaptured;
    api.ModuleUnload(loaded->handle);
  }
  while (Function* function = loaded->functions) {
    loaded->functions = function->next;
    delete function;
  }
  delete loaded;
  return 0;
}

int function_get(void* module, const char* kernel, uint32_t dynamic_smem, void** function) {
  auto* loaded = static_cast<Module*>(module);
  const Current current(loaded->context);
  void* handle;
  if (const Result code = api.ModuleGetFunction(&handle, loaded->handle, kernel))
    return failed("cuModuleGetFunction", code);
  if (dynamic_smem > kSharedWithoutOptIn) {
    const int bytes = static_cast<int>(dynamic_smem);
    if (const Result code = api.FuncSetAttribute(handle, kMaxDynamicSharedSize, bytes))
      return failed("cuFuncSetAttribute", code);
  }
  loaded->functions = new Function{handle, loaded->context, loaded->functions};
  *function = loaded->functions;
  return 0;
}

int launch_with(void* function, tp_dim3 grid, tp_dim3 cluster, bool cooperative, tp_dim3 block,
                uint32_t dynamic_smem, void* stream, void** args) {
  if (const Result code = check_process()) return code;
  const auto& entry = *static_cast<Function*>(function);
  const Current current(entry.context);
  LaunchAttribute attributes[2];
  unsigned count = 0;
  if (cluster.x * cluster.y * cluster.z != 1) {
    attributes[count].id = kClusterDimension;
    attributes[count++].value.cluster = cluster;
  }
  if (cooperative) {
    attributes[count].id = kCooperative;
    attributes[count++].value.cooperative = 1;
  }
  if (count) {
    const LaunchConfig config = {grid, block, dynamic_smem, stream, attributes, count};
    if (const Result code = api.LaunchKernelEx(&config, entry.handle, args, nullptr))
      return failed("cuLaunchKernelEx", code);
  } else if (const Result code =
                 api.LaunchKernel(entry.handle, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                                  dynamic_smem, stream, args, nullptr)) {
    return failed("cuLaunchKernel", code);
  }
  return 0;
}

int launch(void* function, tp_dim3 grid, tp_dim3 cluster, tp_dim3 block, uint32_t dynamic_smem,
           void* stream, void** args) {
  return launch_with(function, grid, cluster, false, block, dynamic_smem, stream, args);
}

int launch_cooperative(void* function, tp_dim3 grid, tp_dim3 cluster, tp_dim3 block,
                       uint32_t dynamic_smem, void* stream, void** args) {
  return launch_with(function, grid, cluster, true, block, dynamic_smem, stream, args);
}

int tensor_map(const tp_tensor_map* what, void* map) {
  if (const Result code = check_process()) return code;
  const tp_tensor_map& w = *what;
  auto* address = reinterpret_cast<void*>(w.address);
  if (w.pixels) {
    const Result code = api.TensorMapEncodeIm2col(
        map, w.type, w.rank, address, w.extents, w.strides, w.lower, w.upper, w.channels, w.pixels,
        w.steps, w.interleave, w.swizzle, w.l2, w.fill);
    return code ? failed("cuTensorMapEncodeIm2col", code) : 0;
  }
  const Result code =
      api.TensorMapEncodeTiled(map, w.type, w.rank, address, w.extents, w.strides, w.box, w.steps,
                               w.interleave, w.swizzle, w.l2, w.fill);
  return code ? failed("cuTensorMapEncodeTiled", code) : 0;
}

const char* last_words(int) { return words; }

const tp_driver table = {TILEPROOF_DRIVER_ABI, "cuda",     module_load,        module_unload,
                         function_get,         launch,     last_words,
                         launch_cooperative,   tensor_map};

int answer(TVMFFIAny* result, Result code, int64_t value) {
  if (code) {
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", words);
    return -1;
  }
  result->type_index = kTVMFFIInt;
  result->v_int64 = value;
  return 0;
}

}  // namespace

// () -> address of the table. RuntimeError without a CUDA driver.
TILEPROOF_EXPORT int __tvm_ffi_cuda_driver(void*, const TVMFFIAny*, int32_t, TVMFFIAny* result) {
  const Result code = open();
  return answer(result, code, reinterpret_cast<int64_t>(&table));
}

// () -> number of devices. RuntimeError without a CUDA driver.
TILEPROOF_EXPORT int __tvm_ffi_cuda_devices(void*, const TVMFFIAny*, int32_t, TVMFFIAny* result) {
  int count = 0;
  Result code = open();
  if (!code && (code = api.DeviceGetCount(&count))) failed("cuDeviceGetCount", code);
  return answer(result, code, count);
}

// (device) -> compute capability, 90 for 9.0 and 120 for 12.0.
TILEPROOF_EXPORT int __tvm_ffi_cuda_capability(void*, const TVMFFIAny* args, int32_t,
                                               TVMFFIAny* result) {
  int major = 0, minor = 0;
  Device device = 0;
  Result code = open();
  if (!code && (code = api.DeviceGet(&device, static_cast<int>(args[0].v_int64))))
    failed("cuDeviceGet", code);
  if (!code && ((code = api.DeviceGetAttribute(&major, kCapabilityMajor, device)) ||
                (code = api.DeviceGetAttribute(&minor, kCapabilityMinor, device))))
    failed("cuDeviceGetAttribute", code);
  return answer(result, code, major * 10 + minor);
}
