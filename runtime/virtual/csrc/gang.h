// Blocks that run at the same time: those of a cluster, or all of a cooperative grid.
//
// Each has an OS thread, for the sake of its shared memory, but only one of them runs at any time:
// when no thread of it can, the next one has its turn: in a ring, up, down or shuffled by the seed.
// So gangs are as deterministic as blocks.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "clock.h"

namespace vgpu {

struct Block;
struct Thread;

// A barrier over all threads of some blocks, in two steps: arrive and wait.
class WideBarrier {
 public:
  void reset(std::vector<Block*> blocks);
  // Relaxed: orders the arrival, not the memory accesses before it.
  void arrive(Thread& thread, const char* name, bool relaxed);
  void wait(Thread& thread, const char* name);
  void exit(const Thread& thread);  // before the thread stops counting as live
  void settle();

 private:
  enum State : uint8_t { kOutside, kArrived, kAsleep, kComplete };
  size_t index_of(const Block* block) const;
  std::vector<Block*> blocks_;
  std::vector<std::vector<State>> states_;  // by block and thread
  std::vector<Meeting> meetings_;  // of the race checker, by block; empty without one
  uint32_t arrived_ = 0;
};

class Gang {
 public:
  // `size` blocks, in clusters of `cluster`.
  Gang(uint32_t size, uint32_t cluster) : seats_(size), cluster_(cluster) {}

  // The block takes its seat and waits until all have, then for its turn. False: do not run at all.
  bool enter(Block& block, uint32_t rank);
  // No thread of the block can run: lets the others. True when some thread of it can again.
  bool pass(Block& block);
  // The block has ended; returns when all have.
  void leave(Block& block);

  Block* member(uint32_t rank) const { return seats_[rank].block; }
  bool has_ended(uint32_t rank) const { return seats_[rank].ended; }
  uint32_t cluster_size() const { return cluster_; }
  WideBarrier& cluster_barrier(uint32_t rank) { return clusters_[rank / cluster_]; }
  WideBarrier grid;

 private:
  struct Seat {
    Block* block = nullptr;
    bool ended = false;
    std::condition_variable called;
  };
  void choose_order();
  int next_after(uint32_t rank) const;
  int next_or_deadlock(Block& block);
  void stop();

  std::deque<Seat> seats_;
  std::vector<uint32_t> ring_, place_;  // members in the order of their turns; where each is in it
  std::deque<WideBarrier> clusters_;
  const uint32_t cluster_;
  std::mutex mutex_;
  uint32_t entered_ = 0, left_ = 0, idle_rounds_ = 0;
  int turn_ = -1;
  uint64_t round_ = 0;  // of entering and leaving
  bool over_ = false;   // an error ended the gang
};

}  // namespace vgpu
