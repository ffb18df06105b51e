// Allocation of tensor memory, loads and stores, and the queues of asynchronous operations.
#include <algorithm>

#include "race.h"
#include "vgpu/cluster.h"

namespace vgpu {

namespace {

TensorMemory& memory_of(Block& block) {
  if (!block.tensor) block.tensor = std::make_unique<TensorMemory>();
  if (block.race && !block.tensor->race) block.tensor->race = std::make_unique<TensorRace>(block);
  return *block.tensor;
}

// The blocks that an instruction of this cta_group works on.
TensorGroup group_of(const char* op, bool pair) {
  Block& block = *current->block;
  int& group = memory_of(block).group;
  if (group && group != 1 + pair)
    vgpu_fail("%s.cta_group::%d after instructions of cta_group::%d: those of a kernel must all have "
              "the same",
              op, 1 + pair, group);
  group = 1 + pair;
  if (!pair) return {1, {&block, nullptr}, {&memory_of(block), nullptr}};
  if (block.cluster_size() % 2)
    vgpu_fail("%s.cta_group::2 needs pairs of blocks, the cluster has %u", op, block.cluster_size());
  const uint32_t even = block.rank % block.cluster_size() & ~1u;
  Block &first = block.running_peer(even), &second = block.running_peer(even + 1);
  return {2, {&first, &second}, {&memory_of(first), &memory_of(second)}};
}

// The same for one thread's instruction on behalf of both blocks.
TensorGroup issuing_group(const char* op, bool pair) {
  if (pair && current->block->rank & 1)
    vgpu_fail("the virtual GPU does not model %s.cta_group::2 by the odd block of a pair", op);
  return group_of(op, pair);
}

// Where register `index` of a lane lies, in 32-bit columns before packing.
struct Cell {
  uint32_t lane, column;
};

Cell cell_of(uint32_t bits, uint32_t lane, uint32_t index) {
  switch (bits) {
    case 32: return {lane, index};
    case 64: return {lane / 4 + 8 * (lane % 2), 2 * index + lane / 2 % 2};
    case 128: return {lane / 4 + 8 * (index % 2), 4 * (index / 2) + lane % 4};
    default: return {lane / 4 + 8 * (index / 2 % 2), 8 * (index / 4) + 2 * (lane % 4) + index % 2};
  }
}

void load(const TensorMemory& memory, const TensorAccess& access, uint32_t lane,
          uint32_t* registers) {
  for (uint32_t i = 0; i < access.registers(); ++i) {
    const Cell cell = cell_of(access.bits, lane, i);
    const uint32_t* row = memory.cells[lane_of(access.address) + cell.lane];
    const uint32_t first = column_of(access.address);
    if (access.packed) {
      const uint32_t* pair = row + first + 2 * cell.column;
      registers[i] = (pair[0] & 0xffff) | pair[1] << 16;
    } else {
      registers[i] = row[first + cell.column];
    }
  }
}

void store(TensorMemory& memory, const TensorAccess& access, uint32_t lane,
           const uint32_t* registers) {
  for (uint32_t i = 0; i < access.registers(); ++i) {
    const Cell cell = cell_of(access.bits, lane, i);
    uint32_t* row = memory.cells[lane_of(access.address) + cell.lane];
    const uint32_t first = column_of(access.address);
    if (access.packed) {  // the manual leaves the upper halves open: NaN
      uint32_t* pair = row + first + 2 * cell.column;
      pair[0] = 0xffff0000 | registers[i];
      pair[1] = 0xffff0000 | registers[i] >> 16;
    } else {
      row[first + cell.column] = registers[i];
    }
  }
}

void perform(TensorMemory& memory, const PendingAccess& pending) {
  const uint32_t count = pending.access.registers();
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    if (pending.access.store) {
      store(memory, pending.access, lane, pending.values.data() + lane * count);
    } else {
      load(memory, pending.access, lane, pending.target[lane]);
    }
  }
}

// The race checker of the running block's tensor memory, null without a session.
TensorRace* race_of(const Block& block) { return block.tensor ? block.tensor->race.get() : nullptr; }

struct CopyRecord {
  TensorGroup group;
  uint64_t source;
  uint32_t address;
};

// tcgen05.cp.32x128b.warpx4: 32 rows of 16 bytes, the same in each quarter of the lanes; each block
// from its own shared memory.
void perform_copy(const CopyRecord& copy) {
  const OperandLayout layout = tensor_operand(copy.source, "tcgen05.cp");
  for (uint32_t i = 0; i < copy.group.size; ++i)
    for (uint32_t lane = 0; lane < kTensorLanes; ++lane)
      memcpy(&copy.group.memory[i]->cells[lane][column_of(copy.address)],
             shared_pointer(*copy.group.block[i], layout.address(false, lane % 32, 0), 16,
                            __builtin_frame_address(0)),
             16);
}

struct MmaRecord {
  TensorGroup group;
  TensorMma mma;
};

struct CommitRecord {
  uint64_t* barrier;
  uint32_t mask;  // of blocks in the cluster, 0 for the caller's alone
  uint32_t steps;  // of the warp, for the race checker
};

// Queues work of the calling warp; it is performed in the order it was issued.
template <class Record>
void issue(const char* what, const Record& record, void (*perform)(const void*)) {
  vgpu_async(what, kMaxThreads + current->warp->index, perform, &record, sizeof record);
}

void require_columns_of_allocation(int columns) {
  if (columns < 32 || columns > 512 || columns & (columns - 1))
    vgpu_fail("tensor memory is allocated by 32, 64, 128, 256 or 512 columns, got %d", columns);
}

using Allocations = std::vector<TensorMemory::Allocation>;

bool overlaps(const TensorMemory::Allocation& a, uint32_t first, uint32_t columns) {
  return first < a.first + a.columns && a.first < first + columns;
}

bool is_free(const Allocations& allocations, uint32_t first, uint32_t columns) {
  return std::none_of(allocations.begin(), allocations.end(),
                      [&](const auto& a) { return !a.freed_by && overlaps(a, first, columns); });
}

void take(TensorMemory& memory, uint32_t first, uint32_t columns) {
  Allocations& allocations = memory.allocations;
  allocations.erase(std::remove_if(allocations.begin(), allocations.end(),
                                   [&](const auto& a) { return overlaps(a, first, columns); }),
                    allocations.end());
  allocations.push_back({first, columns, nullptr});
  if (memory.race) memory.race->allocate(first, columns);
  for (auto& row : memory.cells) memset(row + first, 0xff, columns * 4);
}

// The same columns in all blocks of the group.
uint32_t allocate(const TensorGroup& group, uint32_t columns) {
  // Seeded runs also hand out the other end: an address is not always 0.
  for (uint32_t i = 0; i < kTensorColumns / columns; ++i) {
    const uint32_t first =
        (group.block[0]->lanes_descend ? kTensorColumns / columns - 1 - i : i) * columns;
    bool free = true;
    for (uint32_t b = 0; b < group.size; ++b)
      free = free && is_free(group.memory[b]->allocations, first, columns);
    if (!free) continue;
    for (uint32_t b = 0; b < group.size; ++b) take(*group.memory[b], first, columns);
    return first;
  }
  uint32_t taken = 0;
  for (const auto& a : group.memory[0]->allocations) taken += a.freed_by ? 0 : a.columns;
  vgpu_fail("tcgen05.alloc of %u columns waits for ever: the block already holds %u of the 512 "
            "columns of tensor memory",
            columns, taken);
}

// `peer`: the warp that frees in the other block of a pair.
void release(const TensorGroup& group, uint32_t address, uint32_t columns, const Warp* peer) {
  // Plain runs allow what other warps still do, see require_columns.
  const bool checked = current->block->launch->module->table->checked;
  for (uint32_t b = 0; b < group.size; ++b) {
    TensorMemory& memory = *group.memory[b];
    for (uint32_t w = 0; w < group.block[b]->warp_count; ++w)
      if ((checked || (group.block[b] == current->block && w == current->warp->index)) &&
          (memory.in_flight[w] || !memory.accesses[w].empty()))
        vgpu_fail("tcgen05.dealloc while operations of warp %u on tensor memory are not known to be "
                  "complete",
                  w);
    const auto found = std::find_if(memory.allocations.begin(), memory.allocations.end(), [&](auto& a) {
      return !a.freed_by && a.first == address && a.columns == columns;
    });
    if (found == memory.allocations.end())
      vgpu_fail("tcgen05.dealloc of %u columns at %#x: no allocation has that address and size",
                columns, address);
    found->freed_by = group.block[b] == current->block ? current->warp : peer;
  }
}

// What two warps, one of each block of a pair, ask for: the first sleeps until the second comes,
// which does it for both.
void with_peer(const char* op, const TensorGroup& group, PairRequest& mine) {
  Block& block = *current->block;
  TensorMemory& memory = memory_of(block);
  TensorMemory& other = *group.memory[group.block[0] == &block];
  if (!other.waiting) {
    if (memory.waiting)
      vgpu_fail("the virtual GPU does not model two warps of a block in %s.cta_group::2 at once", op);
    memory.waiting = &mine;
    while (!mine.done) block.sleep(*current, "the other block of the pair, for tensor memory");
    return;
  }
  PairRequest& theirs = *other.waiting;
  if (theirs.allocate != mine.allocate || theirs.columns != mine.columns ||
      (!mine.allocate && theirs.address != mine.address))
    vgpu_fail("%s.cta_group::2 of %u columns at %#x: the other block of the pair asks for %s of %u "
              "columns at %#x",
              op, mine.columns, mine.address, theirs.allocate ? "tcgen05.alloc" : "tcgen05.dealloc",
              theirs.columns, theirs.address);
  if (mine.allocate) {
    mine.address = theirs.address = allocate(group, mine.columns);
  } else {
    release(group, mine.address, mine.columns, theirs.thread->warp);
  }
  theirs.done = true;
  other.waiting = nullptr;
  theirs.thread->block->wake(*theirs.thread->warp, 1u << theirs.thread->lane);
}

}  // namespace

// TileLang 0.1.15 lets one warp free tensor memory that others may still read. The data is there
// until someone else allocates, so plain runs allow it, as the hardware does; checked ones do not.
void TensorMemory::require_columns(const char* op, uint32_t first, uint32_t count) const {
  std::string held;
  for (const Allocation& a : allocations) {
    const bool inside = first >= a.first && first + count <= a.first + a.columns;
    if (inside && a.freed_by) {
      if (!current->block->launch->module->table->checked && a.freed_by != current->warp) return;
      vgpu_fail("use after free: %s, columns %u to %u of tensor memory were freed by warp %u; a "
                "barrier must come before that",
                op, first, first + count - 1, a.freed_by->index);
    }
    if (inside) return;
    if (!a.freed_by)
      held += (held.empty() ? "" : ", ") + std::to_string(a.first) + " to " +
              std::to_string(a.first + a.columns - 1);
  }
  vgpu_fail("%s: columns %u to %u of tensor memory are not in an allocation, allocated are %s", op,
            first, first + count - 1, held.empty() ? "none" : held.c_str());
}

void TensorMemory::clear() {
  allocations.clear();
  waiting = nullptr;
  group = 0;
  race.reset();
  for (auto& queue : accesses) queue.clear();
  std::fill(std::begin(in_flight), std::end(in_flight), 0);
}

void TensorGroup::touch(const TensorRace::Area& area, bool write) const {
  TensorRace* race = race_of(*current->block);
  for (uint32_t i = 0; race && i < size; ++i) race->touch(*memory[i]->race, area, write);
}

std::string tensor_leak(const Block& block) {
  if (!block.tensor) return "";
  for (const auto& a : block.tensor->allocations)
    if (!a.freed_by)
      return "leak: tensor memory columns " + std::to_string(a.first) + " to " +
             std::to_string(a.first + a.columns - 1) + " are still allocated when the block ends";
  return "";
}

}  // namespace vgpu

using namespace vgpu;

void vgpu_tensor_allocate(uint32_t* result, int columns, bool pair) {
  require_columns_of_allocation(columns);
  vgpu_check_shared(result, 4, true);
  const TensorGroup group = group_of("tcgen05.alloc", pair);
  PairRequest request{current, true, static_cast<uint32_t>(columns), 0};
  if (pair) {
    with_peer("tcgen05.alloc", group, request);
  } else {
    request.address = allocate(group, request.columns);
  }
  memcpy(result, &request.address, 4);
}

void vgpu_tensor_deallocate(uint32_t address, int columns, bool pair) {
  require_columns_of_allocation(columns);
  const TensorGroup group = group_of("tcgen05.dealloc", pair);
  if (TensorRace* race = race_of(*current->block))
    race->release(address, static_cast<uint32_t>(columns), __builtin_frame_address(0));
  PairRequest request{current, false, static_cast<uint32_t>(columns), address};
  if (pair) {
    with_peer("tcgen05.dealloc", group, request);
  } else {
    release(group, address, request.columns, nullptr);
  }
}

void vgpu_tensor_mma(const TensorMma& mma) {
  const TensorGroup group = issuing_group("tcgen05.mma", mma.pair);
  if (TensorRace* race = race_of(*current->block))
    race->begin(TensorRace::kMma, "tcgen05.mma", __builtin_frame_address(0));
  check_mma(group, mma);
  ++memory_of(*current->block).in_flight[current->warp->index];
  issue("tcgen05.mma", MmaRecord{group, mma}, [](const void* record) {
    const auto& what = *static_cast<const MmaRecord*>(record);
    perform_mma(what.group, what.mma);
    --current->block->tensor->in_flight[current->warp->index];
  });
}

void vgpu_tensor_copy(uint64_t source, uint32_t address, bool pair) {
  const TensorGroup group = issuing_group("tcgen05.cp", pair);
  if (lane_of(address))
    vgpu_fail("tcgen05.cp writes all lanes: its address must be of lane 0, got lane %u",
              lane_of(address));
  for (uint32_t i = 0; i < group.size; ++i)
    group.memory[i]->require_columns("tcgen05.cp", column_of(address), 4);
  if (TensorRace* race = race_of(*current->block))
    race->begin(TensorRace::kMma, "tcgen05.cp", __builtin_frame_address(0));
  group.touch({0xff, column_of(address), 4}, true);
  tensor_operand(source, "tcgen05.cp");
  ++memory_of(*current->block).in_flight[current->warp->index];
  issue("tcgen05.cp", CopyRecord{group, source, address}, [](const void* record) {
    perform_copy(*static_cast<const CopyRecord*>(record));
    --current->block->tensor->in_flight[current->warp->index];
  });
}

void vgpu_tensor_commit(const void* mbarrier, bool pair, uint32_t cta_mask) {
  issuing_group("tcgen05.commit", pair);
  uint64_t* const barrier = static_cast<uint64_t*>(const_cast<void*>(mbarrier));
  vgpu_check_shared(barrier, 8);
  // TileLang's commit of one block is not a multicast.
  const uint32_t mask = pair ? cta_mask : 0;
  if (pair && !mask) vgpu_fail("tcgen05.commit: multicast to no block of the cluster");
  if (mask >> current->block->cluster_size())
    vgpu_fail("tcgen05.commit: multicast mask %#x in a cluster of %u blocks", mask,
              current->block->cluster_size());
  const TensorRace* race = race_of(*current->block);
  const uint32_t steps = race ? race->issued() : 0;
  issue("tcgen05.commit", CommitRecord{barrier, mask, steps}, [](const void* record) {
    const auto& commit = *static_cast<const CommitRecord*>(record);
    if (TensorRace* race = race_of(*current->block)) race->committed(commit.steps);
    if (!commit.mask) vgpu_mbarrier_arrive(commit.barrier, 0);
    for (uint32_t left = commit.mask; left; left &= left - 1)
      vgpu_mbarrier_arrive(static_cast<uint64_t*>(vgpu_map_rank(
                               commit.barrier, static_cast<uint32_t>(__builtin_ctz(left)))),
                           0);
  });
}

void vgpu_tensor_access(const TensorAccess& access, uint32_t* const* registers) {
  Block& block = *current->block;
  const char* op = access.store ? "tcgen05.st" : "tcgen05.ld";
  TensorMemory& memory = memory_of(block);
  // A warp reaches the quarter of the lanes that its number in the warpgroup names; addresses
  // count from there or from lane 0.
  const uint32_t quarter = current->warp->index % 4 * 32, lane = lane_of(access.address);
  if (lane / 32 * 32 != quarter && lane >= 32)
    vgpu_fail("%s: warp %u reaches lanes %u to %u of tensor memory, got an address of lane %u", op,
              current->warp->index, quarter, quarter + 31, lane);
  if (lane % 32 + access.lanes > 32 || lane % 16)
    vgpu_fail("%s.%ux%ub: its lanes start at a multiple of %u, got lane %u", op, access.lanes,
              access.bits, access.lanes, lane);
  PendingAccess pending{access, {}, {}};
  pending.access.address = (quarter + lane % 32) << 16 | column_of(access.address);
  memory.require_columns(op, column_of(access.address), access.columns());
  if (TensorRace* race = memory.race.get()) {
    const uint32_t half = lane_of(pending.access.address) / 16;
    race->begin(access.store ? TensorRace::kStore : TensorRace::kLoad, op,
                __builtin_frame_address(0));
    race->touch(*race,
                {static_cast<uint8_t>((access.lanes == 32 ? 3 : 1) << half),
                 column_of(access.address), access.columns()},
                access.store);
  }
  const uint32_t count = access.registers();
  const bool late = block.launch->options.late;
  for (uint32_t i = 0; i < kWarp; ++i) {
    if (access.store) {
      pending.values.insert(pending.values.end(), registers[i], registers[i] + count);
    } else {
      pending.target[i] = registers[i];
      if (late) memset(registers[i], 0xff, count * 4);
    }
  }
  if (late) {
    memory.accesses[current->warp->index].push_back(std::move(pending));
  } else {
    perform(memory, pending);
  }
}

void vgpu_tensor_wait(bool store) {
  Block& block = *current->block;
  if (!block.tensor) return;
  if (TensorRace* race = block.tensor->race.get()) race->wait(store);
  auto& queue = block.tensor->accesses[current->warp->index];
  const auto mine = [&](const PendingAccess& p) { return p.access.store == store; };
  for (const PendingAccess& pending : queue)
    if (mine(pending)) perform(*block.tensor, pending);
  queue.erase(std::remove_if(queue.begin(), queue.end(), mine), queue.end());
}

void vgpu_tensor_fence(bool after) {
  if (TensorRace* race = race_of(*current->block)) race->fence(after);
}
