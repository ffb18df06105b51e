// Kernels of torch ops without Python: a call finds the launcher of its sizes in a table, allocates
// the outputs and launches. What the table lacks goes to the op's Python implementation, which
// answers and may offer an entry for the next call of these sizes.
//
// Torch is reached through its stable C interface, looked up at run time and declared here, so
// neither torch's headers nor its version matter when a bundle is built.
#include <dlfcn.h>
#include <tvm/ffi/extra/c_env_api.h>

#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "launcher.h"

// pybind11 translates exceptions derived from its own class by calling set_error; they are matched
// by name, so this declaration is that class. Where it were not, a RuntimeError has the same words.
namespace pybind11 {
class __attribute__((visibility("default"))) builtin_exception : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  virtual void set_error() const = 0;
};
}  // namespace pybind11

namespace {

using Handle = void*;          // AtenTensorHandle
using StableIValue = uint64_t;  // a handle, the bits of an int or a double, or a pointer to one
using BoxedKernel = void (*)(StableIValue*, uint64_t, uint64_t);

constexpr int kMaxOps = 256, kMaxInputs = tileproof::kMaxTensors, kMaxAxes = 8, kMaxKey = 64;
constexpr size_t kMaxEntries = 64;  // of an op; a call may choose sizes that none had before
constexpr int64_t kNone = INT64_MIN;

struct Torch {
  int (*library_init_impl)(const char*, const char*, const char*, uint32_t, void**);
  int (*library_impl)(void*, const char*, BoxedKernel);
  int (*call_dispatcher)(const char*, const char*, StableIValue*);
  int (*get_data_ptr)(Handle, void**);
  int (*get_dim)(Handle, int64_t*);
  int (*get_sizes)(Handle, int64_t**);
  int (*get_strides)(Handle, int64_t**);
  int (*get_dtype)(Handle, int32_t*);
  int (*get_device_type)(Handle, int32_t*);
  int (*get_device_index)(Handle, int32_t*);
  int (*empty_strided)(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle*);
  int (*delete_tensor_object)(Handle);
  bool (*grad_mode_is_enabled)();
};

Torch torch;
int32_t cpu_type, cuda_type;
int (*current_cuda_stream)(int32_t, void**);  // null in a torch without CUDA

constexpr int kMaxTypes = 128;
DLDataType elements[kMaxTypes];  // by torch's number of a type; no bits: none of ours

// Looks torch up, once. False for a torch that lacks something: its ops stay in Python.
bool find_torch() {
  static const bool found = [] {
    void* library = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
    if (!library) return false;
#define FIND(field) \
  if (!(*reinterpret_cast<void**>(&torch.field) = dlsym(library, "aoti_torch_" #field))) return false
    FIND(library_init_impl);
    FIND(library_impl);
    FIND(call_dispatcher);
    FIND(get_data_ptr);
    FIND(get_dim);
    FIND(get_sizes);
    FIND(get_strides);
    FIND(get_dtype);
    FIND(get_device_type);
    FIND(get_device_index);
    FIND(empty_strided);
    FIND(delete_tensor_object);
    FIND(grad_mode_is_enabled);
#undef FIND
    const auto number = [library](const std::string& name, int32_t* out) {
      const auto get = reinterpret_cast<int32_t (*)()>(dlsym(library, name.c_str()));
      if (get) *out = get();
      return get != nullptr;
    };
    if (!number("aoti_torch_device_type_cpu", &cpu_type) ||
        !number("aoti_torch_device_type_cuda", &cuda_type))
      return false;
    const std::pair<const char*, DLDataType> names[] = {
        {"bool", {kDLBool, 8, 1}},       {"int8", {kDLInt, 8, 1}},
        {"uint8", {kDLUInt, 8, 1}},      {"int32", {kDLInt, 32, 1}},
        {"int64", {kDLInt, 64, 1}},      {"float16", {kDLFloat, 16, 1}},
        {"bfloat16", {kDLBfloat, 16, 1}}, {"float32", {kDLFloat, 32, 1}},
        {"float64", {kDLFloat, 64, 1}},  {"float8_e4m3fn", {kDLFloat8_e4m3fn, 8, 1}},
    };
    for (const auto& [name, dtype] : names) {
      int32_t type;
      if (number(std::string("aoti_torch_dtype_") + name, &type) && type >= 0 && type < kMaxTypes)
        elements[type] = dtype;
    }
    if (void* cuda = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD))
      *reinterpret_cast<void**>(&current_cuda_stream) =
          dlsym(cuda, "aoti_torch_get_current_cuda_stream");
    return true;
  }();
  return found;
}

struct Axis {
  int64_t input, axis;  // input -1: `axis` is the size itself
};

struct Output {
  int32_t torch_type;
  DLDataType dtype;
  int ndim;
  Axis axes[kMaxAxes];
};

// What a call of one key does. Calls that run keep it alive when it was forgotten meanwhile.
struct Entry {
  std::vector<int64_t> key;
  TVMFFIObjectHandle function = nullptr;
  std::vector<Output> outputs;

  Entry() = default;
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;
  ~Entry() {
    if (function) TVMFFIObjectDecRef(function);
  }
};
using Shared = std::shared_ptr<Entry>;

struct Op {
  std::string python;  // the op of the same schema that is implemented in Python
  int inputs = 0, outputs = 0;
  std::vector<bool> options;  // whether each keyword is optional
  std::vector<Axis> axes;     // sizes that choose the kernel
  std::vector<int64_t> typed;  // inputs whose element type does
  std::vector<Shared> entries;
};

Op ops[kMaxOps];
int op_count = 0;
std::shared_mutex mutex;      // of `ops`; nothing that may wait for Python is done under it
uint64_t generation = 0;      // of the active library
bool paused = false;          // somewhere a call may mean another library
thread_local Shared* offered;  // where Python puts an entry during a call

// The exception Python met during a call on this thread: a reference of its own.
thread_local void* raised;
thread_local std::string raised_words;

template <class Function>
Function python(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

// The exception that the Python implementation met, as it was. Only pybind11 calls set_error, with
// Python's lock and once.
struct Raised : pybind11::builtin_exception {
  explicit Raised(void* exception) : builtin_exception(raised_words), object(exception) {}
  void set_error() const override {
    const auto type = python<void* (*)(void*)>("PyObject_Type")(object);
    python<void (*)(void*, void*)>("PyErr_SetObject")(type, object);
    python<void (*)(void*)>("Py_DecRef")(type);
    python<void (*)(void*)>("Py_DecRef")(object);
  }
  void* object;
};

bool read(Handle handle, DLTensor* out, int32_t* torch_type) {
  int64_t ndim;
  int32_t device_type, device_index;
  if (torch.get_dim(handle, &ndim) || torch.get_sizes(handle, &out->shape) ||
      torch.get_strides(handle, &out->strides) || torch.get_data_ptr(handle, &out->data) ||
      torch.get_dtype(handle, torch_type) || torch.get_device_type(handle, &device_type))
    return false;
  if (device_type == cpu_type)
    out->device = {kDLCPU, 0};
  else if (device_type == cuda_type && current_cuda_stream &&
           !torch.get_device_index(handle, &device_index))
    out->device = {kDLCUDA, device_index};
  else
    return false;
  if (*torch_type < 0 || *torch_type >= kMaxTypes) return false;
  out->ndim = static_cast<int32_t>(ndim);
  out->byte_offset = 0;
  out->dtype = elements[*torch_type];
  return out->dtype.bits != 0;
}

// A call: its arguments, and the key that says which entry it needs.
struct Call {
  DLTensor tensors[kMaxInputs];
  int64_t key[kMaxKey];
  size_t length = 0;

  bool read_arguments(const Op& op, const StableIValue* stack) {
    int32_t types[kMaxInputs];
    for (int i = 0; i < op.inputs; ++i)
      if (!read(reinterpret_cast<Handle>(stack[i]), &tensors[i], &types[i])) return false;
    key[length++] = tensors[0].device.device_type;
    key[length++] = tensors[0].device.device_id;
    for (const Axis& a : op.axes) {
      if (a.axis >= tensors[a.input].ndim) return false;
      key[length++] = tensors[a.input].shape[a.axis];
    }
    for (const int64_t input : op.typed) key[length++] = types[input];
    for (size_t i = 0; i < op.options.size(); ++i) {
      const StableIValue value = stack[op.inputs + i];
      const auto* pointed = reinterpret_cast<const StableIValue*>(value);
      key[length++] = static_cast<int64_t>(!op.options[i] ? value : pointed ? *pointed : kNone);
    }
    return true;
  }

  Shared find(const Op& op) const {
    for (const Shared& entry : op.entries)
      if (!memcmp(entry->key.data(), key, length * sizeof *key)) return entry;
    return nullptr;
  }

  // Allocates and launches. False if the Python implementation should say what is wrong; nothing
  // was launched then. Throws what a driver says.
  bool run(const Op& op, const Entry& entry, Handle* results) {
    TVMFFIAny arguments[kMaxInputs];
    int64_t space[kMaxInputs][2 * kMaxAxes];
    size_t made = 0;
    for (const Output& output : entry.outputs) {
      int64_t *sizes = space[made], *strides = sizes + kMaxAxes, row = 1;
      for (int i = output.ndim - 1; i >= 0; --i) {
        const Axis& a = output.axes[i];
        if (a.input >= 0 && a.axis >= tensors[a.input].ndim) return drop(results, made);
        sizes[i] = a.input < 0 ? a.axis : tensors[a.input].shape[a.axis];
        strides[i] = row;
        row *= sizes[i] > 1 ? sizes[i] : 1;
      }
      const DLDevice device = tensors[0].device;
      Handle& result = results[made];
      if (torch.empty_strided(output.ndim, sizes, strides, output.torch_type,
                              device.device_type == kDLCPU ? cpu_type : cuda_type, device.device_id,
                              &result))
        return drop(results, made);
      DLTensor& tensor = tensors[op.inputs + made++];
      tensor = {nullptr, device, output.ndim, output.dtype, sizes, strides, 0};
      if (torch.get_data_ptr(result, &tensor.data)) return drop(results, made);
    }
    const int count = op.inputs + static_cast<int>(made);
    for (int i = 0; i < count; ++i) {
      arguments[i] = {};
      arguments[i].type_index = kTVMFFIDLTensorPtr;
      arguments[i].v_ptr = &tensors[i];
    }
    if (launch(entry.function, arguments, count)) return true;
    drop(results, made);
    TVMFFIObjectHandle error = nullptr;
    TVMFFIErrorMoveFromRaised(&error);
    if (!error) return false;
    const TVMFFIErrorCell* cell = TVMFFIErrorGetCellPtr(error);
    const std::string kind(cell->kind.data, cell->kind.size);
    const std::string words(cell->message.data, cell->message.size);
    TVMFFIObjectDecRef(error);
    if (kind == "RuntimeError") throw std::runtime_error(words);
    return false;
  }

  bool launch(TVMFFIObjectHandle function, TVMFFIAny* arguments, int count) const {
    const DLDevice device = tensors[0].device;
    TVMFFIAny nothing = {};
    if (device.device_type == kDLCPU) return !TVMFFIFunctionCall(function, arguments, count, &nothing);
    void* stream;
    TVMFFIStreamHandle before;
    if (current_cuda_stream(device.device_id, &stream)) return false;
    TVMFFIEnvSetStream(device.device_type, device.device_id, stream, &before);
    const int code = TVMFFIFunctionCall(function, arguments, count, &nothing);
    TVMFFIEnvSetStream(device.device_type, device.device_id, before, nullptr);
    return !code;
  }

  static bool drop(Handle* results, size_t made) {
    for (size_t i = 0; i < made; ++i) torch.delete_tensor_object(results[i]);
    return false;
  }
};

void release(const Op& op, StableIValue* stack) {
  for (int i = 0; i < op.inputs; ++i)
    torch.delete_tensor_object(reinterpret_cast<Handle>(stack[i]));
  for (size_t i = 0; i < op.options.size(); ++i)
    if (op.options[i]) delete reinterpret_cast<StableIValue*>(stack[op.inputs + i]);
}

// True if the call was answered. Gradients are Python's business, and so is any other library.
bool run_here(const Op& op, StableIValue* stack, Call* call, uint64_t* seen) {
  if (torch.grad_mode_is_enabled()) return false;
  const bool complete = call->read_arguments(op, stack);
  Shared entry;
  {
    const std::shared_lock<std::shared_mutex> lock(mutex);
    *seen = generation;
    if (complete && !paused) entry = call->find(op);
  }
  if (!complete) call->length = 0;
  Handle results[kMaxInputs];
  if (!entry) return false;
  try {
    if (!call->run(op, *entry, results)) return false;
  } catch (...) {
    release(op, stack);
    throw;
  }
  release(op, stack);
  for (int i = 0; i < op.outputs; ++i) stack[i] = reinterpret_cast<StableIValue>(results[i]);
  return true;
}

void run_op(Op& op, StableIValue* stack) {
  Call call;
  uint64_t seen = 0;
  if (run_here(op, stack, &call, &seen)) return;
  Shared entry;
  Shared* const outer = std::exchange(offered, &entry);
  raised = nullptr;
  const int code = torch.call_dispatcher(op.python.c_str(), "", stack);
  offered = outer;
  void* const exception = std::exchange(raised, nullptr);
  if (exception || code) {
    for (int i = 0; !code && i < op.outputs; ++i)
      torch.delete_tensor_object(reinterpret_cast<Handle>(stack[i]));
    if (exception) throw Raised(exception);
    throw std::runtime_error(op.python + " failed");
  }
  if (!entry || !call.length) return;
  entry->key.assign(call.key, call.key + call.length);
  Shared forgotten;  // let go of without the lock
  const std::lock_guard<std::shared_mutex> lock(mutex);
  if (seen != generation || call.find(op)) return;
  if (op.entries.size() == kMaxEntries) {
    forgotten = std::move(op.entries.front());
    op.entries.erase(op.entries.begin());
  }
  op.entries.push_back(std::move(entry));
}

// Torch passes a kernel no closure, so every op has a function of its own.
template <int slot>
void kernel(StableIValue* stack, uint64_t, uint64_t) {
  run_op(ops[slot], stack);
}

template <int... slots>
constexpr std::array<BoxedKernel, sizeof...(slots)> all_kernels(
    std::integer_sequence<int, slots...>) {
  return {kernel<slots>...};
}
constexpr auto kernels = all_kernels(std::make_integer_sequence<int, kMaxOps>());

const int64_t* numbers(const TVMFFIAny& address) {
  return reinterpret_cast<const int64_t*>(address.v_int64);
}

int failed(const char* words) {
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", words);
  return -1;
}

}  // namespace

// (namespace, namespace of the Python implementations, stem, layout) -> whether
// torch.ops.<namespace>.<stem> is implemented here from now on. Addresses are integers; texts are
// NUL-terminated. layout: inputs, outputs, axes, typed inputs, options;
// then (input, axis) of each axis, the typed inputs, and for each option whether it is optional.
TILEPROOF_EXPORT int __tvm_ffi_torch_implement(void*, const TVMFFIAny* args, int32_t,
                                               TVMFFIAny* result) {
  result->type_index = kTVMFFIBool;
  result->v_int64 = 0;
  const auto text = [args](int i) { return reinterpret_cast<const char*>(args[i].v_int64); };
  const std::string space = text(0), stem = text(2);
  const int64_t* layout = numbers(args[3]);
  const int64_t *counts = layout, *rest = layout + 5;
  const bool fits = counts[0] + counts[1] <= kMaxInputs && counts[0] > 0 &&
                    2 + counts[2] + counts[3] + counts[4] <= kMaxKey;
  if (!find_torch() || !fits) return 0;
  const std::lock_guard<std::shared_mutex> lock(mutex);
  if (op_count == kMaxOps) return 0;
  Op& op = ops[op_count];
  op.python = std::string(text(1)) + "::" + stem;
  op.inputs = static_cast<int>(counts[0]);
  op.outputs = static_cast<int>(counts[1]);
  for (int64_t i = 0; i < counts[2]; ++i, rest += 2) op.axes.push_back({rest[0], rest[1]});
  for (int64_t i = 0; i < counts[3]; ++i) op.typed.push_back(*rest++);
  for (int64_t i = 0; i < counts[4]; ++i) op.options.push_back(*rest++ != 0);
  for (const char* key : {"CPU", "CUDA"}) {
    void* library;  // never deleted: that would take the implementation back
    if (torch.library_init_impl(space.c_str(), key, "torch_op.cpp", 0, &library) ||
        torch.library_impl(library, stem.c_str(), kernels[op_count]))
      return failed(("torch refused the kernel of " + space + "::" + stem).c_str());
  }
  ++op_count;
  result->v_int64 = 1;
  return 0;
}

// (function, layout): called by the Python implementation of an op that was called here. The
// function takes inputs, then outputs, and needs no Python. layout: outputs, then of each: DLPack
// type code and bits, rank, and per axis (input, axis), or (-1, size).
TILEPROOF_EXPORT int __tvm_ffi_torch_offer(void*, const TVMFFIAny* args, int32_t, TVMFFIAny*) {
  if (!offered) return 0;
  auto entry = std::make_shared<Entry>();
  const int64_t* next = numbers(args[1]);
  for (int64_t count = *next++; count > 0; --count) {
    Output output{-1, {static_cast<uint8_t>(next[0]), static_cast<uint8_t>(next[1]), 1},
                  static_cast<int>(next[2]), {}};
    next += 3;
    if (output.ndim > kMaxAxes) return 0;
    for (int i = 0; i < output.ndim; ++i, next += 2) output.axes[i] = {next[0], next[1]};
    for (int type = 0; type < kMaxTypes; ++type)
      if (!memcmp(&elements[type], &output.dtype, sizeof output.dtype)) output.torch_type = type;
    if (output.torch_type < 0) return 0;
    entry->outputs.push_back(output);
  }
  entry->function = args[0].v_obj;
  TVMFFIObjectIncRef(entry->function);
  *offered = std::move(entry);
  return 0;
}

// (exception, words): the address of what the Python implementation met, with a reference that is
// given back when it is raised again; words: NUL-terminated.
TILEPROOF_EXPORT int __tvm_ffi_torch_raise(void*, const TVMFFIAny* args, int32_t, TVMFFIAny*) {
  raised = reinterpret_cast<void*>(args[0].v_int64);
  raised_words = reinterpret_cast<const char*>(args[1].v_int64);
  return 0;
}

// (paused): forgets every entry; with `paused`, every call goes to Python until called again.
TILEPROOF_EXPORT int __tvm_ffi_torch_forget(void*, const TVMFFIAny* args, int32_t, TVMFFIAny*) {
  std::vector<std::vector<Shared>> old;  // unloading a module may take its time: not under the lock
  const std::lock_guard<std::shared_mutex> lock(mutex);
  ++generation;
  paused = args[0].v_int64 != 0;
  for (int i = 0; i < op_count; ++i) old.push_back(std::exchange(ops[i].entries, {}));
  return 0;
}
