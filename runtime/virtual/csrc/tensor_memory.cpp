// Allocation of tensor memory, loads and stores, and the queues of asynchronous operations.
#include <algorithm>

#include "machine.h"
#include "vgpu/mbarrier.h"

namespace vgpu {

namespace {

TensorMemory& memory_of(Block& block) {
  if (!block.tensor) block.tensor = std::make_unique<TensorMemory>();
  return *block.tensor;
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

// tcgen05.cp.32x128b.warpx4: 32 rows of 16 bytes, the same in each quarter of the lanes.
void perform_copy(TensorMemory& memory, uint64_t source, uint32_t address) {
  const OperandLayout layout = tensor_operand(source, "tcgen05.cp");
  for (uint32_t lane = 0; lane < kTensorLanes; ++lane)
    memcpy(&memory.cells[lane][column_of(address)], layout.chunk(false, lane % 32, 0), 16);
}

struct CopyRecord {
  uint64_t source;
  uint32_t address;
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

void require_single_cta(bool pair) {
  if (pair) vgpu_fail("the virtual GPU does not model tcgen05 with cta_group::2 yet");
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
  for (auto& queue : accesses) queue.clear();
  std::fill(std::begin(in_flight), std::end(in_flight), 0);
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
  require_single_cta(pair);
  require_columns_of_allocation(columns);
  vgpu_check_shared(result, 4);
  Block& block = *current->block;
  TensorMemory& memory = memory_of(block);
  const auto count = static_cast<uint32_t>(columns);
  auto& allocations = memory.allocations;
  const auto overlaps = [count](uint32_t first, const TensorMemory::Allocation& a) {
    return first < a.first + a.columns && a.first < first + count;
  };
  // Seeded runs also hand out the other end: an address is not always 0.
  for (uint32_t i = 0; i < kTensorColumns / count; ++i) {
    const uint32_t first = (block.lanes_descend ? kTensorColumns / count - 1 - i : i) * count;
    const auto here = [&](const auto& a) { return overlaps(first, a); };
    if (std::any_of(allocations.begin(), allocations.end(),
                    [&](const auto& a) { return !a.freed_by && here(a); }))
      continue;
    allocations.erase(std::remove_if(allocations.begin(), allocations.end(), here),
                      allocations.end());
    allocations.push_back({first, count, nullptr});
    for (auto& row : memory.cells) memset(row + first, 0xff, count * 4);
    memcpy(result, &first, 4);
    return;
  }
  uint32_t taken = 0;
  for (const auto& a : allocations) taken += a.freed_by ? 0 : a.columns;
  vgpu_fail("tcgen05.alloc of %d columns waits for ever: the block already holds %u of the 512 "
            "columns of tensor memory",
            columns, taken);
}

void vgpu_tensor_deallocate(uint32_t address, int columns, bool pair) {
  require_single_cta(pair);
  require_columns_of_allocation(columns);
  const Block& block = *current->block;
  TensorMemory& memory = memory_of(*current->block);
  // Plain runs allow what other warps still do, see require_columns.
  const bool checked = block.launch->module->table->checked;
  for (uint32_t w = 0; w < block.warp_count; ++w)
    if ((checked || w == current->warp->index) &&
        (memory.in_flight[w] || !memory.accesses[w].empty()))
      vgpu_fail("tcgen05.dealloc while operations of warp %u on tensor memory are not known to be "
                "complete",
                w);
  for (auto& a : memory.allocations)
    if (!a.freed_by && a.first == address && a.columns == static_cast<uint32_t>(columns)) {
      a.freed_by = current->warp;
      return;
    }
  vgpu_fail("tcgen05.dealloc of %d columns at %#x: no allocation has that address and size", columns,
            address);
}

void vgpu_tensor_mma(const TensorMma& mma) {
  require_single_cta(mma.pair);
  TensorMemory& memory = memory_of(*current->block);
  check_mma(memory, mma);
  ++memory.in_flight[current->warp->index];
  issue("tcgen05.mma", mma, [](const void* record) {
    TensorMemory& memory = *current->block->tensor;
    perform_mma(memory, *static_cast<const TensorMma*>(record));
    --memory.in_flight[current->warp->index];
  });
}

void vgpu_tensor_copy(uint64_t source, uint32_t address, bool pair) {
  require_single_cta(pair);
  TensorMemory& memory = memory_of(*current->block);
  if (lane_of(address))
    vgpu_fail("tcgen05.cp writes all lanes: its address must be of lane 0, got lane %u",
              lane_of(address));
  memory.require_columns("tcgen05.cp", column_of(address), 4);
  tensor_operand(source, "tcgen05.cp");
  ++memory.in_flight[current->warp->index];
  issue("tcgen05.cp", CopyRecord{source, address}, [](const void* record) {
    TensorMemory& memory = *current->block->tensor;
    const auto& copy = *static_cast<const CopyRecord*>(record);
    perform_copy(memory, copy.source, copy.address);
    --memory.in_flight[current->warp->index];
  });
}

void vgpu_tensor_commit(const void* mbarrier, bool pair, uint32_t) {
  require_single_cta(pair);
  uint64_t* const barrier = static_cast<uint64_t*>(const_cast<void*>(mbarrier));
  vgpu_check_shared(barrier, 8);
  issue("tcgen05.commit", barrier, [](const void* record) {
    vgpu_mbarrier_arrive(*static_cast<uint64_t* const*>(record), 0);
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
  auto& queue = block.tensor->accesses[current->warp->index];
  const auto mine = [&](const PendingAccess& p) { return p.access.store == store; };
  for (const PendingAccess& pending : queue)
    if (mine(pending)) perform(*block.tensor, pending);
  queue.erase(std::remove_if(queue.begin(), queue.end(), mine), queue.end());
}
