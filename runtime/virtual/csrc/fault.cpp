// Machine faults inside a kernel (a wild address, a misaligned vector, a full stack) become errors
// of its launch instead of killing the process; so do ctrl-C and the end of the launch's time, which
// reach a loop that never calls the library by a signal too.
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
struct sigaction previous[3], previous_interrupt, previous_stop;

constexpr int kStop = SIGURG;  // ignored by default: one that comes late does no harm
constexpr int kMaxRunning = 1024;
std::atomic<bool> interrupt_seen{false};
std::atomic<pthread_t> running[kMaxRunning];  // OS threads that run blocks; 0 is a free place

// What a signal interrupted: an instruction and the frame record that was current there.
struct Interrupted {
  uintptr_t pc, frame;
};

Interrupted interrupted_by_signal(const void* context) {
  const mcontext_t& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return {static_cast<uintptr_t>(machine.gregs[REG_RIP]),
          static_cast<uintptr_t>(machine.gregs[REG_RBP])};
#elif defined(__aarch64__)
  return {machine.pc, machine.regs[29]};
#else
#error "where does a signal's context keep the program counter and the frame pointer here?"
#endif
}

// Where in the kernel's text the faulting code was called from.
uint32_t site_of_fault(const void* context) {
  const Interrupted at = interrupted_by_signal(context);
  return site_of(*current->block, reinterpret_cast<const void*>(at.frame), at.pc + 1);
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

const char* reason_to_stop(const Launch& launch) {
  if (interrupt_seen) return "endless: interrupted";
  return launch.expired ? "endless: the kernel did not come to its end in the launch's time" : nullptr;
}

void wake_running() {
  for (std::atomic<pthread_t>& thread : running)
    if (const pthread_t target = thread; target && !pthread_equal(target, pthread_self()))
      pthread_kill(target, kStop);
}

// Code of the kernel itself can be left at any point; the library looks for itself.
void on_stop(int, siginfo_t*, void* context) {
  if (!current) return;
  const uintptr_t pc = interrupted_by_signal(context).pc;
  const LoadedModule& module = *current->block->launch->module;
  if (pc < module.image_begin || pc >= module.image_end) return;
  if (const char* words = reason_to_stop(*current->block->launch))
    fail_at(site_of_fault(context), words);
}

void on_interrupt(int signal, siginfo_t* info, void* context) {
  interrupt_seen = stop_requested = true;
  if (previous_interrupt.sa_flags & SA_SIGINFO) {
    previous_interrupt.sa_sigaction(signal, info, context);
  } else {
    previous_interrupt.sa_handler(signal);
  }
  wake_running();
  on_stop(signal, info, context);
}

void handle(int signal, void (*action)(int, siginfo_t*, void*), struct sigaction* before) {
  struct sigaction chosen {};
  chosen.sa_sigaction = action;
  // The handler leaves by switching stacks, so the signal must not stay blocked behind it.
  chosen.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART;
  sigemptyset(&chosen.sa_mask);
  sigaction(signal, &chosen, before);
}

}  // namespace

std::atomic<bool> stop_requested{false};

bool interrupted() { return interrupt_seen; }

void stop_if_asked() {
  const Block& block = *current->block;
  if (const char* words = reason_to_stop(*block.launch))
    fail_at(site_of(block, __builtin_frame_address(0)), words);
}

Watchdog::Watchdog(Launch& launch) {
  if (launch.options.seconds <= 0) return;
  thread_ = std::thread([this, &launch] {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto limit = std::chrono::duration<double>(launch.options.seconds);
    if (ended_.wait_for(lock, limit, [this] { return end_; })) return;
    launch.expired = stop_requested = true;
    // A thread inside the library misses the signal and may be back in its loop by the next one.
    do wake_running();
    while (!ended_.wait_for(lock, std::chrono::milliseconds(50), [this] { return end_; }));
  });
}

Watchdog::~Watchdog() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    end_ = true;
  }
  ended_.notify_one();
  thread_.join();
}

FaultGuard::FaultGuard() {
  const std::lock_guard<std::mutex> lock(guards_mutex);
  if (guards++) return;
  for (int i = 0; i < 3; ++i) handle(kSignals[i], on_fault, &previous[i]);
  handle(kStop, on_stop, &previous_stop);
  interrupt_seen = stop_requested = false;
  handle(SIGINT, on_interrupt, &previous_interrupt);
  // Whoever wants to die of ctrl-C shall.
  const auto was = previous_interrupt.sa_handler;  // a process that ignores it goes on doing so
  if (was == SIG_DFL || was == SIG_IGN) sigaction(SIGINT, &previous_interrupt, nullptr);
}

FaultGuard::~FaultGuard() {
  const std::lock_guard<std::mutex> lock(guards_mutex);
  if (--guards) return;
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &previous[i], nullptr);
  sigaction(kStop, &previous_stop, nullptr);
  sigaction(SIGINT, &previous_interrupt, nullptr);
}

FaultStack::FaultStack() : previous(new stack_t) {
  stack = mmap(nullptr, kHandlerStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  stack_t ours{};
  ours.ss_sp = stack;
  ours.ss_size = kHandlerStack;
  sigaltstack(&ours, static_cast<stack_t*>(previous));
  for (std::atomic<pthread_t>& place : running) {
    pthread_t free = 0;
    if (place.compare_exchange_strong(free, pthread_self())) break;
  }
}

FaultStack::~FaultStack() {
  for (std::atomic<pthread_t>& place : running) {
    pthread_t mine = pthread_self();
    if (place.compare_exchange_strong(mine, 0)) break;
  }
  sigaltstack(static_cast<stack_t*>(previous), nullptr);
  munmap(stack, kHandlerStack);
  delete static_cast<stack_t*>(previous);
}

}  // namespace vgpu
