// First include of the translation unit built around a kernel's CUDA text: the whole vocabulary,
// then the table through which libvgpu finds the kernels.
#pragma once
#include "vgpu/all.h"
#if defined(VGPU_CHECKED)
#include "vgpu/instrumentation.h"
#endif

namespace vgpu {

constexpr uint32_t kModuleAbi = 2;
constexpr uint32_t kSharedCapacity = 232448;  // 227 KiB, the most any block may have (sm_90, sm_100)

struct Parameter {
  bool tensor_map;
  bool pointer, constant;  // constant: a pointer to const
  uint32_t bytes;          // of the parameter; of the pointee when it is a pointer
};

struct Kernel {
  const char* name;
  void (*call)(void** arguments);
  const Parameter* parameters;
  uint32_t parameter_count;
  void* (*dynamic_shared)();  // this OS thread's array, null if the kernel declares none
};

struct Module {
  uint32_t abi;
  bool checked;
  const Kernel* kernels;
  uint32_t kernel_count;
  void (*touch_shared)();  // makes this OS thread's shared memory exist
  const char *text_begin, *text_end;  // code of the kernels themselves
};

#if defined(VGPU_CHECKED)
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

}  // namespace vgpu

// Made by the linker around the section of VGPU_KERNEL_TEXT.
extern "C" __attribute__((weak, visibility("hidden"))) const char __start_vgpu_kernels[];
extern "C" __attribute__((weak, visibility("hidden"))) const char __stop_vgpu_kernels[];

namespace vgpu {

// The dynamic linker makes a thread's copy of thread_local variables on first use of one.
static thread_local volatile char shared_anchor;
VGPU_LEAF inline void touch_shared() { shared_anchor = 1; }

template <class T>
constexpr Parameter describe() {
  if constexpr (std::is_pointer_v<T>) {
    using Pointee = std::remove_pointer_t<T>;
    if constexpr (std::is_void_v<Pointee>) return {false, true, std::is_const_v<Pointee>, 1};
    else return {false, true, std::is_const_v<Pointee>, sizeof(Pointee)};
  } else {
    return {std::is_same_v<T, CUtensorMap>, false, false, sizeof(T)};
  }
}

template <auto Function>
struct Export;

template <class... Ts, void (*Function)(Ts...)>
struct Export<Function> {
  static constexpr Parameter parameters[sizeof...(Ts) + 1] = {describe<std::decay_t<Ts>>()..., {}};
  static constexpr uint32_t count = sizeof...(Ts);

  VGPU_RAW static void call(void** arguments) { spread(arguments, std::index_sequence_for<Ts...>{}); }

 private:
  template <size_t... I>
  VGPU_LEAF static void spread(void** arguments, std::index_sequence<I...>) {
    Function(*static_cast<std::remove_cv_t<std::remove_reference_t<Ts>>*>(arguments[I])...);
  }
};

}  // namespace vgpu

#define VGPU_KERNEL(NAME, SHARED)                                                           \
  {#NAME, vgpu::Export<NAME>::call, vgpu::Export<NAME>::parameters, vgpu::Export<NAME>::count, \
   SHARED}
