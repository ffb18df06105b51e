// Switching between the stacks of CUDA threads. A fiber is its saved stack pointer.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(VGPU_UCONTEXT)

// Saves the caller's registers and stack in *save and continues where `resume` was saved.
extern "C" void vgpu_switch(void** save, void* resume);

namespace vgpu {

// A fiber that starts in `entry` (which must not return) on the stack ending at `top`.
inline void* make_fiber(char* top, size_t /* bytes */, void (*entry)()) {
  auto* frame = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
  *--frame = 0;  // end of the call chain; also makes the entry see the ABI's stack alignment
  *--frame = reinterpret_cast<uint64_t>(entry);
  for (int saved = 0; saved < 6; ++saved) *--frame = 0;
  return frame;
}

}  // namespace vgpu

#else  // portable, about ten times slower: swapcontext makes a system call

#include <ucontext.h>

#include <new>

inline void vgpu_switch(void** save, void* resume) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(resume));
}

namespace vgpu {

inline void* make_fiber(char* top, size_t bytes, void (*entry)()) {
  // The context of a fiber that never ran lies at the top of its own stack.
  const auto place = (reinterpret_cast<uintptr_t>(top) - sizeof(ucontext_t)) & ~uintptr_t(63);
  auto* context = new (reinterpret_cast<void*>(place)) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = top - bytes;
  context->uc_stack.ss_size = place - reinterpret_cast<uintptr_t>(top - bytes);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

}  // namespace vgpu

#endif
