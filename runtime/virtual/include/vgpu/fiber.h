// Switching between the stacks of CUDA threads. A fiber is its saved stack pointer.
#pragma once
#include <cstddef>
#include <cstdint>

namespace vgpu {

// Where the running fiber keeps its stack pointer, and where that of the next one is kept.
struct Suspension {
  void** save;
  void** resume;
};

}  // namespace vgpu

// VGPU_PORTABLE: on x86-64 too, what other machines compile.
#if defined(__x86_64__) && !defined(VGPU_PORTABLE)

// Continues where `resume` was kept. Always inline, and by a jump: calls and returns must stay paired
// on each fiber, because the processor predicts a return from the call it saw last.
inline __attribute__((always_inline, no_sanitize_thread)) void vgpu_switch(vgpu::Suspension to) {
  __asm__ volatile(
      "pushq %%rbp\n\t"
      "leaq 1f(%%rip), %%rax\n\t"
      "pushq %%rax\n\t"
      "movq %%rsp, (%0)\n\t"
      "movq (%1), %%rsp\n\t"
      "popq %%rax\n\t"
      "jmp *%%rax\n"
      "1:\n\t"
      "popq %%rbp"
      : "+D"(to.save), "+S"(to.resume)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory",
        "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

namespace vgpu {

// A fiber that starts in `entry` (which must not return) on the stack ending at `top`.
inline void* make_fiber(char* top, size_t /* bytes */, void (*entry)()) {
  auto* frame = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
  *--frame = 0;  // end of the call chain; also makes the entry see the ABI's stack alignment
  *--frame = reinterpret_cast<uint64_t>(entry);
  return frame;
}

}  // namespace vgpu

#else  // portable, about ten times slower: swapcontext makes a system call

#include <ucontext.h>

#include <new>

inline __attribute__((no_sanitize_thread)) void vgpu_switch(vgpu::Suspension to) {
  ucontext_t here;
  *to.save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(*to.resume));
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
