// Tensor memory of one block and what is in flight on it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "tensor_race.h"
#include "vgpu/operand.h"
#include "vgpu/tensor_memory.h"

namespace vgpu {

struct Block;

struct PendingAccess {
  TensorAccess access;
  uint32_t* target[kWarp];       // of loads
  std::vector<uint32_t> values;  // of stores: those of lane 0, lane 1, ...
};

// What a warp has asked for and the other block of its pair has not yet: cta_group::2 allocates and
// frees in both at once.
struct PairRequest {
  Thread* thread;
  bool allocate;
  uint32_t columns, address;  // the address is the outcome of an allocation
  bool done = false;
};

struct TensorMemory {
  struct Allocation {
    uint32_t first, columns;
    const Warp* freed_by;  // null while it lives
  };

  uint32_t cells[kTensorLanes][kTensorColumns];
  alignas(64) char scratch[48 << 10];  // operands of a multiply, decoded
  std::vector<Allocation> allocations;  // freed ones until their columns are allocated again
  std::vector<PendingAccess> accesses[kMaxThreads / kWarp];  // by warp, oldest first
  uint32_t in_flight[kMaxThreads / kWarp] = {};              // multiplies and copies of a warp

  PairRequest* waiting = nullptr;
  int group = 0;  // the cta_group of its instructions, 0 before the first
  std::unique_ptr<TensorRace> race;  // of a sanitize session

  // Fails unless the columns lie in one allocation.
  void require_columns(const char* op, uint32_t first, uint32_t count) const;
  void clear();
};

// The blocks an instruction works on: its own or, with cta_group::2, the even one of a pair and the
// odd one.
struct TensorGroup {
  uint32_t size = 0;
  Block* block[2];
  TensorMemory* memory[2];

  // Tells the race checker what the instruction that has begun touches, in each block alike.
  void touch(const TensorRace::Area& area, bool write) const;
};

// Layout of an operand from a tcgen05 shared memory descriptor; fails if a field is invalid.
OperandLayout tensor_operand(uint64_t descriptor, const char* what);
// Fails if the instruction descriptor asks for what the hardware or the virtual GPU lacks.
void check_mma(const TensorGroup& group, const TensorMma& mma);
void perform_mma(const TensorGroup& group, const TensorMma& mma);

inline uint32_t lane_of(uint32_t address) { return address >> 16; }
inline uint32_t column_of(uint32_t address) { return address & 0xffff; }

}  // namespace vgpu
