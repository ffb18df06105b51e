// The race checker: for every byte of shared memory and of the arguments a kernel may write, who
// wrote and who read it last; for every thread and engine, what it knows to have happened before.
#pragma once
#include <cstdlib>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "clock.h"
#include "machine.h"

namespace vgpu {

// One access. Components below the thread count are threads, the next ones their cp.async
// engines, then the wgmma engines of the warps. A team is a block, by when it began to run, those
// of a gang one after the other; 0 is the host.
struct Epoch {
  uint32_t team = 0, step = 0, site = 0;
  uint16_t component = 0;
  bool atomic = false, async_proxy = false;
};

struct Use {
  bool read, write, atomic = false;
};
constexpr Use kRead{true, false}, kWrite{false, true};

// What is remembered of one word, or of one byte of a word used in parts.
struct Cell {
  Epoch write, read;
  uint32_t readers = 0;  // list of further concurrent readers, 0 for none
  uint32_t stamp = 0;    // that of the region when this was noted
  bool split = false;    // look at the word's bytes instead
};

template <class T>
struct FreeMemory {
  void operator()(T* p) const { std::free(p); }
};
// Zeros that take no memory until touched.
template <class T>
using LazyArray = std::unique_ptr<T[], FreeMemory<T>>;
template <class T>
LazyArray<T> lazy_array(size_t count) {
  auto* memory = static_cast<T*>(std::calloc(count, sizeof(T)));
  if (!memory) throw std::bad_alloc();
  return LazyArray<T>(memory);
}

// Lists of concurrent readers, by number; 0 is none.
class ReaderLists {
 public:
  struct List {
    std::vector<Epoch> epochs;  // by team and component
    size_t hint = 0;            // threads tend to come in the same order again
  };
  List& operator[](uint32_t number) { return lists_[number]; }
  uint32_t make();
  void drop(uint32_t number);
  void clear();

 private:
  std::vector<List> lists_{1};
  std::vector<uint32_t> free_;
};

class Race;

// The shadow of one memory.
struct Region {
  uintptr_t begin = 0, end = 0;
  Race* owner = nullptr;  // of the block whose shared memory it is; null for an argument
  LazyArray<Cell> words, bytes;
  LazyArray<uint8_t> written;  // one per byte; null when all of it is initialised
  ReaderLists readers;
  uint32_t stamp = 0;  // its block (shared memory) or launch (arguments)

  Region(uintptr_t from, uintptr_t to, Race* belongs_to, bool initialised)
      : begin(from), end(to), owner(belongs_to) {
    const size_t size = to - from;
    words = lazy_array<Cell>(size / 4 + 2);
    bytes = lazy_array<Cell>(size + 8);
    if (!initialised) written = lazy_array<uint8_t>(size + 8);
  }
};

struct Finding {
  std::string kind, kernel, words;
  dim3 block{}, thread{};
  bool by_thread = true;
  uint32_t site = 0;  // offset of the instruction in the module, 0 if unknown
  bool has_other = false, other_thread_known = false;
  std::string other;  // what the other party did
  dim3 other_block{}, other_thread{};
  uint32_t other_site = 0;
  uint64_t count = 1;
};

// "argument 'y' at byte offset 8"
std::string where(const Block& block, uintptr_t at);

// One sanitize session: arguments, shadows and findings of the launches made while it is active.
class Sanitizer {
 public:
  explicit Sanitizer(size_t limit) : limit_(limit) {}
  void add_argument(uintptr_t begin, uintptr_t end, bool initialised) {
    arguments.push_back(std::make_unique<Region>(begin, end, nullptr, initialised));
  }
  Region* argument_at(uintptr_t at) {
    for (auto& region : arguments)
      if (at >= region->begin && at < region->end) return region.get();
    return nullptr;
  }
  void report(Finding finding);
  const std::vector<Finding>& findings() const { return findings_; }
  uint64_t dropped() const { return dropped_; }

  std::vector<std::unique_ptr<Region>> arguments;
  std::vector<uint64_t> block_of_team{0};
  uint32_t first_team = 1;  // of this launch; what earlier launches did happened before
  std::unordered_map<uintptr_t, Clock> atomics;  // exported clocks by address
  // Called before a launch: what earlier ones did happened before all of it.
  void begin_launch();

 private:
  size_t limit_;
  uint64_t dropped_ = 0;
  std::vector<Finding> findings_;
  std::unordered_map<std::string, size_t> known_;
};

// The race checker of a running block.
class Race {
 public:
  Race(Block& block, Sanitizer& sanitizer) : block_(block), sanitizer_(sanitizer) {}
  void begin();
  // When all blocks of the gang are done: lets go of what they share.
  void end();

  // An access of the acting strand to bytes that are in bounds of `region`.
  void access(Region& region, uintptr_t at, uint32_t bytes, Use use, uint32_t site);

  // --- happens-before ---
  Strand& strand() { return acting_ ? *acting_ : strands_[current->index]; }
  Strand& strand_of(const Thread& thread) { return strands_[thread.index]; }
  // A meeting of the lanes at `site`; the last of them works for all.
  void arrive(const Warp& warp, const Site& site);
  void leave(const Warp& warp, const Site& site);
  void arrive_at_barrier(int id) { barriers_[id].release(strand()); }
  void leave_barrier(int id, const Barrier& barrier);
  void exit() { exited_.release(strand()); }
  // mbarriers and their like, by address: arrivals of a phase reach those who wait for its end.
  // `owner`: of the block in whose shared memory the object is.
  void arrive_at(const void* object, Race& owner);
  void complete(const void* object);
  void wait_for(const void* object) { phases_[object].complete.acquire(strand()); }
  // Barriers of several blocks. A relaxed arrival releases no more than the last fence did.
  void arrive_at(Meeting& meeting, bool relaxed);
  static void complete(const std::vector<Block*>& blocks, std::vector<Meeting>& meetings);
  void wait_for(Meeting& meeting);
  // fence.proxy.async: what happened before is visible to the async proxy.
  void fence_async_proxy();
  void fence();              // __threadfence
  void fence_mbarrier_init();  // fence.mbarrier_init
  void atomic(uintptr_t at, bool acquires, bool releases);

  // --- engines: what they do happens after it was issued and before its completion was awaited ---
  uint32_t copy_engine(const Thread& thread) const { return block_.thread_count + thread.index; }
  uint32_t matrix_engine(const Warp& warp) const { return 2 * block_.thread_count + warp.index; }
  // One of the many that work for vgpu_async. Its steps complete in any order, which clocks cannot
  // say: they count as one strand only after kAsyncEngines others.
  uint32_t async_engine() {
    return 2 * block_.thread_count + block_.warp_count + async_issued_++ % kAsyncEngines;
  }
  // What a thread initialises mbarriers as: there is a fence for that alone.
  uint32_t init_engine(const Thread& thread) const {
    return 2 * block_.thread_count + block_.warp_count + kAsyncEngines + thread.index;
  }
  // Components beyond all engines: what is known of tensor memory, see TensorRace.
  uint32_t news_engine(uint32_t index) const {
    return 3 * block_.thread_count + block_.warp_count + kAsyncEngines + index;
  }
  uint32_t team() const { return team_; }
  // A new step of the engine, which knows what the acting strand knows now.
  Strand issue(uint32_t engine);
  // The current thread knows the engine's steps up to `step`.
  void await(uint32_t engine, uint32_t step) { strand().known.raise(engine, step); }

  // While it lives, accesses are those of an engine, made by the instruction at `site`.
  class Acting {
   public:
    Acting(Race* race, Strand* strand, uint32_t site, bool async_proxy);
    ~Acting();

   private:
    Race* race_;
  };
  uint32_t acting_site() const { return acting_site_; }
  // Decides about the last conflicting write, which has happened by now.
  void settle();
  // As the block ends: its shared memory goes, who may still use it?
  void check_visits();

 private:
  static constexpr uint32_t kAsyncEngines = 64;
  struct Phase {
    Sync pending, complete;
  };
  struct Pending {  // a conflicting write: a race only if it changes what is there
    Region* region = nullptr;
    uintptr_t at = 0;
    uint32_t bytes = 0;
    Epoch epoch;
    Finding finding;
    std::vector<char> before;
  };

  struct Remote {  // of another block's strand to this one's shared memory
    Epoch epoch;
    uintptr_t at;
    uint32_t bytes;
    Use use;
  };
  struct Actor {
    dim3 block, thread;
    bool thread_known = true;
    std::string by;  // " by cp.async", empty for a thread
  };

  bool knows(const Strand& strand, const Epoch& epoch) const;
  bool conflicts(const Strand& strand, const Epoch& now, const Epoch& earlier) const;
  bool unfenced(const Strand& strand, const Epoch& now, const Epoch& write) const;
  const Epoch* find_conflict(Cell& cell, const Strand& strand, const Epoch& now, bool write);
  void claim(Cell& cell, const Epoch& now);
  void note_read(Cell& cell, const Strand& strand, const Epoch& now);
  void visit(Race& host, const Remote& visit);
  Actor actor(const Epoch& epoch) const;
  template <class Visit>
  void each_cell(Region& region, uintptr_t at, uint32_t bytes, Visit visit);
  Finding conflict(uintptr_t at, uint32_t bytes, const Epoch& now, bool write,
                   const Epoch& earlier, bool earlier_wrote) const;
  void check_initialised(Region& region, uintptr_t at, uint32_t bytes, Use use, uint32_t site);
  Finding finding(const char* kind, uint32_t site) const;

  Block& block_;
  Sanitizer& sanitizer_;
  uint32_t team_ = 0, first_peer_ = 0;  // of the gang
  std::vector<Strand> strands_;
  std::vector<uint32_t> engine_steps_;
  uint32_t async_issued_ = 0;
  std::vector<Sync> sites_;  // by warp and site
  Sync barriers_[kBarriers];
  std::unordered_map<const void*, Phase> phases_;
  std::vector<Sync> fences_;              // by thread: what its last fence releases
  std::vector<Clock> observed_;           // by thread: what relaxed atomics brought, until a fence
  ReaderLists* readers_ = nullptr;  // of the region being visited
  std::unordered_map<uintptr_t, Clock> shared_atomics_;
  std::unordered_map<uint64_t, Remote> visits_;  // by team and component, the latest
  Sync exited_;  // what threads that are gone knew
  Strand* acting_ = nullptr;
  uint32_t acting_site_ = 0;
  bool async_proxy_ = false;
  Pending pending_;
};

}  // namespace vgpu
