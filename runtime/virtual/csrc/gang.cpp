#include "gang.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "race.h"
#include "vgpu/cluster.h"

namespace vgpu {

// --- barriers ------------------------------------------------------------------------------------

void WideBarrier::reset(std::vector<Block*> blocks) {
  blocks_ = std::move(blocks);
  states_.assign(blocks_.size(), std::vector<State>(kMaxThreads, kOutside));
  meetings_.assign(blocks_[0]->race ? blocks_.size() : 0, Meeting{});
  arrived_ = 0;
}

size_t WideBarrier::index_of(const Block* block) const {
  size_t index = 0;
  while (blocks_[index] != block) ++index;
  return index;
}

void WideBarrier::arrive(Thread& thread, const char* name, bool relaxed) {
  const size_t block = index_of(thread.block);
  State& mine = states_[block][thread.index];
  if (mine != kOutside) vgpu_fail("%s: arrives again without waiting in between", name);
  mine = kArrived;
  ++arrived_;
  if (Race* race = thread.block->race) race->arrive_at(meetings_[block], relaxed);
  settle();
}

void WideBarrier::wait(Thread& thread, const char* name) {
  const size_t block = index_of(thread.block);
  State& mine = states_[block][thread.index];
  if (mine == kOutside) vgpu_fail("%s: waits without having arrived", name);
  if (mine == kArrived) {
    mine = kAsleep;
    thread.block->sleep(thread, name);
  }
  mine = kOutside;
  if (Race* race = thread.block->race) race->wait_for(meetings_[block]);
}

void WideBarrier::exit(const Thread& thread) {
  if (blocks_.empty()) return;
  if (states_[index_of(thread.block)][thread.index] == kArrived) --arrived_;
}

void WideBarrier::settle() {
  uint32_t live = 0;
  for (const Block* block : blocks_) live += block->live;
  if (!arrived_ || arrived_ < live) return;
  arrived_ = 0;
  if (!meetings_.empty()) Race::complete(blocks_, meetings_);
  for (size_t b = 0; b < blocks_.size(); ++b)
    for (uint32_t i = 0; i < blocks_[b]->thread_count; ++i) {
      State& mine = states_[b][i];
      const Thread& thread = blocks_[b]->threads[i];
      if (mine == kAsleep) blocks_[b]->wake(*thread.warp, 1u << thread.lane);
      if (mine != kOutside) mine = kComplete;
    }
}

// --- turns ---------------------------------------------------------------------------------------

bool Gang::enter(Block& block, uint32_t rank) {
  std::unique_lock<std::mutex> lock(mutex_);
  block.gang = this;
  block.rank = rank;
  seats_[rank].block = &block;
  seats_[rank].ended = false;
  if (++entered_ == seats_.size()) {
    entered_ = left_ = idle_rounds_ = 0;
    over_ = false;
    std::vector<Block*> all;
    for (const Seat& seat : seats_) all.push_back(seat.block);
    clusters_.resize(all.size() / cluster_);
    for (size_t c = 0; c < clusters_.size(); ++c) {
      const auto first = all.begin() + static_cast<ptrdiff_t>(c * cluster_);
      clusters_[c].reset({first, first + cluster_});
    }
    grid.reset(all);
    for (Block* member : all)
      if (member->race) member->race->begin();
    choose_order();
    turn_ = static_cast<int>(ring_[0]);
    seats_[ring_[0]].called.notify_one();
  }
  seats_[rank].called.wait(lock, [&] { return turn_ == int(rank) || over_; });
  return !over_;
}

void Gang::choose_order() {
  const Block& first = *seats_[0].block;
  ring_.resize(seats_.size());
  std::iota(ring_.begin(), ring_.end(), 0u);
  if (first.schedule == Schedule::kReverse) std::reverse(ring_.begin(), ring_.end());
  if (is_random(first.schedule)) {
    const uint64_t seed = first.launch->options.seed;
    std::minstd_rand random(static_cast<unsigned>(seed * 48271u + first.number + 1));
    std::shuffle(ring_.begin(), ring_.end(), random);
  }
  place_.resize(ring_.size());
  for (uint32_t i = 0; i < ring_.size(); ++i) place_[ring_[i]] = i;
}

// The next member that can run, the asking one last; -1 if none can.
int Gang::next_after(uint32_t rank) const {
  const auto size = static_cast<uint32_t>(seats_.size());
  for (uint32_t i = 1; i <= size; ++i) {
    const uint32_t next = ring_[(place_[rank] + i) % size];
    if (!seats_[next].ended && seats_[next].block->ready_warps) return static_cast<int>(next);
  }
  return -1;
}

int Gang::next_or_deadlock(Block& block) {
  int next = next_after(block.rank);
  if (next >= 0) return next;
  if (++idle_rounds_ <= kMaxIdleRounds) {
    for (Seat& seat : seats_)
      if (!seat.ended) seat.block->wake_polls();
    next = next_after(block.rank);
    if (next >= 0) return next;
  }
  Block* first = nullptr;  // the error is about it, the others are told of
  std::string words;
  for (const Seat& seat : seats_) {
    if (seat.ended || !seat.block->live) continue;
    const dim3& id = seat.block->id;
    if (first)
      words += "; block (" + std::to_string(id.x) + ", " + std::to_string(id.y) + ", " +
               std::to_string(id.z) + "): ";
    else
      first = seat.block;
    words += seat.block->describe_deadlock();
  }
  if (first) record_error(*first, nullptr, words, 0);
  stop();
  return -1;
}

void Gang::stop() {
  over_ = true;
  for (Seat& seat : seats_) seat.called.notify_one();
}

bool Gang::pass(Block& block) {
  std::unique_lock<std::mutex> lock(mutex_);
  const int next = next_or_deadlock(block);
  if (next < 0) return false;
  turn_ = next;
  if (next == int(block.rank)) return true;
  seats_[static_cast<size_t>(next)].called.notify_one();
  seats_[block.rank].called.wait(lock, [&] { return turn_ == int(block.rank) || over_; });
  return !over_;
}

void Gang::leave(Block& block) {
  std::unique_lock<std::mutex> lock(mutex_);
  seats_[block.rank].ended = true;
  const uint64_t round = round_;
  if (block.launch->failed) stop();
  if (++left_ == seats_.size()) {
    ++round_;
    turn_ = -1;
    for (const Seat& seat : seats_)
      if (seat.block->race) seat.block->race->end();
    for (Seat& seat : seats_) seat.called.notify_one();
    return;
  }
  if (!over_) {
    const int next = next_or_deadlock(block);
    if (next >= 0) seats_[static_cast<size_t>(turn_ = next)].called.notify_one();
  }
  seats_[block.rank].called.wait(lock, [&] { return round_ != round; });
}

// --- distributed shared memory -------------------------------------------------------------------

uint32_t Block::cluster_size() const { return gang ? gang->cluster_size() : 1; }

Block& Block::peer(uint32_t cluster_rank) {
  if (cluster_rank >= cluster_size())
    vgpu_fail("block rank %u in a cluster of %u", cluster_rank, cluster_size());
  return gang ? *gang->member(rank - rank % cluster_size() + cluster_rank) : *this;
}

Block& Block::running_peer(uint32_t cluster_rank) {
  Block& other = peer(cluster_rank);
  if (gang && gang->has_ended(other.rank))
    vgpu_fail("cluster lifetime: shared memory of block rank %u in the cluster, which has exited",
              cluster_rank);
  return other;
}

Block* Block::owner_of(const void* shared_pointer) {
  const auto holds = [&](const Block& block) {
    return shared_pointer >= block.segment_begin && shared_pointer < block.segment_end;
  };
  if (holds(*this)) return this;
  for (uint32_t i = 0; gang && i < cluster_size(); ++i)
    if (holds(peer(i))) return &running_peer(i);
  return nullptr;
}

}  // namespace vgpu

using namespace vgpu;

void* vgpu_map_rank(const void* shared, uint32_t rank) {
  Block& block = *current->block;
  const char* pointer = static_cast<const char*>(shared);
  if (pointer < block.segment_begin || pointer >= block.segment_end)
    vgpu_fail("%p is not in the block's shared memory", shared);
  return block.peer(rank).segment_begin + (pointer - block.segment_begin);
}

unsigned vgpu_cluster_rank() { return current->block->rank % current->block->cluster_size(); }
unsigned vgpu_cluster_dim(int axis) {
  const dim3& dim = current->block->launch->cluster;
  return axis == 0 ? dim.x : axis == 1 ? dim.y : dim.z;
}

void vgpu_cluster_arrive(bool relaxed) {
  Thread& me = *current;
  if (Gang* gang = me.block->gang) {
    gang->cluster_barrier(me.block->rank).arrive(me, "barrier.cluster", relaxed);
  } else {
    me.block->alone.arrive(me, "barrier.cluster", relaxed);
  }
}

void vgpu_cluster_wait() {
  Thread& me = *current;
  if (Gang* gang = me.block->gang) {
    gang->cluster_barrier(me.block->rank).wait(me, "barrier.cluster");
  } else {
    me.block->alone.wait(me, "barrier.cluster");
  }
}

void vgpu_grid_sync() {
  Thread& me = *current;
  if (!me.block->launch->options.cooperative)
    vgpu_fail("this_grid().sync() in a launch that is not cooperative");
  WideBarrier& barrier = me.block->gang ? me.block->gang->grid : me.block->alone;
  barrier.arrive(me, "the grid's barrier", false);
  barrier.wait(me, "the grid's barrier");
}
