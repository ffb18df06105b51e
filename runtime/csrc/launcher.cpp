// Checks a call against the tables of launcher.h and launches. The C ABI of TVM-FFI is used
// directly, so that the library needs libc and libtvm_ffi only, and a call allocates nothing.
#include "launcher.h"

#include <tvm/ffi/extra/c_env_api.h>

#include <cstring>
#include <memory>
#include <utility>

#include "map_cache.h"
#include "words.h"

#define LIKELY(x) __builtin_expect(!!(x), 1)

namespace tileproof {
namespace {

// One specialization on one device through one driver: what a bound function closes over.
struct Bound {
  const Kernel* kernel;
  const Plan* plan;
  const tp_driver* driver;
  int device_type, device_id;
  bool optional;  // whether optional launches are made
  void* module = nullptr;
  void* functions[kMaxLaunches] = {};
  std::unique_ptr<MapCache[]> caches[kMaxLaunches];  // one per map

  ~Bound() {
    if (module) driver->module_unload(module);
  }
};

void destroy(void* self) { delete static_cast<Bound*>(self); }

struct Span {
  uintptr_t begin, end;
};

int64_t value_of(const Size& size, const int64_t* dims) {
  if (size.letter < 0) return size.value;
  return size.value ? (dims[size.letter] + size.value - 1) / size.value : dims[size.letter];
}

int check_domain(const Kernel& kernel, const Tensor& tensor, const char* field, int axis,
                 const Letter& letter, int64_t got) {
  if (!LIKELY(got >= letter.lo && got <= letter.hi))
    return fail("ValueError", "%s: %s.%s[%d]: got %s=%lld, expected %s in %lld..%lld", kernel.op,
                tensor.name, field, axis, letter.name, (long long)got, letter.name,
                (long long)letter.lo, (long long)letter.hi);
  if (!LIKELY(letter.multiple == 1 || got % letter.multiple == 0))
    return fail("ValueError", "%s: %s.%s[%d]: got %s=%lld, expected a multiple of %lld", kernel.op,
                tensor.name, field, axis, letter.name, (long long)got, (long long)letter.multiple);
  return 0;
}

// One size or stride against its declaration. A dim (-1 before it is known) takes what it meets
// first, if its domain has it.
inline int check_size(const Kernel& kernel, const Tensor& tensor, const char* field, int axis,
                      const Size& size, int64_t got, int64_t* dims) {
  int64_t expected = value_of(size, dims);
  if (expected < 0) {
    if (check_domain(kernel, tensor, field, axis, kernel.letters[size.letter], got)) return -1;
    expected = dims[size.letter] = got;
  }
  if (!LIKELY(got == expected))
    return fail("ValueError", "%s: %s.%s[%d]: got %lld, expected %s", kernel.op, tensor.name, field,
                axis, (long long)got, expected_size(size, expected).chars);
  return 0;
}

// Strides of axes that are stepped along; the others may be anything. `last` becomes the offset of
// the last element.
int check_strides(const Kernel& kernel, const Tensor& tensor, const DLTensor& got, int64_t* dims,
                  uint64_t* last) {
  int64_t row = 1;  // elements that one step of a contiguous axis passes
  *last = 0;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    const int64_t contiguous = row;
    const int64_t stride = got.strides ? got.strides[i] : contiguous;
    row *= got.shape[i];
    if (got.shape[i] == 1) continue;
    if (tensor.strides) {
      if (check_size(kernel, tensor, "strides", i, tensor.strides[i], stride, dims)) return -1;
    } else if (!LIKELY(stride == contiguous)) {
      return fail("ValueError", "%s: %s.strides[%d]: got %lld, expected %lld (contiguous)",
                  kernel.op, tensor.name, i, (long long)stride, (long long)contiguous);
    }
    *last += static_cast<uint64_t>(got.shape[i] - 1) * static_cast<uint64_t>(stride);
  }
  return 0;
}

// Everything the declaration says about one tensor by itself. Fills in its address range and the
// dims that appear here first.
int check_tensor(const Bound& bound, const Tensor& tensor, const DLTensor& got, int64_t* dims,
                 Span* span) {
  const Kernel& kernel = *bound.kernel;
  const char *op = kernel.op, *name = tensor.name;
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
  bool empty = false;
  for (int i = 0; i < tensor.ndim; ++i) {
    if (check_size(kernel, tensor, "shape", i, tensor.axes[i], got.shape[i], dims)) return -1;
    empty |= got.shape[i] == 0;
  }
  const auto address = reinterpret_cast<uintptr_t>(got.data) + got.byte_offset;
  *span = {address, address};
  if (empty) return 0;  // nothing is dereferenced: address and strides are free
  uint64_t last;
  if (check_strides(kernel, tensor, got, dims, &last)) return -1;
  span->end = address + (last + 1) * ((got.dtype.bits * got.dtype.lanes + 7) / 8);
  if (!LIKELY(got.data))
    return fail("ValueError", "%s: %s: got a null pointer, expected memory", op, name);
  if (!LIKELY(address % tensor.align == 0))
    return fail("ValueError", "%s: %s: got address %#llx, expected a multiple of %u bytes", op,
                name, (unsigned long long)address, tensor.align);
  return 0;
}

// Rows must not overlap. A stride that no tensor shows (nothing steps along it) becomes the least
// that keeps this true.
int settle_strides(const Kernel& kernel, int64_t* dims) {
  int64_t least[kMaxLetters] = {};
  for (int pass = 0; pass < 2; ++pass) {  // first find what is open, then check
    for (int t = 0; t < kernel.tensor_count; ++t) {
      const Tensor& tensor = kernel.tensors[t];
      int64_t row = 1;
      for (int i = tensor.ndim - 1; tensor.strides && i >= 0; --i) {
        const Size& size = tensor.strides[i];
        int64_t stride = value_of(size, dims);
        if (stride < 0) {
          const Letter& letter = kernel.letters[size.letter];
          const int64_t lowest = row > letter.lo ? row : letter.lo;
          stride = (lowest + letter.multiple - 1) / letter.multiple * letter.multiple;
          if (stride > least[size.letter]) least[size.letter] = stride;
        } else if (!LIKELY(stride >= row)) {
          return fail("ValueError", "%s: %s.strides[%d]: got %lld, expected at least %lld, the "
                      "length of what it steps over", kernel.op, tensor.name, i, (long long)stride,
                      (long long)row);
        }
        if (pass == 1 && size.letter >= 0 &&
            check_domain(kernel, tensor, "strides", i, kernel.letters[size.letter], stride))
          return -1;
        row = stride * value_of(tensor.axes[i], dims);
      }
    }
    for (int i = 0; i < kernel.letter_count; ++i)
      if (dims[i] < 0) dims[i] = least[i];
  }
  return 0;
}

struct Extent {
  int64_t step, rest;  // bytes from one step of an axis to the next, bytes of all inner axes
};

Extent extent_of(const Kernel& kernel, const Tensor& tensor, int axis, const int64_t* dims) {
  const int64_t bytes = tensor.dtype.bits * tensor.dtype.lanes / 8;
  int64_t rest = 1;
  for (int i = axis + 1; i < tensor.ndim; ++i)
    rest += (value_of(tensor.axes[i], dims) - 1) * value_of(tensor.strides[i], dims);
  return {value_of(tensor.strides[axis], dims) * bytes, rest * bytes};
}

// Whether two tensors lie between each other's rows, like the parts of a page: both step alike along
// their outer axes, within a step neither reaches the next, and there, or further in, they part.
bool interleaved(const Kernel& kernel, int i, int j, const Span* spans, const int64_t* dims) {
  if (spans[j].begin < spans[i].begin) std::swap(i, j);
  const Tensor &first = kernel.tensors[i], &second = kernel.tensors[j];
  if (!first.strides || !second.strides) return false;
  int64_t apart = static_cast<int64_t>(spans[j].begin - spans[i].begin);
  for (int axis = 0; axis + 1 < first.ndim && axis + 1 < second.ndim; ++axis) {
    const Extent a = extent_of(kernel, first, axis, dims), b = extent_of(kernel, second, axis, dims);
    if (a.step != b.step) return false;
    apart %= a.step;
    if (apart + b.rest > a.step) return false;
    if (apart >= a.rest) return true;
  }
  return false;
}

// Kernels declare their pointers __restrict__, and proofs rely on it.
int check_separate(const Kernel& kernel, const Span* spans, const int64_t* dims) {
  for (int i = 0; i < kernel.tensor_count; ++i) {
    if (!kernel.tensors[i].written || spans[i].begin == spans[i].end) continue;
    for (int j = 0; j < kernel.tensor_count; ++j) {
      if (!LIKELY(i == j || spans[i].begin >= spans[j].end || spans[j].begin >= spans[i].end ||
                  spans[j].begin == spans[j].end || interleaved(kernel, i, j, spans, dims)))
        return fail("ValueError", "%s: %s: got memory that overlaps %s, expected its own", kernel.op,
                    kernel.tensors[i].name, kernel.tensors[j].name);
    }
  }
  return 0;
}

// The tensor maps of one launch, in `out`.
int encode_maps(const Bound& bound, int index, const int64_t* dims, const Span* spans,
                EncodedMap* out) {
  const Kernel& kernel = *bound.kernel;
  const Launch& what = bound.plan->launches[index];
  for (int i = 0; i < what.map_count; ++i) {
    const Map& map = what.maps[i];
    const MapKey key(spans[map.tensor].begin, dims, kernel.letter_count);
    MapCache& cache = bound.caches[index][i];
    if (LIKELY(cache.find(key, &out[i]))) continue;
    tp_tensor_map fields = {};
    map.fill(dims, &fields);
    fields.address = key.address;
    if (const int code = bound.driver->tensor_map(&fields, &out[i]))
      return fail("RuntimeError", "%s: tensor map of %s: %s", kernel.op,
                  kernel.tensors[map.tensor].name, bound.driver->error(code));
    cache.keep(key, out[i]);
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
  EncodedMap maps[kMaxMaps];
  if (what.map_count && encode_maps(bound, index, dims, spans, maps)) return -1;
  int32_t narrow[kMaxParameters];
  const void* values[kMaxParameters];
  for (int i = 0; i < what.parameter_count; ++i) {
    const Parameter& parameter = what.parameters[i];
    switch (parameter.kind) {
      case Parameter::kPointer: values[i] = &spans[parameter.index].begin; break;
      case Parameter::kInt64: values[i] = &dims[parameter.index]; break;
      case Parameter::kMap: values[i] = &maps[parameter.index]; break;
      case Parameter::kInt32:
        narrow[i] = static_cast<int32_t>(dims[parameter.index]);
        values[i] = &narrow[i];
        break;
    }
  }
  void* stream = TVMFFIEnvGetStream(bound.device_type, bound.device_id);
  const tp_dim3 blocks = {static_cast<uint32_t>(grid[0]), static_cast<uint32_t>(grid[1]),
                          static_cast<uint32_t>(grid[2])};
  const auto start = what.cooperative ? bound.driver->launch_cooperative : bound.driver->launch;
  const int code = start(bound.functions[index], blocks, what.cluster, what.block, what.smem, stream,
                         const_cast<void**>(values));
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
  bool strided = false;
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
    strided |= kernel.tensors[i].strides != nullptr;
  }
  if (strided && settle_strides(kernel, dims)) return -1;
  if (check_separate(kernel, spans, dims)) return -1;
  for (int i = 0; i < bound.plan->launch_count; ++i) {
    if (bound.plan->launches[i].optional && !bound.optional) continue;
    if (launch(bound, i, dims, spans)) return -1;
  }
  return 0;
}

}  // namespace

int bind(const Kernel& kernel, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  if (count != 7) return fail("TypeError", "%s: bind: got %d arguments, expected 7", kernel.op, count);
  const int64_t plan = args[0].v_int64;
  const auto* driver = reinterpret_cast<const tp_driver*>(args[1].v_int64);
  if (plan < 0 || plan >= kernel.plan_count)
    return fail("ValueError", "%s: bind: got plan %lld, expected below %d", kernel.op,
                (long long)plan, kernel.plan_count);
  if (driver->abi != TILEPROOF_DRIVER_ABI)
    return fail("RuntimeError", "%s: driver interface: got version %u, expected %u", kernel.op,
                driver->abi, TILEPROOF_DRIVER_ABI);
  std::unique_ptr<Bound> bound(new Bound{&kernel, &kernel.plans[plan], driver,
                                         static_cast<int>(args[2].v_int64),
                                         static_cast<int>(args[3].v_int64), args[6].v_int64 != 0});
  int code = driver->module_load(bound->device_id, reinterpret_cast<const void*>(args[4].v_int64),
                                 static_cast<size_t>(args[5].v_int64), &bound->module);
  for (int i = 0; code == 0 && i < bound->plan->launch_count; ++i) {
    const Launch& launch = bound->plan->launches[i];
    bound->caches[i].reset(new MapCache[launch.map_count]);
    code = driver->function_get(bound->module, launch.kernel, launch.smem, &bound->functions[i]);
  }
  if (code) return fail("RuntimeError", "%s: %s", kernel.op, driver->error(code));
  TVMFFIObjectHandle function;
  if (TVMFFIFunctionCreate(bound.get(), call, destroy, &function)) return -1;
  bound.release();
  result->type_index = kTVMFFIFunction;
  result->v_obj = static_cast<TVMFFIObject*>(function);
  return 0;
}

}  // namespace tileproof
