// A libcuda.so.1 that records what it is asked, one line a call, in the file $MOCK_CUDA_LOG.
// MOCK_CUDA_FAIL=<function>:<code> makes one function fail.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int context = 7, module, function;
static void* current;
static int is_post;  // the last function got is mhc_post's kernel

int record(const char* name, const char* format, ...) {
  FILE* log = fopen(getenv("MOCK_CUDA_LOG"), "a");
  va_list values;
  va_start(values, format);
  fprintf(log, "%s ", name);
  vfprintf(log, format, values);
  fprintf(log, "\n");
  va_end(values);
  fclose(log);
  const char* fail = getenv("MOCK_CUDA_FAIL");
  size_t length = strlen(name);
  if (fail && !strncmp(fail, name, length) && fail[length] == ':') return atoi(fail + length + 1);
  return 0;
}

int cuInit(unsigned flags) { return record("cuInit", "%u", flags); }
// NVRTC, in the same process, asks for a table of the driver's own: there is none.
int cuGetExportTable(const void** table, const void* id) {
  (void)id;
  *table = 0;
  return 801;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return record("cuDeviceGet", "%d", ordinal);
}
int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  int capability = atoi(getenv("MOCK_CUDA_CAPABILITY"));
  *value = attribute == 75 ? capability / 10 : capability % 10;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** out, int device) {
  *out = &context;
  return record("cuDevicePrimaryCtxRetain", "%d", device);
}
int cuCtxGetCurrent(void** out) {
  *out = current;
  return 0;
}
int cuCtxPushCurrent_v2(void* pushed) {
  current = pushed;
  return record("cuCtxPushCurrent", "");
}
int cuCtxPopCurrent_v2(void** popped) {
  *popped = current;
  current = 0;
  return record("cuCtxPopCurrent", "");
}
int cuThreadExchangeStreamCaptureMode(int* mode);
int cuModuleLoadData(void** out, const void* image) {
  *out = &module;
  int mode = 0;  // loading is only allowed to a thread in relaxed mode while one captures
  cuThreadExchangeStreamCaptureMode(&mode);
  int relaxed = mode == 2;
  cuThreadExchangeStreamCaptureMode(&mode);
  return record("cuModuleLoadData", "%.4s%s", (const char*)image + 0, relaxed ? "" : " captured");
}
int cuModuleUnload(void* unloaded) { return record("cuModuleUnload", "%d", unloaded == &module); }
int cuModuleGetFunction(void** out, void* from, const char* name) {
  *out = &function;
  is_post = strncmp(name, "mhc_post", 8) == 0;
  return record("cuModuleGetFunction", "%d %s", from == &module, name);
}
int cuFuncSetAttribute(void* of, int attribute, int value) {
  return record("cuFuncSetAttribute", "%d %d %d", of == &function, attribute, value);
}
int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned smem, void* stream, void** args, void** extra) {
  (void)extra;
  if (!is_post) return record("cuLaunchKernel", "%d", f == &function);
  // mhc_post's parameters in the device's order: comb, out, post, x, y, M
  return record("cuLaunchKernel", "%d grid %u %u %u block %u %u %u smem %u stream %p M %d out %p",
                f == &function, gx, gy, gz, bx, by, bz, smem, stream, *(int*)args[5],
                *(void**)args[1]);
}
// tests/gpu/mock_libcuda.c, by CUDA's own header, replaces these.
#define WEAK __attribute__((weak))
// CUlaunchConfig and CUlaunchAttribute of the driver API.
struct attribute {
  int id;
  char padding[4];
  unsigned value[16];
};
struct config {
  unsigned grid[3], block[3], smem;
  void* stream;
  struct attribute* attributes;
  unsigned count;
};
WEAK int cuLaunchKernelEx(const struct config* c, void* f, void** args, void** extra) {
  (void)args;
  (void)extra;
  char text[200] = "";
  for (unsigned i = 0; i < c->count; ++i) {
    const unsigned* v = c->attributes[i].value;
    size_t length = strlen(text);
    if (c->attributes[i].id == 4)
      snprintf(text + length, sizeof text - length, " cluster %u %u %u", v[0], v[1], v[2]);
    else
      snprintf(text + length, sizeof text - length, " attribute %d = %u", c->attributes[i].id, v[0]);
  }
  return record("cuLaunchKernelEx", "%d grid %u %u %u block %u smem %u stream %p%s", f == &function,
                c->grid[0], c->grid[1], c->grid[2], c->block[0], c->smem, c->stream, text);
}
WEAK int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address,
                           const unsigned long long* extents, const unsigned long long* strides,
                           const unsigned* box, const unsigned* steps, int interleave, int swizzle,
                           int l2, int fill) {
  memset(map, 0x5a, 128);
  return record("cuTensorMapEncodeTiled",
                "type %d rank %u address %p extents %llu %llu stride %llu box %u %u steps %u %u how "
                "%d %d %d %d aligned %d", type, rank, address, extents[0], extents[1], strides[0],
                box[0], box[1], steps[0], steps[1], interleave, swizzle, l2, fill,
                (size_t)map % 64 == 0);
}
WEAK int cuTensorMapEncodeIm2col(void) { return 1; }
int cuThreadExchangeStreamCaptureMode(int* mode) {
  static int now = 0;
  int before = now;
  now = *mode;
  *mode = before;
  return 0;
}
int cuGetErrorName(int code, const char** name) {
  *name = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OUT_OF_MEMORY";
  return 0;
}
int cuGetErrorString(int code, const char** words) {
  *words = code == 700 ? "an illegal memory access was encountered" : "out of memory";
  return 0;
}
