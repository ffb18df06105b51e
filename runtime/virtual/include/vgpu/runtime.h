// What a kernel's shared object sees of the virtual GPU: the thread it runs as, rendezvous with
// other threads, memory checks and errors. Implemented in libvgpu.
#pragma once
#include "vgpu/fiber.h"
#include "vgpu/vectors.h"

namespace vgpu {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr int kBarriers = 16;
constexpr uint32_t kUnordered = 0xffffffffu;  // a stream without order
constexpr uint32_t kFullMask = 0xffffffffu;

struct Block;
struct Warp;

// A rendezvous of the lanes in `mask`: each leaves a pointer to its operands, the last to come
// does the work of all.
struct Site {
  uint32_t mask = 0, arrived = 0;
  uint32_t epoch = 0;  // how often lanes have left it: who waits sees it change
  const char* op = nullptr;
  void* operand[kWarp];
};

struct alignas(64) Thread {  // one cache line: waiting and waking touch nothing else
  void* stack_pointer;  // of the suspended fiber
  Warp* warp;
  Block* block;
  uint32_t lane, index;  // in the warp; in the block, x fastest
  dim3 id;
  bool released;  // set by whoever ends the mbarrier phase this thread waits for
  const char* waits_on;
};

struct Barrier {
  int count = 0;  // threads it was asked to wait for, 0 for all
  int arrived = 0;
  uint32_t waiting[kMaxThreads / kWarp] = {};  // lanes by warp
};

// 32 consecutive threads. Bits of the masks are lanes.
struct Warp {
  uint32_t live = 0;   // not exited
  uint32_t ready = 0;  // may run
  uint32_t index = 0;  // in the block
  Thread* thread[kWarp];
  uint32_t active = 0;  // sites where lanes wait
  uint32_t latest = 0;  // the site that lanes came to last; none have arrived there if not active
  Barrier* barriers;    // the block's
  bool in_order = false;  // its lanes take turns in ascending order, and nobody looks on
  Site site[kWarp];     // a lane waits in one at a time, so 32 are enough
};

// The running CUDA thread, null outside kernels: at a fixed place in the OS thread's static block.
#define VGPU_FAST_TLS __attribute__((tls_model("initial-exec")))
extern VGPU_FAST_TLS __attribute__((visibility("default"))) thread_local Thread* current;

}  // namespace vgpu

// `const`: for the code of one CUDA thread these never change, so one call per kernel is enough
// however often generated code spells threadIdx.x.
VGPU_API __attribute__((const)) vgpu::Thread& vgpu_self();
VGPU_API __attribute__((const)) unsigned vgpu_thread_idx(int axis);
VGPU_API __attribute__((const)) unsigned vgpu_block_idx(int axis);
VGPU_API __attribute__((const)) unsigned vgpu_block_dim(int axis);
VGPU_API __attribute__((const)) unsigned vgpu_grid_dim(int axis);

// Stops the launch: words go to the host together with the kernel, block and thread.
VGPU_API [[noreturn]] void vgpu_fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The lane's arrival. Nothing to save: the caller is last, does the work and calls vgpu_release.
// Otherwise it switches as told; another lane does the work meanwhile and the site's epoch changes.
// If it does not change, the lanes it waited for have exited, and the caller is last after all.
VGPU_API vgpu::Suspension vgpu_arrive(vgpu::Site** site, const char* op, uint32_t mask,
                                      void* operand);
VGPU_API void vgpu_release(vgpu::Site* site);

// bar.sync: waits until `count` threads have come to barrier `id`; 0 means every live thread.
// bar.arrive: counts this thread without waiting.
VGPU_API void vgpu_barrier(int id, int count);
VGPU_API void vgpu_barrier_arrive(int id, int count);
// Waits for every live thread; returns how many of them came with `predicate`.
VGPU_API int vgpu_barrier_count(bool predicate);
// Lets the threads that can run go first: for a thread that polls memory.
VGPU_API void vgpu_yield();

// printf of a kernel. Blocks' words come out in ascending order when the launch is over.
VGPU_API int vgpu_print(const char* format, ...) __attribute__((format(printf, 1, 2)));

// cp.async of one thread: `valid` of `bytes` come from `source`, the rest is zero.
VGPU_API void vgpu_copy(void* target, const void* source, uint32_t bytes, uint32_t valid);
VGPU_API void vgpu_copy_commit();
// Waits until at most `pending` of this thread's groups are unfinished; -1 waits for everything,
// committed or not.
VGPU_API void vgpu_copy_wait(int pending);

// Fails unless [address, address + bytes) lies in one memory the thread may use that way.
VGPU_API void vgpu_check_global(const void* address, uint32_t bytes, bool write);
VGPU_API void vgpu_check_shared(const void* address, uint32_t bytes, bool write = false);
// The same for matrices in shared memory of 8 rows of 16 bytes each.
VGPU_API void vgpu_check_rows(void* const* rows, int matrices, bool write);
// The same for an atomic access; `order` is one of __ATOMIC_RELAXED to __ATOMIC_SEQ_CST;
// -1 if it takes no part in ordering others.
VGPU_API void vgpu_check_atomic(const void* address, uint32_t bytes, bool read, bool write, int order);
// The same for an access of unknown space: what the compiler's instrumentation reports.
VGPU_API void vgpu_check(const void* address, uint32_t bytes, bool write, bool aligned);

// A fence orders accesses the virtual GPU performs in order anyway; the race checker wants to know.
VGPU_API void vgpu_fence();

// Addresses in the block's shared window, which keep their alignment up to 1024 bytes, and back.
VGPU_API uint32_t vgpu_shared_address(const void* pointer);
VGPU_API void* vgpu_shared_pointer(uint32_t address, uint32_t bytes);

namespace vgpu {
// What asynchronous work has to itself until it is waited for: of each lane, an array it writes and
// one it reads.
struct Registers {
  const void* written[kWarp];
  const void* read[kWarp];
  uint32_t written_bytes, read_bytes;
};
}  // namespace vgpu

// Asynchronous work of a warp, called by one of its lanes for all: performed at once or, in late
// mode, when its group is waited for. `record` is copied.
VGPU_API void vgpu_defer(void (*perform)(const void* record), const void* record, size_t bytes,
                         const vgpu::Registers* registers = nullptr);
VGPU_API void vgpu_defer_commit();
VGPU_API void vgpu_defer_wait(int pending);

// Asynchronous work that nobody waits for by number but that signals an mbarrier: performed at once
// or, in late mode, when no thread of the block can run. Work of one `stream` (0 to 1023 are the
// threads' own) is performed in order, other work in any. `record` is copied; `what` names it.
VGPU_API void vgpu_async(const char* what, uint32_t stream, void (*perform)(const void* record),
                         const void* record, size_t bytes);

namespace vgpu {

// CUDA's threadIdx and its like: each axis converts to its value on use.
template <unsigned (*Read)(int)>
struct Index {
  template <int Axis>
  struct Component {
    operator unsigned() const { return Read(Axis); }
  };
  Component<0> x;
  Component<1> y;
  Component<2> z;
};

// The thread's number in its block, x fastest.
VGPU_RAW inline unsigned thread_index() { return vgpu_self().index; }

// vgpu_arrive, at hand for what happens nearly always: a lane that is neither the first nor the last
// of its warp comes where the others wait, and the next one runs. That one's address is guessed, not
// looked up, so the processor goes on before it knows the masks.
VGPU_LEAF inline Suspension arrive(Site** where, const char* op, uint32_t mask, void* operand) {
  Thread& me = vgpu_self();
  Warp& warp = *me.warp;
  const uint32_t bit = 1u << me.lane;
  Site& site = warp.site[warp.latest];
  const uint32_t arrived = site.arrived | bit;
  if (mask != kFullMask || !warp.in_order || site.mask != mask || site.op != op || arrived == bit ||
      arrived == warp.live || !(warp.ready & bit << 1))
    return vgpu_arrive(where, op, mask, operand);
  *where = &site;
  site.arrived = arrived;
  site.operand[me.lane] = operand;
  me.waits_on = op;
  warp.ready &= ~bit;
  current = &me + 1;
  return {&me.stack_pointer, &current->stack_pointer};
}

// vgpu_barrier, likewise: others wait already, and the next lane, which can run, is still to come.
VGPU_RAW inline void barrier(int id, int count) {
  Thread& me = vgpu_self();
  Warp& warp = *me.warp;
  const uint32_t bit = 1u << me.lane;
  Barrier& here = warp.barriers[id & (kBarriers - 1)];
  if (id < 0 || id >= kBarriers || !warp.in_order || !here.arrived || here.count != count ||
      here.arrived + 1 == count || !(warp.ready & bit << 1))
    return vgpu_barrier(id, count);
  ++here.arrived;
  here.waiting[warp.index] |= bit;
  me.waits_on = "a barrier";
  warp.ready &= ~bit;
  current = &me + 1;
  vgpu_switch({&me.stack_pointer, &current->stack_pointer});
}

// Runs Work::run(operands) once for the lanes of `mask`, where operands[lane] points at that
// lane's Operand, on the stack of the lane that comes last.
template <class Work, class Operand>
VGPU_RAW inline void rendezvous(const char* op, uint32_t mask, Operand& operand) {
  Site* site;
  const Suspension wait = arrive(&site, op, mask, &operand);
  if (wait.save) {
    const uint32_t epoch = site->epoch;
    vgpu_switch(wait);
    if (site->epoch != epoch) return;
  }
  Work::run(*site);
  vgpu_release(site);
}

template <class Operand>
VGPU_LEAF inline Operand& operand_of(const Site& site, int lane) {
  return *static_cast<Operand*>(site.operand[lane]);
}

// Matrix instructions are `.aligned`: all 32 lanes, or undefined.
VGPU_LEAF inline void require_full_warp(const Site& site, const char* op) {
  if (site.arrived != kFullMask)
    vgpu_fail("%s needs all 32 lanes of a warp, got lanes 0x%08x", op, site.arrived);
}

}  // namespace vgpu

constexpr vgpu::Index<vgpu_thread_idx> threadIdx{};
constexpr vgpu::Index<vgpu_block_idx> blockIdx{};
constexpr vgpu::Index<vgpu_block_dim> blockDim{};
constexpr vgpu::Index<vgpu_grid_dim> gridDim{};
constexpr int warpSize = vgpu::kWarp;
