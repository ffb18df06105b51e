// A bulk copy under way.
#pragma once
#include <cstdint>
#include <vector>

#include "clock.h"
#include "vgpu/tma.h"

namespace vgpu {

// A run of bytes that moves, at `offset` of the box as it lies in shared memory before swizzling.
struct Piece {
  char* global;
  uint32_t offset, bytes;
};

struct Box {
  char* shared;
  uint32_t bytes = 0;
  uint32_t swizzle = 0;  // bytes of a swizzled row; 0 for none
  uint8_t fill = 0;      // of what lies outside the tensor
  uint8_t type;          // CUtensorMapDataType
  std::vector<Piece> pieces;
};

// Reading shared memory and writing global memory are two events: there are two ways to wait.
struct BulkStore {
  Box box;
  Reduction reduction;
  Strand reader, writer;  // of the race checker
  std::vector<char> flat;
  bool was_read = false, finished = false;

  void read();
  void finish();
};

// Bulk stores of one thread, oldest first.
struct StoreQueue {
  std::vector<BulkStore> stores;
  std::vector<uint32_t> groups;  // stores in each committed group
  uint32_t committed = 0;        // stores in groups
  uint32_t waited = 0;           // oldest stores known to have read their source
};

// Closes the open group of a queue that holds `total` entries.
template <class Queue>
void commit(Queue& queue, size_t total) {
  queue.groups.push_back(static_cast<uint32_t>(total) - queue.committed);
  queue.committed = static_cast<uint32_t>(total);
}

// How many entries all but the newest `pending` groups have.
template <class Queue>
uint32_t older(const Queue& queue, size_t pending) {
  uint32_t count = 0;
  for (size_t g = 0; g + pending < queue.groups.size(); ++g) count += queue.groups[g];
  return count;
}

// Forgets all but the newest `pending` groups; returns how many entries they had.
template <class Queue>
uint32_t retire(Queue& queue, size_t pending) {
  const uint32_t count = older(queue, pending);
  const size_t done = queue.groups.size() > pending ? queue.groups.size() - pending : 0;
  queue.groups.erase(queue.groups.begin(), queue.groups.begin() + static_cast<ptrdiff_t>(done));
  queue.committed -= count;
  return count;
}

}  // namespace vgpu
