// Checks a call against the tables of launcher.h and launches. The C ABI of TVM-FFI is used
// directly, so that the library needs libc and libtvm_ffi only, and a call allocates nothing.
#include "launcher.h"

#include <tvm/ffi/extra/c_env_api.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#define LIKELY(x) __builtin_expect(!!(x), 1)

namespace tileproof {
namespace {

__attribute__((cold, format(printf, 2, 3))) int fail(const char* kind, const char* format, ...) {
  char words[1024];
  va_list values;
  va_start(values, format);
  vsnprintf(words, sizeof words, format, values);
  va_end(values);
  TVMFFIErrorSetRaisedFromCStr(kind, words);
  return -1;
}

struct Text {
  char chars[64];
};

Text type_name(DLDataType type) {
  const char* base = "type";
  switch (type.code) {
    case kDLInt: base = "int"; break;
    case kDLUInt: base = "uint"; break;
    case kDLFloat: base = "float"; break;
    case kDLBfloat: base = "bfloat"; break;
    case kDLComplex: base = "complex"; break;
    case kDLBool: return {"bool"};
    case kDLFloat8_e4m3fn: return {"float8_e4m3fn"};
    case kDLFloat8_e5m2: return {"float8_e5m2"};
    case kDLFloat8_e8m0fnu: return {"float8_e8m0fnu"};
    case kDLFloat4_e2m1fn: return {"float4_e2m1fn"};
    default: break;
  }
  Text text;
  if (type.lanes == 1)
    snprintf(text.chars, sizeof text.chars, "%s%d", base, type.bits);
  else
    snprintf(text.chars, sizeof text.chars, "%s%dx%d", base, type.bits, type.lanes);
  return text;
}

Text device_name(int type, int id) {
  if (type == kDLCPU) return {"cpu"};
  Text text;
  if (type == kDLCUDA)
    snprintf(text.chars, sizeof text.chars, "cuda:%d", id);
  else
    snprintf(text.chars, sizeof text.chars, "DLPack device type %d", type);
  return text;
}

// What an axis must be, in words: "64", "D=64" or "M=7".
Text expected_size(const Axis& axis, int64_t size) {
  Text text;
  const long long value = size;
  if (axis.label)
    snprintf(text.chars, sizeof text.chars, "%s=%lld", axis.label, value);
  else
    snprintf(text.chars, sizeof text.chars, "%lld", value);
  return text;
}

const char* value_name(int32_t type_index) {
  switch (type_index) {
    case kTVMFFINone: return "None";
    case kTVMFFIInt: return "an int";
    case kTVMFFIBool: return "a bool";
    case kTVMFFIFloat: return "a float";
    case kTVMFFIRawStr:
    case kTVMFFISmallStr:
    case kTVMFFIStr: return "a str";
    default: return "another object";
  }
}

// One specialization on one device through one driver: what a bound function closes over.
struct Bound {
  const Kernel* kernel;
  const Plan* plan;
  const tp_driver* driver;
  int device_type, device_id;
  void* module;
  void* functions[kMaxLaunches];
};

void destroy(void* self) {
  auto* bound = static_cast<Bound*>(self);
  if (bound->module) bound->driver->module_unload(bound->module);
  free(bound);
}

struct Span {
  uintptr_t begin, end;
};

// Everything the declaration says about one tensor. Fills in its address range and the dims that
// appear here first (dims[] is -1 before that).
int check_tensor(const Bound& bound, const Tensor& tensor, const DLTensor& got, int64_t* dims,
                 Span* span) {
  const char *op = bound.kernel->op, *name = tensor.name;
  if (!LIKELY(got.device.device_type == bound.device_type &&
              got.device.device_id == bound.device_id))
    return fail("ValueError", "%s: %s: got a tensor on %s, expected %s", op, name,
                device_name(got.device.device_type, got.device.device_id).chars,
                device_name(bound.device_type, bound.device_id).chars);
  if (!LIKELY(got.dtype.code == tensor.dtype.code && got.dtype.bits == tensor.dtype.bits &&
              got.dtype.lanes == tensor.dtype.lanes))
    return fail("TypeError", "%s: %s.dtype: got %s, expected %s", op, name,
                type_name(got.dtype).chars, type_name(tensor.dtype).chars);
  if (!LIKELY(got.ndim == tensor.ndim))
    return fail("ValueError", "%s: %s.ndim: got %d, expected %d", op, name, got.ndim, tensor.ndim);
  uint64_t elements = 1;
  for (int i = 0; i < tensor.ndim; ++i) {
    const Axis& axis = tensor.axes[i];
    const int64_t size = got.shape[i];
    int64_t expected = axis.letter < 0 ? axis.size : dims[axis.letter];
    if (expected < 0) {
      const Letter& letter = bound.kernel->letters[axis.letter];
      if (!LIKELY(size >= letter.lo && size <= letter.hi))
        return fail("ValueError", "%s: %s.shape[%d]: got %s=%lld, expected %s in %lld..%lld", op,
                    name, i, letter.name, (long long)size, letter.name, (long long)letter.lo,
                    (long long)letter.hi);
      if (!LIKELY(letter.multiple == 1 || size % letter.multiple == 0))
        return fail("ValueError", "%s: %s.shape[%d]: got %s=%lld, expected a multiple of %lld", op,
                    name, i, letter.name, (long long)size, (long long)letter.multiple);
      expected = dims[axis.letter] = size;
    }
    if (!LIKELY(size == expected))
      return fail("ValueError", "%s: %s.shape[%d]: got %lld, expected %s", op, name, i,
                  (long long)size, expected_size(axis, expected).chars);
    elements *= static_cast<uint64_t>(size);
  }
  const auto address = reinterpret_cast<uintptr_t>(got.data) + got.byte_offset;
  *span = {address, address + elements * ((got.dtype.bits * got.dtype.lanes + 7) / 8)};
  if (elements == 0) return 0;  // nothing is dereferenced: address and strides are free
  if (got.strides) {
    int64_t expected = 1;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
      if (!LIKELY(got.strides[i] == expected || got.shape[i] == 1))
        return fail("ValueError", "%s: %s.strides[%d]: got %lld, expected %lld (contiguous)", op,
                    name, i, (long long)got.strides[i], (long long)expected);
      expected *= got.shape[i];
    }
  }
  if (!LIKELY(got.data))
    return fail("ValueError", "%s: %s: got a null pointer, expected memory", op, name);
  if (!LIKELY(address % tensor.align == 0))
    return fail("ValueError", "%s: %s: got address %#llx, expected a multiple of %u bytes", op,
                name, (unsigned long long)address, tensor.align);
  return 0;
}

// Kernels declare their pointers __restrict__, and proofs rely on it.
int check_separate(const Kernel& kernel, const Span* spans) {
  for (int i = 0; i < kernel.tensor_count; ++i) {
    if (!kernel.tensors[i].written) continue;
    for (int j = 0; j < kernel.tensor_count; ++j) {
      if (!LIKELY(i == j || spans[i].begin >= spans[j].end || spans[j].begin >= spans[i].end ||
                  spans[j].begin == spans[j].end))
        return fail("ValueError", "%s: %s: got memory that overlaps %s, expected its own", kernel.op,
                    kernel.tensors[i].name, kernel.tensors[j].name);
    }
  }
  return 0;
}

int launch(const Bound& bound, int index, const int64_t* dims, const Span* spans) {
  const Kernel& kernel = *bound.kernel;
  const Launch& what = bound.plan->launches[index];
  int64_t grid[3];
  what.grid(dims, grid);
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return 0;
  if (!LIKELY(grid[0] <= 0x7fffffff && grid[1] <= 65535 && grid[2] <= 65535))
    return fail("ValueError", "%s: grid: got %lld x %lld x %lld blocks, expected at most "
                "2147483647 x 65535 x 65535", kernel.op, (long long)grid[0], (long long)grid[1],
                (long long)grid[2]);
  int32_t narrow[kMaxParameters];
  const void* values[kMaxParameters];
  for (int i = 0; i < what.parameter_count; ++i) {
    const Parameter& parameter = what.parameters[i];
    switch (parameter.kind) {
      case Parameter::kPointer: values[i] = &spans[parameter.index].begin; break;
      case Parameter::kInt64: values[i] = &dims[parameter.index]; break;
      case Parameter::kInt32:
        narrow[i] = static_cast<int32_t>(dims[parameter.index]);
        values[i] = &narrow[i];
        break;
    }
  }
  void* stream = TVMFFIEnvGetStream(bound.device_type, bound.device_id);
  const tp_dim3 blocks = {static_cast<uint32_t>(grid[0]), static_cast<uint32_t>(grid[1]),
                          static_cast<uint32_t>(grid[2])};
  const int code = bound.driver->launch(bound.functions[index], blocks, {1, 1, 1}, what.block,
                                        what.smem, stream, const_cast<void**>(values));
  if (!LIKELY(code == 0))
    return fail("RuntimeError", "%s: %s", kernel.op, bound.driver->error(code));
  return 0;
}

int call(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny*) {
  const Bound& bound = *static_cast<Bound*>(self);
  const Kernel& kernel = *bound.kernel;
  if (!LIKELY(count == kernel.tensor_count))
    return fail("TypeError", "%s: got %d arguments, expected %d tensors", kernel.op, count,
                kernel.tensor_count);
  int64_t dims[kMaxLetters];
  for (int i = 0; i < kernel.letter_count; ++i) dims[i] = -1;
  Span spans[kMaxTensors];
  for (int i = 0; i < count; ++i) {
    const DLTensor* tensor;
    if (args[i].type_index == kTVMFFIDLTensorPtr)
      tensor = static_cast<const DLTensor*>(args[i].v_ptr);
    else if (args[i].type_index == kTVMFFITensor)
      tensor = TVMFFITensorGetDLTensorPtr(args[i].v_obj);
    else
      return fail("TypeError", "%s: %s: got %s, expected a tensor", kernel.op,
                  kernel.tensors[i].name, value_name(args[i].type_index));
    if (check_tensor(bound, kernel.tensors[i], *tensor, dims, &spans[i])) return -1;
  }
  if (check_separate(kernel, spans)) return -1;
  for (int i = 0; i < bound.plan->launch_count; ++i)
    if (launch(bound, i, dims, spans)) return -1;
  return 0;
}

}  // namespace

int bind(const Kernel& kernel, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  if (count != 6) return fail("TypeError", "%s: bind: got %d arguments, expected 6", kernel.op, count);
  const int64_t plan = args[0].v_int64;
  const auto* driver = reinterpret_cast<const tp_driver*>(args[1].v_int64);
  if (plan < 0 || plan >= kernel.plan_count)
    return fail("ValueError", "%s: bind: got plan %lld, expected below %d", kernel.op,
                (long long)plan, kernel.plan_count);
  if (driver->abi != TILEPROOF_DRIVER_ABI)
    return fail("RuntimeError", "%s: driver interface: got version %u, expected %u", kernel.op,
                driver->abi, TILEPROOF_DRIVER_ABI);
  auto* bound = static_cast<Bound*>(calloc(1, sizeof(Bound)));
  bound->kernel = &kernel;
  bound->plan = &kernel.plans[plan];
  bound->driver = driver;
  bound->device_type = static_cast<int>(args[2].v_int64);
  bound->device_id = static_cast<int>(args[3].v_int64);
  int code = driver->module_load(bound->device_id, reinterpret_cast<const void*>(args[4].v_int64),
                                 static_cast<size_t>(args[5].v_int64), &bound->module);
  for (int i = 0; code == 0 && i < bound->plan->launch_count; ++i) {
    const Launch& launch = bound->plan->launches[i];
    code = driver->function_get(bound->module, launch.kernel, launch.smem, &bound->functions[i]);
  }
  if (code) {
    fail("RuntimeError", "%s: %s", kernel.op, driver->error(code));
    destroy(bound);
    return -1;
  }
  TVMFFIObjectHandle function;
  if (TVMFFIFunctionCreate(bound, call, destroy, &function)) {
    destroy(bound);
    return -1;
  }
  result->type_index = kTVMFFIFunction;
  result->v_obj = static_cast<TVMFFIObject*>(function);
  return 0;
}

}  // namespace tileproof
