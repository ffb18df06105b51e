// What a launch moves and computes, counted exactly. A warp's access is what its lanes do at one
// instruction: their n-th visits to it since the warp, or the block, last met.
#pragma once
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "race.h"
#include "vgpu/counting.h"

namespace vgpu {

// Read or written, of one memory. `counters.py` mirrors these structs field by field.
struct GlobalTraffic {
  uint64_t accesses;  // of warps, and boxes of bulk copies
  uint64_t bytes, sectors, lines;  // of 32 and 128 bytes, as often as an access touches them
  uint64_t unique_bytes;
};
struct SharedTraffic {
  uint64_t accesses;
  uint64_t bytes;
  uint64_t wavefronts;  // passes over the 32 banks
  uint64_t conflicts;   // those more than an access of that width needs
};
struct Totals {
  GlobalTraffic global[2];  // read, written
  SharedTraffic shared[2];
  uint64_t copied_bytes, bulk_bytes;  // cp.async; TMA and bulk copies
  uint64_t operand_bytes;             // shared memory read by wgmma and tcgen05.mma
  uint64_t barriers, mbarrier_waits, atomics, shuffles;
  uint64_t reductions;  // redux.sync
  uint64_t matrix[kMatrixUnits][kMatrixTypes];  // operations: a multiplication and an addition are 2

  void add(const Totals& other);
};
static_assert(sizeof(Totals) % sizeof(uint64_t) == 0);

// Of one launch, shared by its OS threads.
class Tally {
 public:
  explicit Tally(const std::vector<Range>& ranges);
  void add(const Totals& part);
  // Marks bytes of an argument as touched.
  void touch(uintptr_t at, uint32_t bytes, bool write);
  // The address relative to the allocation it lies in, which on a GPU begins with a line.
  uintptr_t normal(uintptr_t at) const;
  Totals totals() const;  // when all threads are done

 private:
  struct Touched {
    uintptr_t begin, end, allocation;
    std::unique_ptr<std::atomic<uint64_t>[]> bits[2];  // of bytes read, written
    size_t words() const { return (end - begin + 63) / 64; }
  };
  const Touched* find(uintptr_t at) const;

  std::vector<Touched> ranges_;
  std::mutex mutex_;
  Totals totals_{};
};

enum class Space : uint8_t { kPrivate, kShared, kGlobal };

// Of the block an OS thread runs.
class Counter {
 public:
  Counter(Block& block, Tally& tally) : block_(block), tally_(tally) {}
  ~Counter();

  Totals totals{};

  // One thread's access, from the instruction that `frame`, the library's entry, returns to.
  void access(Space space, uintptr_t at, uint32_t bytes, Use use, const void* frame);
  // Eight rows of 16 bytes of ldmatrix or stmatrix.
  void rows(void* const* rows, bool write);
  void bulk_global(const Box& box, bool write);
  void bulk_shared(uint32_t bytes, bool write);
  void bulk_copy(uint32_t bytes, bool write) {
    bulk_shared(bytes, write);
    totals.bulk_bytes += bytes;
  }
  // Lanes of a warp leave a rendezvous; all of them if they are all that live.
  void leave(const Warp& warp, const char* op, uint32_t lanes);
  void leave(const Barrier& barrier);

 private:
  struct Group {  // one access of a warp
    uint32_t lanes = 0;
    uint32_t bytes[kWarp];
    uintptr_t at[kWarp];
  };
  struct Point {  // an instruction
    std::deque<Group> open;
    uint32_t visits[kWarp] = {};
    uint32_t closed = 0;  // visits before those in `open`
    Space space;
    Use use;
  };
  // All lanes of the warp have come to one place: no later visit belongs to an earlier access.
  void meet(uint32_t warp);
  void close(const Point& point, const Group& group);
  void global(const Group& group, bool write);
  void shared(const Group& group, bool write);

  Block& block_;
  Tally& tally_;
  std::unordered_map<uintptr_t, Point> points_[kMaxThreads / kWarp];
};

// Launches of checked builds by an OS thread while it is active there.
struct Counting {
  struct Entry {
    std::string kernel;
    dim3 grid, block;
    Totals totals;
  };
  std::vector<Entry> launches;
};

extern thread_local Counting* active_counting;

}  // namespace vgpu
