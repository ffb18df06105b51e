// Which memory a thread may touch, and work done after it was issued.
#include <algorithm>

#include "machine.h"

namespace vgpu {

namespace {

// "out of bounds: <what> at 0x..; nearest is argument .."
[[noreturn]] void out_of_bounds(const Launch& launch, uintptr_t at, const char* what) {
  const Range* nearest = nullptr;
  uintptr_t distance = ~uintptr_t(0);
  for (const Range& range : launch.ranges) {
    const uintptr_t d = at < range.begin ? range.begin - at : at >= range.end ? at - range.end : 0;
    if (d < distance) distance = d, nearest = &range;
  }
  const auto address = static_cast<size_t>(at);
  if (!nearest) vgpu_fail("out of bounds: %s at %#zx, no tensor argument is near", what, address);
  vgpu_fail("out of bounds: %s at %#zx; nearest is argument '%s' of %zu bytes, at byte offset %td "
            "of it",
            what, address, nearest->name.c_str(), static_cast<size_t>(nearest->end - nearest->begin),
            static_cast<ptrdiff_t>(at - nearest->begin));
}

void check_range(Block& block, uintptr_t at, uint32_t bytes, bool write) {
  const Launch& launch = *block.launch;
  const auto holds = [&](const Range& r) { return at >= r.begin && at + bytes <= r.end; };
  if (block.last_range >= launch.ranges.size() || !holds(launch.ranges[block.last_range])) {
    const auto after = std::upper_bound(launch.ranges.begin(), launch.ranges.end(), at,
                                        [](uintptr_t a, const Range& r) { return a < r.begin; });
    if (after == launch.ranges.begin() || !holds(*(after - 1))) {
      char what[64];
      snprintf(what, sizeof what, "%s of %u bytes", write ? "write" : "read", bytes);
      out_of_bounds(launch, at, what);
    }
    block.last_range = static_cast<size_t>(after - 1 - launch.ranges.begin());
  }
  const Range& range = launch.ranges[block.last_range];
  if (write && !range.writable)
    vgpu_fail("write of %u bytes to argument '%s', which the kernel declares const, at byte offset "
              "%zu",
              bytes, range.name.c_str(), static_cast<size_t>(at - range.begin));
}

// True if the address is in the module's shared memory; fails if it is in an unused part of it.
bool check_segment(const Block& block, uintptr_t at, uint32_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(block.segment_begin);
  if (at < begin || at >= reinterpret_cast<uintptr_t>(block.segment_end)) return false;
  const auto shared = reinterpret_cast<uintptr_t>(block.shared);
  if (shared && at >= shared && at < shared + kSharedCapacity &&
      at + bytes > shared + block.launch->dynamic_shared)
    vgpu_fail("out of bounds: access of %u bytes at offset %zu of the block's dynamic shared "
              "memory, which has %u",
              bytes, static_cast<size_t>(at - shared), block.launch->dynamic_shared);
  return true;
}

void check_alignment(uintptr_t at, uint32_t bytes) {
  if (at % bytes) vgpu_fail("misaligned: access of %u bytes at %#zx", bytes, static_cast<size_t>(at));
}

void perform(const Copy& copy) {
  memcpy(copy.target, copy.source, copy.valid);
  memset(static_cast<char*>(copy.target) + copy.valid, 0, copy.bytes - copy.valid);
}

}  // namespace

void fail_unmapped(const Launch& launch, uintptr_t at) {
  out_of_bounds(launch, at, "access to unmapped memory");
}

void CopyQueue::perform_until(uint64_t count) {
  const uint64_t before = issued - copies.size();
  for (uint64_t i = before; i < count; ++i) {
    Copy& copy = copies[static_cast<size_t>(i - before)];
    perform(copy);
    copy.bytes = copy.valid = 0;
  }
}

void Block::finish_copies(CopyQueue& queue, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) perform(queue.copies[i]);
  queue.copies.erase(queue.copies.begin(), queue.copies.begin() + count);
}

}  // namespace vgpu

using namespace vgpu;

void vgpu_check_global(const void* address, uint32_t bytes, bool write) {
  Block& block = *current->block;
  const auto at = reinterpret_cast<uintptr_t>(address);
  check_alignment(at, bytes);
  if (!block.launch->ranges.empty()) check_range(block, at, bytes, write);
}

void vgpu_check_shared(const void* address, uint32_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  check_alignment(at, bytes);
  if (!check_segment(*current->block, at, bytes))
    vgpu_fail("access of %u bytes at %#zx, which is not shared memory", bytes,
              static_cast<size_t>(at));
}

void vgpu_check(const void* address, uint32_t bytes, bool write, bool aligned) {
  Block& block = *current->block;
  if (address >= block.stacks_begin && address < block.stacks_end) return;
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (aligned) check_alignment(at, bytes);
  if (check_segment(block, at, bytes)) return;
  const LoadedModule& module = *block.launch->module;
  if (!write && at >= module.image_begin && at < module.image_end) return;
  if (!block.launch->ranges.empty()) check_range(block, at, bytes, write);
}

void vgpu_copy(void* target, const void* source, uint32_t bytes, uint32_t valid) {
  Block& block = *current->block;
  vgpu_check_shared(target, bytes);
  if (valid) vgpu_check_global(source, valid, false);
  const Copy copy{target, source, bytes, valid};
  if (block.launch->options.late) {
    CopyQueue& queue = block.copies[current->index];
    queue.copies.push_back(copy);
    ++queue.issued;
  } else {
    perform(copy);
  }
}

// Closes the open group of a queue that holds `total` entries.
template <class Queue>
static void commit(Queue& queue, size_t total) {
  queue.groups.push_back(static_cast<uint32_t>(total) - queue.committed);
  queue.committed = static_cast<uint32_t>(total);
}

// Forgets all but the newest `pending` groups; returns how many entries they had.
template <class Queue>
static uint32_t retire(Queue& queue, size_t pending) {
  uint32_t count = 0;
  const size_t done = queue.groups.size() > pending ? queue.groups.size() - pending : 0;
  for (size_t g = 0; g < done; ++g) count += queue.groups[g];
  queue.groups.erase(queue.groups.begin(), queue.groups.begin() + static_cast<ptrdiff_t>(done));
  queue.committed -= count;
  return count;
}

void vgpu_copy_commit() {
  CopyQueue& queue = current->block->copies[current->index];
  commit(queue, queue.copies.size());
}

void vgpu_copy_wait(int pending) {
  Block& block = *current->block;
  CopyQueue& queue = block.copies[current->index];
  if (pending < 0) {
    retire(queue, 0);
    block.finish_copies(queue, static_cast<uint32_t>(queue.copies.size()));
  } else {
    block.finish_copies(queue, retire(queue, static_cast<size_t>(pending)));
  }
}

uint32_t vgpu_shared_address(const void* pointer) {
  const Block& block = *current->block;
  if (pointer < block.segment_begin || pointer >= block.segment_end)
    vgpu_fail("%p is not in the block's shared memory", pointer);
  const auto window = reinterpret_cast<uintptr_t>(block.segment_begin) / 1024 * 1024;
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pointer) - window);
}

void* vgpu_shared_pointer(uint32_t address, uint32_t bytes) {
  const Block& block = *current->block;
  const auto window = reinterpret_cast<uintptr_t>(block.segment_begin) / 1024 * 1024;
  auto* pointer = reinterpret_cast<void*>(window + address);
  vgpu_check_shared(pointer, bytes);
  return pointer;
}

void vgpu_defer(void (*perform)(const void* record), const void* record, size_t bytes) {
  Block& block = *current->block;
  if (!block.launch->options.late) return perform(record);
  const char* begin = static_cast<const char*>(record);
  block.deferred[current->warp->index].items.push_back({perform, {begin, begin + bytes}});
}

void vgpu_defer_commit() {
  DeferredQueue& queue = current->block->deferred[current->warp->index];
  commit(queue, queue.items.size());
}

void vgpu_defer_wait(int pending) {
  DeferredQueue& queue = current->block->deferred[current->warp->index];
  const uint32_t count = retire(queue, static_cast<size_t>(pending));
  for (uint32_t i = 0; i < count; ++i) queue.items[i].perform(queue.items[i].record.data());
  queue.items.erase(queue.items.begin(), queue.items.begin() + count);
}

void vgpu_async(const char* what, uint32_t stream, void (*perform)(const void* record),
                const void* record, size_t bytes) {
  Block& block = *current->block;
  if (!block.launch->options.late) return perform(record);
  const char* begin = static_cast<const char*>(record);
  block.in_flight.push_back({what, stream, perform, {begin, begin + bytes}, current});
}
