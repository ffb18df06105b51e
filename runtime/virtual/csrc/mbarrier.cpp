// mbarriers: counts, phases and who waits for them.
#include "counters.h"
#include "race.h"
// Last: its CUDA words would disturb the standard library's headers.
#include "vgpu/mbarrier.h"

namespace vgpu {

namespace {

constexpr uint32_t kMaxCount = (1u << 20) - 1;  // PTX: of arrivals
constexpr int32_t kMaxBytes = (1 << 20) - 1;    // PTX: of the transaction count, either sign
constexpr uint64_t kAlive = 1;                  // not what fresh shared memory (all ones) holds

// What the 64 bits of an mbarrier hold.
struct State {
  uint64_t tag : 2, parity : 1, pending : 20, expected : 20;
  int64_t bytes : 21;
};
static_assert(sizeof(State) == 8);

std::string name_of(const Block& block, const uint64_t* barrier) {
  const char* at = reinterpret_cast<const char*>(barrier);
  const bool dynamic =
      block.shared && at >= block.shared && at < block.shared + block.launch->dynamic_shared;
  char words[64];
  snprintf(words, sizeof words, "mbarrier at %s+0x%tx", dynamic ? "shared" : "static shared",
           at - (dynamic ? block.shared : block.segment_begin));
  return words;
}

State load(const Block& block, const uint64_t* barrier) {
  State state;
  memcpy(&state, barrier, 8);
  if (state.tag != kAlive)
    vgpu_fail("%s is not initialised", name_of(block, barrier).c_str());
  return state;
}

State read(const Block& block, const uint64_t* barrier) {
  vgpu_check_atomic(barrier, 8, true, false, -1);
  return load(block, barrier);
}

// The block whose shared memory holds the barrier: the caller's or, in a cluster, another's.
Block& owner_of(const uint64_t* barrier) {
  Block* owner = current->block->owner_of(barrier);
  return owner ? *owner : *current->block;  // reading it fails
}

// Stores the state; if that ends the phase, starts the next and wakes who waited for it.
void settle(Block& block, uint64_t* barrier, State state) {
  if (state.pending || state.bytes) {
    memcpy(barrier, &state, 8);
    return;
  }
  const uint32_t ended = state.parity;
  state.parity ^= 1;
  state.pending = state.expected;
  memcpy(barrier, &state, 8);
  block.idle_rounds = 0;
  if (block.race) block.race->complete(barrier);
  auto& waits = block.mbarrier_waits;
  for (size_t i = 0; i < waits.size();) {
    if (waits[i].barrier == barrier && waits[i].parity == ended) {
      waits[i].thread->released = true;
      block.wake(*waits[i].thread->warp, 1u << waits[i].thread->lane);
      waits[i] = waits.back();
      waits.pop_back();
    } else {
      ++i;
    }
  }
}

void add_bytes(const Block& block, const uint64_t* barrier, State& state, int64_t bytes) {
  const int64_t sum = state.bytes + bytes;
  if (sum > kMaxBytes || sum < -kMaxBytes)
    vgpu_fail("%s: transaction count %lld leaves -%d to %d", name_of(block, barrier).c_str(),
              static_cast<long long>(sum), kMaxBytes, kMaxBytes);
  state.bytes = sum;
}

void arrive(Block& block, uint64_t* barrier, uint32_t bytes) {
  State state = read(block, barrier);
  if (bytes) add_bytes(block, barrier, state, bytes);
  // The phase may stay open for its bytes after the last arrival.
  if (!state.pending)
    vgpu_fail("%s: over-arrival, all %u arrivals of the phase have come",
              name_of(block, barrier).c_str(), static_cast<unsigned>(state.expected));
  --state.pending;
  if (block.race) current->block->race->arrive_at(barrier, *block.race);
  settle(block, barrier, state);
}

// True when the phase has ended; else asleep until it has or, for a poll, nobody else can run.
bool wait(uint64_t* barrier, uint32_t parity, bool may_give_up) {
  Thread& me = *current;
  Block& block = *me.block;
  if (&owner_of(barrier) != &block)
    vgpu_fail("waits for an mbarrier of another block: only its own block may");
  if (parity > 1)
    vgpu_fail("%s: a phase parity is 0 or 1, got %u", name_of(block, barrier).c_str(), parity);
  me.released = read(block, barrier).parity != parity;
  if (!me.released) {
    block.mbarrier_waits.push_back({&me, barrier, parity, may_give_up});
    block.sleep(me, "an mbarrier");
  }
  if (me.released && block.race) block.race->wait_for(barrier);
  if (me.released && block.counter) ++block.counter->totals.mbarrier_waits;
  return me.released;
}

struct CopiesRecord {
  uint64_t* barrier;
  uint32_t thread;
  uint64_t copies;  // of the thread, to be performed before the arrival
};

void arrive_after_copies(const void* record) {
  const auto& what = *static_cast<const CopiesRecord*>(record);
  Block& block = *current->block;
  block.copies[what.thread].perform_until(what.copies);
  if (block.race)
    block.race->await(block.race->copy_engine(*current), static_cast<uint32_t>(what.copies));
  arrive(block, what.barrier, 0);
}

}  // namespace

void require_mbarrier(const uint64_t* barrier, const void* frame) {
  check_bulk(barrier, 8, true, false, frame);
  load(owner_of(barrier), barrier);
}

std::string Block::describe(const MbarrierWait& wait) const {
  State state;
  memcpy(&state, wait.barrier, 8);
  return name_of(*this, wait.barrier) + " for the end of a phase of parity " +
         std::to_string(wait.parity) + " (now in one of parity " + std::to_string(state.parity) +
         ", " + std::to_string(state.pending) + " of " + std::to_string(state.expected) +
         " arrivals and " + std::to_string(state.bytes) + " bytes outstanding)";
}

bool Block::wake_polls() {
  bool any = false;
  auto& waits = mbarrier_waits;
  for (size_t i = 0; i < waits.size();) {
    if (waits[i].may_give_up) {
      any = true;
      wake(*waits[i].thread->warp, 1u << waits[i].thread->lane);
      waits[i] = waits.back();
      waits.pop_back();
    } else {
      ++i;
    }
  }
  return any;
}

}  // namespace vgpu

using namespace vgpu;

void vgpu_mbarrier_init(uint64_t* barrier, uint32_t count) {
  const Block& block = *current->block;
  if (Race* race = block.race) {
    Strand engine = race->issue(race->init_engine(*current));
    {
      const Race::Acting as(race, &engine, site_of(block, __builtin_frame_address(0)), false);
      vgpu_check_shared(barrier, 8, true);
    }
    race->await(engine.component, engine.step);
  } else {
    vgpu_check_shared(barrier, 8, true);
  }
  if (count < 1 || count > kMaxCount)
    vgpu_fail("%s: initialised with a count of %u, expected 1 to %u",
              name_of(block, barrier).c_str(), count, kMaxCount);
  State state{kAlive, 0, count, count, 0};
  memcpy(barrier, &state, 8);
}

void vgpu_mbarrier_expect_tx(uint64_t* barrier, uint32_t bytes) {
  Block& block = owner_of(barrier);
  State state = read(block, barrier);
  add_bytes(block, barrier, state, bytes);
  memcpy(barrier, &state, 8);
}

void vgpu_mbarrier_arrive(uint64_t* barrier, uint32_t bytes) {
  Block& block = owner_of(barrier);
  // Threads that wait without arriving, as TileLang's producers do, must not miss a whole phase:
  // hardware does not hold back warps that can run for so long.
  if (!current->block->performing && read(block, barrier).pending == 1) block.give_turns(*current);
  arrive(block, barrier, bytes);
}

void vgpu_mbarrier_complete_tx(uint64_t* barrier, uint32_t bytes) {
  Block& block = owner_of(barrier);
  State state = read(block, barrier);
  add_bytes(block, barrier, state, -int64_t(bytes));
  if (block.race) current->block->race->arrive_at(barrier, *block.race);
  settle(block, barrier, state);
}

void vgpu_mbarrier_wait(uint64_t* barrier, uint32_t parity) { wait(barrier, parity, false); }

bool vgpu_mbarrier_poll(uint64_t* barrier, uint32_t parity) { return wait(barrier, parity, true); }

uint32_t vgpu_mbarrier_parity(const uint64_t* barrier) {
  return static_cast<uint32_t>(read(*current->block, barrier).parity);
}

void vgpu_mbarrier_arrive_copies(uint64_t* barrier, bool counted) {
  Block& block = *current->block;
  State state = read(block, barrier);
  if (!counted) {
    if (state.pending == kMaxCount)
      vgpu_fail("%s: more than %u arrivals pending", name_of(block, barrier).c_str(), kMaxCount);
    ++state.pending;
    memcpy(barrier, &state, 8);
  }
  const CopiesRecord record{barrier, current->index, block.copies[current->index].issued};
  vgpu_async("cp.async.mbarrier.arrive", current->index, arrive_after_copies, &record,
             sizeof record);
}

void vgpu_fence_mbarrier_init() {
  const Block& block = *current->block;
  if (block.race) block.race->fence_mbarrier_init();
}

void vgpu_fence_proxy_async() {
  Block& block = *current->block;
  if (block.race) block.race->fence_async_proxy();
}
