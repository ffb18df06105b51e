// Blocks, fibers, barriers and rendezvous.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <map>

#include "counters.h"
#include "race.h"

namespace vgpu {

VGPU_FAST_TLS thread_local Thread* current = nullptr;

namespace {

// Deep enough for a kernel's local arrays and a matrix instruction's work; pages never touched
// cost nothing. Below each stack lies a page that faults.
constexpr size_t kStackBytes = 128 << 10;
const size_t kGuardBytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));

void fiber_main() {
  Thread& me = *current;
  Launch& launch = *me.block->launch;
  launch.kernel->call(launch.arguments);
  me.block->exit(me);
}

}  // namespace

Block::~Block() {
  if (stacks_begin) munmap(stacks_begin, static_cast<size_t>(stacks_end - stacks_begin));
}

void Block::allocate_stacks(uint32_t count) {
  const size_t stride = kStackBytes + kGuardBytes, bytes = stride * count;
  if (static_cast<size_t>(stacks_end - stacks_begin) >= bytes) return;
  if (stacks_begin) munmap(stacks_begin, static_cast<size_t>(stacks_end - stacks_begin));
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stacks_begin = static_cast<char*>(memory);
  stacks_end = stacks_begin + bytes;
  for (uint32_t i = 0; i < count; ++i) mprotect(stacks_begin + i * stride, kGuardBytes, PROT_NONE);
}

void Block::prepare() {
  const dim3& grid = launch->grid;
  const dim3& shape = launch->block;
  id = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
        static_cast<unsigned>(number / grid.x / grid.y)};
  live = thread_count = shape.x * shape.y * shape.z;
  warp_count = (thread_count + kWarp - 1) / kWarp;
  stopped = false;
  steps = 0;
  ready_warps = round = idle_rounds = yields = 0;
  performing = false;
  mbarrier_waits.clear();
  in_flight.clear();
  stores.clear();
  register_waits.clear();
  share_out_registers();
  last_range = 0;
  votes = voters = 0;
  const uint64_t seed = launch->options.seed;
  schedule = launch->options.schedule;
  random.seed(static_cast<unsigned>(seed * 2654435761u + number * 40503u + 1));
  lanes_descend = is_random(schedule) ? random() & 256 : schedule == Schedule::kReverse;
  std::fill(std::begin(barriers), std::end(barriers), Barrier{});
  last = &threads[lanes_descend ? 0 : thread_count - 1];
  allocate_stacks(thread_count);
  const size_t stride = kStackBytes + kGuardBytes;
  for (uint32_t i = 0; i < thread_count; ++i) {
    Thread& thread = threads[i];
    Warp& warp = warps[i / kWarp];
    if (i % kWarp == 0) {
      warp.live = warp.ready = warp.active = warp.latest = 0;
      warp.site[0].arrived = 0;  // a launch that failed may have left lanes there
      warp.index = i / kWarp;
      warp.barriers = barriers;
      warp.in_order = !lanes_descend && schedule != Schedule::kInterleave && !race;
      deferred[warp.index] = DeferredQueue{};
    }
    thread.warp = &warp;
    thread.block = this;
    thread.lane = i % kWarp;
    thread.index = i;
    thread.id = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
    thread.waits_on = "";
    // Tops differ in their low bits: equal ones would all fall into the same cache sets.
    char* top = stacks_begin + (i + 1) * stride - i * 1040 % 16384;
    thread.stack_pointer = make_fiber(top, kStackBytes - 16384, fiber_main);
    warp.thread[thread.lane] = &thread;
    warp.live |= 1u << thread.lane;
    wake(warp, 1u << thread.lane);
    copies[i].copies.clear();
    copies[i].groups.clear();
    copies[i].committed = 0;
    copies[i].issued = 0;
  }
  if (tensor) tensor->clear();
  prepare_shared();
}

void Block::prepare_shared() {
  // All ones is NaN in every float format and -1 in every integer: what is read before it was
  // written shows. Beyond the launch's dynamic size nothing may be read, so nothing is filled.
  shared = launch->kernel->dynamic_shared
               ? static_cast<char*>(launch->kernel->dynamic_shared())
               : nullptr;
  if (!segment_begin) return;
  if (!shared) {
    memset(segment_begin, 0xff, static_cast<size_t>(segment_end - segment_begin));
    return;
  }
  memset(segment_begin, 0xff, static_cast<size_t>(shared - segment_begin));
  memset(shared, 0xff, launch->dynamic_shared);
  char* rest = shared + kSharedCapacity;
  memset(rest, 0xff, static_cast<size_t>(segment_end - rest));
}

void Block::run(uint64_t which, Gang* in, uint32_t member) {
  number = which;
  prepare();
  gang = nullptr;
  rank = 0;
  if (in) {
    if (!in->enter(*this, member)) return in->leave(*this);
  } else {
    alone.reset({this});
    if (race) race->begin();
  }
  do {
    Thread* first = pick(*last, false);
    current = first;
    vgpu_switch({&scheduler, &first->stack_pointer});
    current = nullptr;
    if (race) race->settle();  // before other blocks of the gang write
  } while (!stopped && live &&
           (gang ? gang->pass(*this) : ++idle_rounds <= kMaxIdleRounds && wake_polls()));
  finish();
  if (gang) gang->leave(*this);
}

void Block::finish() {
  if (stopped || launch->failed) return;
  if (race) race->check_visits();
  if (live) {
    record_error(*this, nullptr, describe_deadlock(), 0);
  } else if (!in_flight.empty()) {
    const AsyncItem& item = in_flight[0];
    const std::string what = item.what;
    record_error(*this, item.issuer, "the block ended with this thread's " + what +
                                         " still in flight", item.site);
  } else if (const std::string leak = tensor_leak(*this); !leak.empty()) {
    record_error(*this, nullptr, leak, 0);
  }
}

void Block::perform_async() {
  // Which comes first is open, but for work of one stream.
  size_t index = is_random(schedule)              ? random() % in_flight.size()
                 : schedule == Schedule::kReverse ? in_flight.size() - 1
                                                  : 0;
  for (size_t i = 0; i < index; ++i)
    if (in_flight[i].stream == in_flight[index].stream && in_flight[i].stream != kUnordered)
      index = i;
  AsyncItem item = std::move(in_flight[index]);
  in_flight.erase(in_flight.begin() + static_cast<ptrdiff_t>(index));
  perform_async(item);
}

void Block::perform_async(AsyncItem& item) {
  const Race::Acting as(race, &item.strand, item.site, true);
  Thread* const running = current;
  current = item.issuer;  // whom errors are about
  performing = true;
  item.perform();
  performing = false;
  current = running;
}

// The ready lane of `warp` that follows the lane of `from` in the block's direction.
inline Thread* Block::next_lane(const Thread& from, const Warp& warp) const {
  uint32_t lane;
  if (lanes_descend) {
    const uint32_t below = warp.ready & ((1u << from.lane) - 1);
    lane = 31u - static_cast<uint32_t>(__builtin_clz(below ? below : warp.ready));
  } else {
    const uint32_t above = warp.ready & (~1u << from.lane);
    lane = static_cast<uint32_t>(__builtin_ctz(above ? above : warp.ready));
  }
  return warp.thread[lane];
}

// The next thread to run after `from`, null when none can.
Thread* Block::pick(const Thread& from, bool may_stay) {
  while (!ready_warps && live && !in_flight.empty()) perform_async();
  if (!ready_warps) return nullptr;
  uint32_t index = from.warp->index;
  const bool stay = may_stay && from.warp->ready &&
                    !(schedule == Schedule::kInterleave && random() % 4 == 0);
  if (!stay) {
    // Fair: who is woken in one round has a turn before anyone has two more. A thread that lagged
    // two phases behind an mbarrier would wait for ever.
    if (!(round & ready_warps)) round = ready_warps;
    const uint32_t choices = round & ready_warps;
    if (schedule == Schedule::kReverse) {
      const uint32_t below = choices & ((1u << index) - 1);
      index = 31u - static_cast<uint32_t>(__builtin_clz(below ? below : choices));
    } else {
      const uint32_t skip = schedule == Schedule::kRing ? index + 1 : random() % warp_count;
      const uint32_t after = skip < 32 ? choices >> skip << skip : 0;
      index = static_cast<uint32_t>(__builtin_ctz(after ? after : choices));
    }
    round &= ~(1u << index);
    turn_of[index] = ++turns;
  }
  return next_lane(from, warps[index]);
}

Suspension Block::leave_for(Thread& from, Thread* next) {
  if (!next) last = &from;
  current = next;
  return {&from.stack_pointer, next ? &next->stack_pointer : &scheduler};
}

inline Suspension Block::suspend(Thread& thread, const char* reason) {
  Warp& warp = *thread.warp;
  if (stop_requested.load(std::memory_order_relaxed)) stop_if_asked();
  thread.waits_on = reason;
  warp.ready &= ~(1u << thread.lane);
  if (!warp.ready) ready_warps &= ~(1u << warp.index);
  return leave_for(thread, pick(thread));
}

void Block::sleep(Thread& thread, const char* reason) { vgpu_switch(suspend(thread, reason)); }

void Block::let_others_run(Thread& thread) {
  if (schedule == Schedule::kInterleave) vgpu_switch(leave_for(thread, pick(thread)));
}

void Block::yield(Thread& thread) {
  Thread* next = pick(thread, false);
  if (gang && ++yields >= live) {  // who polls may wait for another block
    yields = 0;
    next = nullptr;
  }
  vgpu_switch(leave_for(thread, next));
}

void Block::give_turns(Thread& by) {
  const bool foreign = by.block != this;
  // The other lanes of the warp come before it loses its turn.
  if (const uint32_t lanes = by.warp->ready; lanes & (lanes - 1))
    vgpu_switch(by.block->leave_for(by, next_lane(by, *by.warp)));
  uint32_t owed = ready_warps & ~(foreign ? 0u : 1u << by.warp->index);
  const uint64_t now = turns;
  while (owed) {
    vgpu_switch(by.block->leave_for(by, foreign ? nullptr : pick(by, false)));
    owed &= ready_warps;
    for (uint32_t left = owed; left; left &= left - 1)
      if (const int w = __builtin_ctz(left); turn_of[w] > now) owed &= ~(1u << w);
  }
}

void Block::exit(Thread& thread) {
  CopyQueue& queue = copies[thread.index];
  finish_copies(queue, static_cast<uint32_t>(queue.copies.size()));
  if (!stores.empty()) end_stores(thread);
  if (race) race->exit();
  Warp& warp = *thread.warp;
  WideBarrier* const wide[] = {gang ? &gang->cluster_barrier(rank) : &alone,
                               gang ? &gang->grid : nullptr};
  for (WideBarrier* barrier : wide)
    if (barrier) barrier->exit(thread);
  warp.live &= ~(1u << thread.lane);
  --live;
  for (WideBarrier* barrier : wide)
    if (barrier) barrier->settle();
  // Whoever waits for exited threads only waits no longer.
  for (uint32_t left = warp.active; left; left &= left - 1) {
    const Site& site = warp.site[__builtin_ctz(left)];
    if (site.arrived == (site.mask & warp.live)) wake(warp, site.arrived & -site.arrived);
  }
  for (Barrier& barrier : barriers) settle_barrier(barrier);
  sleep(thread, "exit");
}

void Block::settle_barrier(Barrier& barrier) {
  if (!barrier.arrived) return;
  const int wanted = barrier.count ? barrier.count : static_cast<int>(live);
  if (barrier.arrived < wanted) return;
  if (race) race->leave_barrier(static_cast<int>(&barrier - barriers), barrier);
  if (counter) counter->leave(barrier);
  for (uint32_t w = 0; w < warp_count; ++w)
    if (barrier.waiting[w]) wake(warps[w], barrier.waiting[w]);
  barrier = Barrier{};
}

std::string Block::describe_deadlock() const {
  std::map<std::string, std::vector<uint32_t>> waiting;
  for (uint32_t i = 0; i < thread_count; ++i)
    if (threads[i].warp->live >> threads[i].lane & 1) {
      std::string what = threads[i].waits_on;
      for (int b = 0; b < kBarriers; ++b) {
        const Barrier& barrier = barriers[b];
        if (barrier.waiting[i / kWarp] >> i % kWarp & 1) {
          const int wanted = barrier.count ? barrier.count : static_cast<int>(live);
          what = "barrier " + std::to_string(b) + " (" + std::to_string(barrier.arrived) + " of " +
                 std::to_string(wanted) + " threads arrived)";
        }
      }
      for (const MbarrierWait& wait : mbarrier_waits)
        if (wait.thread == &threads[i]) what = describe(wait);
      waiting[what].push_back(i);
    }
  std::string words = "deadlock:";
  const char* separator = " ";
  for (const auto& [what, list] : waiting) {
    words += separator + std::string("threads ");
    for (size_t i = 0; i < list.size();) {
      size_t last = i;
      while (last + 1 < list.size() && list[last + 1] == list[last] + 1) ++last;
      words += (i ? "," : "") + std::to_string(list[i]) +
               (last > i ? "-" + std::to_string(list[last]) : "");
      i = last + 1;
    }
    words += " wait on " + what;
    separator = "; ";
  }
  if (live < thread_count) words += "; " + std::to_string(thread_count - live) + " threads exited";
  return words;
}

static std::string triple(const dim3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

void record_error(Block& block, const Thread* thread, const std::string& words, uint32_t site) {
  Launch& launch = *block.launch;
  const std::lock_guard<std::mutex> lock(launch.mutex);
  if (launch.error.empty()) {
    launch.error = "kernel " + std::string(launch.kernel->name) + ", block " + triple(block.id) +
                   (thread ? ", thread " + triple(thread->id) : "") + ": " + words;
    launch.error_site = site;
  }
  launch.failed = true;
  if (!launch.sanitizer) return;
  Finding finding;
  // Errors that begin with their kind are of that kind.
  finding.kind = "invalid";
  finding.words = words;
  for (const char* kind : {"out-of-bounds", "misaligned", "const-write", "use-after-free",
                           "leak", "deadlock", "endless", "cluster-lifetime"}) {
    std::string start = kind;
    std::replace(start.begin(), start.end(), '-', ' ');
    if (words.compare(0, start.size() + 2, start + ": ") != 0) continue;
    finding.kind = kind;
    finding.words = words.substr(start.size() + 2);
  }
  finding.kernel = launch.kernel->name;
  finding.block = block.id;
  finding.by_thread = thread != nullptr;
  if (thread) finding.thread = thread->id;
  finding.site = site;
  launch.sanitizer->report(std::move(finding));
}

void fail_at(uint32_t site, const std::string& words) {
  Block& block = *current->block;
  record_error(block, current, words, site);
  block.stopped = true;
  void* abandoned;
  vgpu_switch({&abandoned, &block.scheduler});
  __builtin_unreachable();
}

}  // namespace vgpu

using vgpu::Block;
using vgpu::current;
using vgpu::Site;
using vgpu::Thread;
using vgpu::Warp;

vgpu::Thread& vgpu_self() { return *current; }

static unsigned axis_of(const dim3& v, int axis) { return axis == 0 ? v.x : axis == 1 ? v.y : v.z; }
unsigned vgpu_thread_idx(int axis) { return axis_of(current->id, axis); }
unsigned vgpu_block_idx(int axis) { return axis_of(current->block->id, axis); }
unsigned vgpu_block_dim(int axis) { return axis_of(current->block->launch->block, axis); }
unsigned vgpu_grid_dim(int axis) { return axis_of(current->block->launch->grid, axis); }

void vgpu_fail(const char* format, ...) {
  char words[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(words, sizeof words, format, arguments);
  va_end(arguments);
  vgpu::fail_at(vgpu::site_of(*current->block, __builtin_frame_address(0)), words);
}

// The site where lanes wait with this mask, or a new one.
static Site* find_site(Warp& warp, const char* op, uint32_t mask) {
  for (uint32_t left = warp.active; left; left &= left - 1) {
    const int known = __builtin_ctz(left);
    if (warp.site[known].mask == mask) return &warp.site[warp.latest = known];
  }
  const int free = __builtin_ctz(~warp.active);
  warp.active |= 1u << free;
  Site& site = warp.site[warp.latest = free];
  site.mask = mask;
  site.arrived = 0;
  site.op = op;
  return &site;
}

vgpu::Suspension vgpu_arrive(Site** where, const char* op, uint32_t mask, void* operand) {
  Thread& me = *current;
  Warp& warp = *me.warp;
  const uint32_t bit = 1u << me.lane;
  if (!(mask & bit)) vgpu_fail("%s: lane %u is not in its own mask 0x%08x", op, me.lane, mask);
  // Lanes with different masks may wait at once, even if the masks overlap: some lanes of the one
  // may have the other still ahead of them.
  Site* site = &warp.site[warp.latest];
  if (!(warp.active >> warp.latest & 1) || site->mask != mask) site = find_site(warp, op, mask);
  if (site->op != op && strcmp(site->op, op) != 0) {
    vgpu_fail("%s, while lanes 0x%08x of the same warp are in %s", op, site->arrived, site->op);
  }
  site->arrived |= bit;
  site->operand[me.lane] = operand;
  if (me.block->race) me.block->race->arrive(warp, *site);
  *where = site;
  if (site->arrived == (mask & warp.live)) return {};
  return me.block->suspend(me, op);
}

void vgpu_release(Site* site) {
  Thread& me = *current;
  Warp& warp = *me.warp;
  const uint32_t lanes = site->arrived;
  if (me.block->race) me.block->race->leave(warp, *site);
  if (me.block->counter) me.block->counter->leave(warp, site->op, lanes);
  ++site->epoch;
  site->arrived = 0;
  warp.active &= ~(1u << (site - warp.site));
  me.block->wake(warp, lanes);
  me.block->let_others_run(me);
}

static vgpu::Barrier& arrive_at(int id, int count) {
  if (id < 0 || id >= vgpu::kBarriers)
    vgpu_fail("named barrier %d does not exist, there are %d", id, vgpu::kBarriers);
  if (count % vgpu::kWarp)
    vgpu_fail("barrier %d: the thread count must be a multiple of 32, got %d", id, count);
  Block& block = *current->block;
  if (count > static_cast<int>(block.thread_count))
    vgpu_fail("barrier %d waits for %d threads, the block has %u", id, count, block.thread_count);
  vgpu::Barrier& barrier = block.barriers[id];
  if (barrier.arrived && barrier.count != count)
    vgpu_fail("barrier %d: this thread counts %d threads, those before it %d (0 means all)", id,
              count, barrier.count);
  barrier.count = count;
  ++barrier.arrived;
  if (block.race) block.race->arrive_at_barrier(id);
  return barrier;
}

void vgpu_barrier(int id, int count) {
  vgpu::Barrier& barrier = arrive_at(id, count);
  Thread& me = *current;
  Block& block = *me.block;
  const uint32_t bit = 1u << me.lane;
  barrier.waiting[me.warp->index] |= bit;
  block.settle_barrier(barrier);
  if (barrier.waiting[me.warp->index] & bit) {
    block.sleep(me, "a barrier");
  } else {
    block.let_others_run(me);
  }
}

int vgpu_barrier_count(bool predicate) {
  Block& block = *current->block;
  block.votes += predicate;
  vgpu_barrier(0, 0);
  const uint32_t votes = block.votes;
  if (++block.voters == block.live) {
    block.votes = block.voters = 0;
    if (block.counter) --block.counter->totals.barriers;  // two of ours are one instruction
  }
  vgpu_barrier(0, 0);
  return static_cast<int>(votes);
}

void vgpu_yield() { current->block->yield(*current); }

void vgpu_barrier_arrive(int id, int count) {
  if (!count) vgpu_fail("bar.arrive on barrier %d needs a thread count", id);
  current->block->settle_barrier(arrive_at(id, count));
}
