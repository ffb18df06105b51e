// The state of a launch and of the block an OS thread is running.
#pragma once
#include <atomic>
#include <condition_variable>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "bulk.h"
#include "clock.h"
#include "gang.h"
#include "tensor.h"
#include "vgpu/fiber.h"
#include "vgpu/kernel_main.h"

namespace vgpu {

class Counter;
class Race;
class Sanitizer;
class Tally;
struct Region;

// How ready threads, and blocks, take turns. All are fair between rendezvous; they differ in which
// bugs they provoke.
enum class Schedule {
  kRing,        // a warp runs until it blocks; blocks, warps and lanes in ascending order
  kReverse,     // the same, in descending order
  kRandomAhead, // the same, next warp, lane direction and order of blocks at random
  kInterleave,  // also leaves a warp at random after a warp-wide rendezvous
};
inline bool is_random(Schedule schedule) {
  return schedule == Schedule::kRandomAhead || schedule == Schedule::kInterleave;
}

struct Options {
  bool late = true;    // cp.async is performed when waited for, not when issued
  Schedule schedule = Schedule::kRing;
  uint64_t seed = 0;   // of random schedules
  int threads = 0;     // OS threads; 0 means one per core
  bool cooperative = false;  // all blocks of the grid run at once
  uint64_t steps = uint64_t(1) << 30;  // memory checks of one block, then it counts as endless
  double seconds = 0;                  // of one launch; 0 is no limit
};

// One tensor argument: the bytes a kernel may touch.
struct Range {
  uintptr_t begin, end;
  std::string name;
  bool writable;
  uintptr_t allocation;  // where its memory was allocated, at or before its first byte
  Region* shadow = nullptr;  // of a sanitize session, for memory the kernel may write
};

struct LoadedModule {
  void* handle;
  const Module* table;
  uintptr_t image_begin, image_end;  // constants of the module live here
};

struct Launch {
  const LoadedModule* module;
  const Kernel* kernel;
  dim3 grid, block, cluster;
  uint32_t gang;  // blocks that run at once
  uint32_t dynamic_shared;
  void** arguments;
  Options options;
  std::vector<Range> ranges;    // sorted, disjoint
  std::vector<uint32_t> order;  // of gangs; empty: ascending
  uint64_t gangs;
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::string error;  // the first one
  std::map<uint64_t, std::string> printed;  // by block
  uint32_t error_site = 0;
  Sanitizer* sanitizer = nullptr;
  Tally* tally = nullptr;  // of a counted launch
  std::atomic<bool> expired{false};  // its seconds are over
};

struct Copy {
  void* target;
  const void* source;
  uint16_t bytes, valid;
  bool done;
};

// cp.async of one thread, oldest first; `groups` holds how many copies each committed group has.
struct CopyQueue {
  std::vector<Copy> copies;
  std::vector<uint32_t> groups;
  uint32_t committed = 0;  // copies in groups
  uint64_t issued = 0;     // since the thread began

  // Performs what was issued before number `count`. It stays queued, as done.
  void perform_until(uint64_t count);
};

// A thread asleep until an mbarrier's phase of this parity ends, or may_give_up and nobody else can
// run.
struct MbarrierWait {
  Thread* thread;
  uint64_t* barrier;
  uint32_t parity;
  bool may_give_up;
};

// Work in flight that nobody waits for by number; see vgpu_async.
struct AsyncItem {
  const char* what;
  uint32_t stream;
  std::function<void()> perform;
  Thread* issuer;
  Strand strand;  // of the race checker
  uint32_t site;
};

// Asynchronous work of one warp (wgmma), oldest first.
struct DeferredQueue {
  struct Item {
    void (*perform)(const void* record);
    std::vector<char> record;
    Strand strand;  // of the race checker
    uint32_t site = 0;
    bool done = false;
    std::unique_ptr<Registers> registers;  // of a sanitize session
  };
  std::vector<Item> items;
  std::vector<uint32_t> groups;  // items in each committed group
  uint32_t committed = 0;        // items in groups
};

// One thread block in execution. An OS thread owns one and reuses it for block after block.
struct Block {
  Launch* launch = nullptr;
  dim3 id;
  uint64_t number = 0;   // in the grid
  Gang* gang = nullptr;  // null: runs alone
  uint32_t rank = 0;     // in the gang
  WideBarrier alone;     // its barrier of cluster or grid without a gang
  uint32_t thread_count = 0, warp_count = 0, live = 0;
  uint32_t ready_warps = 0, round = 0;  // round: warps whose turn is still to come
  uint32_t idle_rounds = 0;  // times all slept and polls gave up since a phase last ended
  Schedule schedule = Schedule::kRing;
  bool lanes_descend = false;
  std::minstd_rand random;
  Thread* last = nullptr;  // that ran before the scheduler did
  uint64_t turns = 0, turn_of[kMaxThreads / kWarp] = {};  // by warp, its latest
  bool performing = false;  // asynchronous work, on whatever stack
  uint32_t yields = 0;     // in a gang, since the block last let others run
  void* scheduler = nullptr;  // the OS thread's own stack, suspended
  bool stopped = false;       // an error ended this block
  char *shared = nullptr;     // dynamic shared memory, `launch->dynamic_shared` bytes of it valid
  char *segment_begin = nullptr, *segment_end = nullptr;  // all shared memory of the module
  char *stacks_begin = nullptr, *stacks_end = nullptr;
  size_t last_range = 0;
  uint32_t votes = 0, voters = 0;  // of a barrier that counts predicates, and who has read them
  Barrier barriers[kBarriers];
  Warp warps[kMaxThreads / kWarp];
  Thread threads[kMaxThreads];
  CopyQueue copies[kMaxThreads];
  DeferredQueue deferred[kMaxThreads / kWarp];
  std::vector<MbarrierWait> mbarrier_waits;
  std::vector<AsyncItem> in_flight;  // oldest first
  Race* race = nullptr;  // of a sanitize session
  Counter* counter = nullptr;  // of a counted launch
  Region* shared_shadow = nullptr;
  uint64_t steps = 0;  // memory checks so far
  std::unordered_map<uint32_t, StoreQueue> stores;  // by thread
  uint32_t registers[kMaxThreads / kWarp];  // per thread, by warp
  uint32_t free_registers = 0;
  std::vector<Thread*> register_waits;
  std::unique_ptr<TensorMemory> tensor;  // null until a block allocates some

  ~Block();
  // `member`: of the gang, if it is not null.
  void run(uint64_t which, Gang* in = nullptr, uint32_t member = 0);
  uint32_t cluster_size() const;
  Block& peer(uint32_t cluster_rank);
  Block& running_peer(uint32_t cluster_rank);   // fails if it has exited
  Block* owner_of(const void* shared_pointer);  // in the cluster; null if none; fails if it exited
  std::string describe_deadlock() const;

  void wake(Warp& warp, uint32_t lanes) {
    warp.ready |= lanes;
    ready_warps |= 1u << warp.index;
  }
  // `suspend` says whom to switch to now that `thread` waits; `sleep` switches and returns when woken.
  Suspension suspend(Thread& thread, const char* reason);
  void sleep(Thread& thread, const char* reason);
  void let_others_run(Thread& thread);
  void yield(Thread& thread);
  // `by`, maybe of another block, waits until each warp that is ready now has had a turn.
  void give_turns(Thread& by);
  void exit(Thread& thread);  // does not return
  void settle_barrier(Barrier& barrier);
  void finish_copies(CopyQueue& queue, uint32_t count);
  bool wake_polls();     // false if there are none
  // `frame` is that of the library's entry.
  void start_async(const char* what, uint32_t stream, std::function<void()> perform,
                   const void* frame);
  void end_stores(Thread& thread);  // as the thread exits
  void perform_async();  // one piece of the work in flight
  void perform_async(AsyncItem& item);

 private:
  void prepare();
  void allocate_stacks(uint32_t count);
  void finish();  // when no thread of it will run again
  void prepare_shared();
  void share_out_registers();
  Suspension leave_for(Thread& from, Thread* next);
  Thread* next_lane(const Thread& from, const Warp& warp) const;
  Thread* pick(const Thread& from, bool may_stay = true);
  std::string describe(const MbarrierWait& wait) const;
};

// How often in a row all polls of a block may fail, with nobody else able to run, before they count
// as a deadlock.
constexpr uint32_t kMaxIdleRounds = 20000;

// Records an error of the launch, unless one is recorded, and a finding of the sanitize session.
// `thread` is null for a deadlock, which is the block's.
void record_error(Block& block, const Thread* thread, const std::string& words, uint32_t site);
// Where in the kernel's text the running code was called from, as an offset in its module: the
// first return address in it, from `pc` and the frame records from `frame` on; 0 if there is none.
uint32_t site_of(const Block& block, const void* frame, uintptr_t pc = 0);
// vgpu_fail of code at a known site.
[[noreturn]] void fail_at(uint32_t site, const std::string& words);

extern thread_local Sanitizer* active_sanitizer;

// Fails unless all bytes lie in one argument, respectively in the block's shared memory.
void check_bulk(const void* address, uint32_t bytes, bool shared, bool write, const void* frame);
// Tells the race checker that the acting strand touches them.
void trace_bulk(const void* address, uint32_t bytes, bool shared, bool write);

// An address of `owner`'s shared window as a pointer; fails unless that memory may be read.
void* shared_pointer(const Block& owner, uint32_t address, uint32_t bytes, const void* frame);
// Fails unless an mbarrier is there; the race checker does not count it as an access.
void require_mbarrier(const uint64_t* barrier, const void* frame);

// What a block that has ended left in tensor memory, empty if nothing.
std::string tensor_leak(const Block& block);

// Reports an access that faulted, relative to the nearest argument.
[[noreturn]] void fail_unmapped(const Launch& launch, uintptr_t at, uint32_t site);

// Ends the running block if somebody pressed ctrl-C or its launch ran out of time; there is reason
// to ask only while `stop_requested`.
void stop_if_asked();
extern std::atomic<bool> stop_requested;

// While it lives, machine faults inside kernels become errors of their launch, and so does ctrl-C.
struct FaultGuard {
  FaultGuard();
  ~FaultGuard();
};
// True if ctrl-C was pressed since the outermost FaultGuard began.
bool interrupted();

// While it lives, ends a launch that takes longer than its seconds.
class Watchdog {
 public:
  explicit Watchdog(Launch& launch);
  ~Watchdog();

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  bool end_ = false;
  std::thread thread_;
};

// The same per OS thread: an alternate stack for the handlers, which reach the thread meanwhile.
struct FaultStack {
  FaultStack();
  ~FaultStack();

 private:
  void* previous;
  void* stack;
};

// Writes what the launch's kernels printed to stdout.
void flush_prints(Launch& launch);

}  // namespace vgpu
