// A libcuda.so.1 that records what it is asked, one line a call, in the file $MOCK_CUDA_LOG.
// MOCK_CUDA_FAIL=<function>:<code> makes one function fail.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int context = 7, module, function;
static void* current;

static int record(const char* name, const char* format, ...) {
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
int cuModuleLoadData(void** out, const void* image) {
  *out = &module;
  return record("cuModuleLoadData", "%.4s", (const char*)image + 0);
}
int cuModuleUnload(void* unloaded) { return record("cuModuleUnload", "%d", unloaded == &module); }
int cuModuleGetFunction(void** out, void* from, const char* name) {
  *out = &function;
  return record("cuModuleGetFunction", "%d %s", from == &module, name);
}
int cuFuncSetAttribute(void* of, int attribute, int value) {
  return record("cuFuncSetAttribute", "%d %d %d", of == &function, attribute, value);
}
int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned smem, void* stream, void** args, void** extra) {
  (void)extra;
  // mhc_post's parameters in the device's order: comb, out, post, x, y, M
  return record("cuLaunchKernel", "%d grid %u %u %u block %u %u %u smem %u stream %p M %d out %p",
                f == &function, gx, gy, gz, bx, by, bz, smem, stream, *(int*)args[5],
                *(void**)args[1]);
}
int cuGetErrorName(int code, const char** name) {
  *name = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OUT_OF_MEMORY";
  return 0;
}
int cuGetErrorString(int code, const char** words) {
  *words = code == 700 ? "an illegal memory access was encountered" : "out of memory";
  return 0;
}
