// Machine faults inside a kernel (a wild address, a misaligned vector, a full stack) become errors
// of its launch instead of killing the process.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "machine.h"

namespace vgpu {

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr size_t kHandlerStack = 64 << 10;

std::mutex guards_mutex;
int guards = 0;
struct sigaction previous[3];

// Where in the kernel's text the faulting code was called from.
uint32_t site_of_fault(const void* context) {
#if defined(__x86_64__)
  const auto& registers = static_cast<const ucontext_t*>(context)->uc_mcontext.gregs;
  return site_of(*current->block, reinterpret_cast<const void*>(registers[REG_RBP]),
                 static_cast<uintptr_t>(registers[REG_RIP]) + 1);
#else
  static_cast<void>(context);
  return 0;
#endif
}

void on_fault(int signal, siginfo_t* info, void* context) {
  if (!current) {  // not ours: the fault repeats under the handler that was there before
    for (int i = 0; i < 3; ++i)
      if (kSignals[i] == signal) sigaction(signal, &previous[i], nullptr);
    return;
  }
  const char* at = static_cast<const char*>(info->si_addr);
  const Block& block = *current->block;
  const uint32_t site = site_of_fault(context);
  if (signal == SIGFPE) fail_at(site, "integer division by zero or overflow");
  if (at >= block.stacks_begin && at < block.stacks_end)
    fail_at(site, "local memory of a thread exceeds the virtual GPU's stack");
  if (info->si_code == SI_KERNEL)
    fail_at(site, "misaligned: vector access, or an address that cannot exist");
  fail_unmapped(*block.launch, reinterpret_cast<uintptr_t>(at), site);
}

}  // namespace

FaultGuard::FaultGuard() {
  const std::lock_guard<std::mutex> lock(guards_mutex);
  if (guards++) return;
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  // The handler leaves by switching stacks, so the signal must not stay blocked behind it.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &previous[i]);
}

FaultGuard::~FaultGuard() {
  const std::lock_guard<std::mutex> lock(guards_mutex);
  if (--guards) return;
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

FaultStack::FaultStack() : previous(new stack_t) {
  stack = mmap(nullptr, kHandlerStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  stack_t ours{};
  ours.ss_sp = stack;
  ours.ss_size = kHandlerStack;
  sigaltstack(&ours, static_cast<stack_t*>(previous));
}

FaultStack::~FaultStack() {
  sigaltstack(static_cast<stack_t*>(previous), nullptr);
  munmap(stack, kHandlerStack);
  delete static_cast<stack_t*>(previous);
}

}  // namespace vgpu
