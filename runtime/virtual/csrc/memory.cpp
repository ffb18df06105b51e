// Which memory a thread may touch, and work done after it was issued.
#include <algorithm>

#include "counters.h"
#include "race.h"

namespace vgpu {

namespace {

// "<what> at 0x..; nearest is argument .."
std::string out_of_bounds(const Launch& launch, uintptr_t at, const std::string& what) {
  const Range* nearest = nullptr;
  uintptr_t distance = ~uintptr_t(0);
  for (const Range& range : launch.ranges) {
    const uintptr_t d = at < range.begin ? range.begin - at : at >= range.end ? at - range.end : 0;
    if (d < distance) distance = d, nearest = &range;
  }
  char words[512];
  const auto address = static_cast<size_t>(at);
  if (!nearest) {
    snprintf(words, sizeof words, "out of bounds: %s at %#zx, no tensor argument is near",
             what.c_str(), address);
  } else {
    snprintf(words, sizeof words,
             "out of bounds: %s at %#zx; nearest is argument '%s' of %zu bytes, at byte offset %td "
             "of it",
             what.c_str(), address, nearest->name.c_str(),
             static_cast<size_t>(nearest->end - nearest->begin),
             static_cast<ptrdiff_t>(at - nearest->begin));
  }
  return words;
}

const char* verb(Use use) { return use.write ? "write" : "read"; }
Use use_of(bool write) { return write ? kWrite : kRead; }

// What a check was asked about, and by whom: `frame` is that of the library's entry.
struct Access {
  Block& block;
  uintptr_t at;
  uint32_t bytes;
  Use use;
  const void* frame;

  [[noreturn]] void fail(const std::string& words) const { fail_at(site_of(block, frame), words); }
  void trace(Region* region) const {
    if (block.race && region)
      block.race->access(*region, at, bytes, use, site_of(block, frame));
  }
  void count(Space space) const {
    if (block.counter) block.counter->access(space, at, bytes, use, frame);
  }
};

// Fails unless one argument holds all of it.
const Range& check_range(const Access& a) {
  Block& block = a.block;
  const Launch& launch = *block.launch;
  const auto holds = [&](const Range& r) { return a.at >= r.begin && a.at + a.bytes <= r.end; };
  if (block.last_range >= launch.ranges.size() || !holds(launch.ranges[block.last_range])) {
    const auto after = std::upper_bound(launch.ranges.begin(), launch.ranges.end(), a.at,
                                        [](uintptr_t at, const Range& r) { return at < r.begin; });
    if (after == launch.ranges.begin() || !holds(*(after - 1)))
      a.fail(out_of_bounds(launch, a.at,
                           verb(a.use) + (" of " + std::to_string(a.bytes)) + " bytes"));
    block.last_range = static_cast<size_t>(after - 1 - launch.ranges.begin());
  }
  const Range& range = launch.ranges[block.last_range];
  if (a.use.write && !range.writable)
    a.fail("const write: write of " + std::to_string(a.bytes) + " bytes to argument '" +
           range.name + "', which the kernel declares const, at byte offset " +
           std::to_string(a.at - range.begin));
  return range;
}

// The block in whose shared memory the address is, this or another of its cluster, null if none;
// fails if it is in an unused part of it.
Block* check_segment(const Access& a) {
  Block* const owner = a.block.owner_of(reinterpret_cast<const void*>(a.at));
  if (!owner) return nullptr;
  const Block& block = *owner;
  const auto end = reinterpret_cast<uintptr_t>(block.segment_end);
  const auto shared = reinterpret_cast<uintptr_t>(block.shared);
  const uint32_t size = block.launch->dynamic_shared;
  if (shared && a.at >= shared && a.at < shared + kSharedCapacity && a.at + a.bytes > shared + size)
    a.fail("out of bounds: " + (verb(a.use) + (" of " + std::to_string(a.bytes))) +
           " bytes at offset " + std::to_string(a.at - shared) +
           " of the block's dynamic shared memory, which has " + std::to_string(size));
  if (a.at + a.bytes > end)
    a.fail("out of bounds: access across the end of the block's static shared memory");
  return owner;
}

void check_alignment(const Access& a) {
  if ((a.at & (a.bytes - 1)) == 0) return;  // sizes are powers of two; a division would cost more
  char words[64];
  snprintf(words, sizeof words, "misaligned: access of %u bytes at %#zx", a.bytes,
           static_cast<size_t>(a.at));
  a.fail(words);
}

void perform(void* target, const void* source, uint32_t bytes, uint32_t valid) {
  if (valid == 16) {  // nearly always: two moves instead of two calls
    memcpy(target, source, 16);
    return;
  }
  memcpy(target, source, valid);
  memset(static_cast<char*>(target) + valid, 0, bytes - valid);
}

}  // namespace

void check_bulk(const void* address, uint32_t bytes, bool shared, bool write, const void* frame) {
  const Access a{*current->block, reinterpret_cast<uintptr_t>(address), bytes, use_of(write), frame};
  if (!shared) {
    if (!a.block.launch->ranges.empty()) check_range(a);
  } else if (!check_segment(a)) {
    a.fail("out of bounds: bulk copy to or from what is not shared memory");
  }
}

void trace_bulk(const void* address, uint32_t bytes, bool shared, bool write) {
  Block& block = *current->block;
  const Access a{block, reinterpret_cast<uintptr_t>(address), bytes, use_of(write), nullptr};
  Region* region = shared ? check_segment(a)->shared_shadow : check_range(a).shadow;
  if (region) block.race->access(*region, a.at, bytes, a.use, block.race->acting_site());
}

void Block::start_async(const char* what, uint32_t stream, std::function<void()> perform,
                        const void* frame) {
  AsyncItem item{what, stream, std::move(perform), current, {}, 0};
  if (race) {
    // What a warp's matrix unit does in order is one engine's: its last step brings news of all.
    const bool matrix = stream >= kMaxThreads && stream != kUnordered;
    item.strand = race->issue(matrix ? race->matrix_engine(*current->warp) : race->async_engine());
    item.site = site_of(*this, frame);
  }
  if (launch->options.late) {
    in_flight.push_back(std::move(item));
  } else {
    perform_async(item);
  }
}

void fail_unmapped(const Launch& launch, uintptr_t at, uint32_t site) {
  fail_at(site, out_of_bounds(launch, at, "access to unmapped memory"));
}

void CopyQueue::perform_until(uint64_t count) {
  const uint64_t before = issued - copies.size();
  for (uint64_t i = before; i < count; ++i) {
    Copy& copy = copies[static_cast<size_t>(i - before)];
    if (!copy.done) perform(copy.target, copy.source, copy.bytes, copy.valid);
    copy.done = true;
  }
}

void Block::finish_copies(CopyQueue& queue, uint32_t count) {
  const uint64_t until = queue.issued - queue.copies.size() + count;
  queue.perform_until(until);
  if (race && count) race->await(race->copy_engine(*current), static_cast<uint32_t>(until));
  queue.copies.erase(queue.copies.begin(), queue.copies.begin() + count);
}

}  // namespace vgpu

using namespace vgpu;

namespace {

Access access_of(const void* address, uint32_t bytes, Use use, const void* frame) {
  Block& block = *current->block;
  const Access access{block, reinterpret_cast<uintptr_t>(address), bytes, use, frame};
  if (++block.steps > block.launch->options.steps)
    access.fail("endless: no end after " + std::to_string(block.launch->options.steps) +
                " memory accesses of one block");
  if (block.steps % 1024 == 0) stop_if_asked();
  return access;
}

void check_global(const Access& a) {
  check_alignment(a);
  if (!a.block.launch->ranges.empty()) a.trace(check_range(a).shadow);
}

void check_shared(const Access& a) {
  check_alignment(a);
  const Block* const owner = check_segment(a);
  if (!owner) {
    char words[96];
    snprintf(words, sizeof words,
             "out of bounds: access of %u bytes at %#zx, which is not shared memory", a.bytes,
             static_cast<size_t>(a.at));
    a.fail(words);
  }
  a.trace(owner->shared_shadow);
}

// True for most of what kernels do right: the checks in full have nothing to add.
bool plain_shared(const Block& block, const void* address, uint32_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto offset = at - reinterpret_cast<uintptr_t>(block.shared);
  return (at & (bytes - 1)) == 0 && block.shared && offset < block.launch->dynamic_shared &&
         offset + bytes <= block.launch->dynamic_shared;
}

bool plain_read(const Block& block, const void* address, uint32_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const std::vector<Range>& ranges = block.launch->ranges;
  if (at & (bytes - 1)) return false;
  if (block.last_range >= ranges.size()) return ranges.empty();
  const Range& range = ranges[block.last_range];
  return at >= range.begin && at + bytes <= range.end;
}

// Counts checks that found nothing; false, and nothing counted, if somebody wants to hear of each.
bool pass(Block& block, uint32_t checks) {
  const uint64_t steps = block.steps + checks;
  if (block.race || block.counter || steps > block.launch->options.steps) return false;
  if (steps / 1024 != block.steps / 1024) stop_if_asked();
  block.steps = steps;
  return true;
}

// Registers that a wgmma works on belong to it until it is waited for: what it writes altogether,
// what it reads may be read.
void check_registers(const Access& a) {
  const Thread& me = *current;
  for (const DeferredQueue::Item& item : a.block.deferred[me.warp->index].items) {
    if (!item.registers) continue;
    const Registers& registers = *item.registers;
    const auto touches = [&](const void* array, uint32_t bytes) {
      const auto begin = reinterpret_cast<uintptr_t>(array);
      return a.at < begin + bytes && begin < a.at + a.bytes;
    };
    const bool written = touches(registers.written[me.lane], registers.written_bytes);
    if (!written && !(a.use.write && touches(registers.read[me.lane], registers.read_bytes)))
      continue;
    Finding found;
    found.kind = "race";
    found.kernel = a.block.launch->kernel->name;
    found.words = std::string(verb(a.use)) + " of " + std::to_string(a.bytes) +
                  " bytes of registers that a wgmma " + (written ? "writes" : "reads") +
                  ", before wgmma.wait_group";
    found.block = found.other_block = a.block.id;
    found.thread = found.other_thread = me.id;
    found.site = site_of(a.block, a.frame);
    found.has_other = found.other_thread_known = true;
    found.other = written ? "wgmma writes its accumulators" : "wgmma reads its operand";
    found.other_site = item.site;
    a.block.launch->sanitizer->report(std::move(found));
    return;
  }
}

// Returns which memory it is.
Space check_any(const Access& a, bool aligned) {
  Block& block = a.block;
  const auto* address = reinterpret_cast<const char*>(a.at);
  if (address >= block.stacks_begin && address < block.stacks_end) {
    if (block.race) check_registers(a);
    return Space::kPrivate;
  }
  if (aligned) check_alignment(a);
  if (const Block* const owner = check_segment(a)) {
    a.trace(owner->shared_shadow);
    return Space::kShared;
  }
  const LoadedModule& module = *block.launch->module;
  if (!a.use.write && a.at >= module.image_begin && a.at < module.image_end)
    return Space::kPrivate;
  if (!block.launch->ranges.empty()) a.trace(check_range(a).shadow);
  return Space::kGlobal;
}

}  // namespace

void vgpu_check_global(const void* address, uint32_t bytes, bool write) {
  const Access a = access_of(address, bytes, use_of(write), __builtin_frame_address(0));
  check_global(a);
  a.count(Space::kGlobal);
}

void vgpu_check_shared(const void* address, uint32_t bytes, bool write) {
  const Access a = access_of(address, bytes, use_of(write), __builtin_frame_address(0));
  check_shared(a);
  a.count(Space::kShared);
}

void vgpu_check_rows(void* const* rows, int matrices, bool write) {
  Block& block = *current->block;
  bool plain = true;
  for (int i = 0; i < 8 * matrices; ++i) plain &= plain_shared(block, rows[i], 16);
  if (plain && pass(block, static_cast<uint32_t>(8 * matrices))) return;
  for (int i = 0; i < 8 * matrices; ++i)
    check_shared(access_of(rows[i], 16, use_of(write), __builtin_frame_address(0)));
  for (int m = 0; m < matrices && block.counter; ++m) block.counter->rows(rows + 8 * m, write);
}

void vgpu_check(const void* address, uint32_t bytes, bool write, bool aligned) {
  const Access a = access_of(address, bytes, use_of(write), __builtin_frame_address(0));
  a.count(check_any(a, aligned));
}

void vgpu_check_atomic(const void* address, uint32_t bytes, bool read, bool write, int order) {
  const Access a = access_of(address, bytes, {read, write, true}, __builtin_frame_address(0));
  const Space space = check_any(a, true);
  if (order < 0) return;
  a.count(space);
  if (!a.block.race) return;
  const bool both = order == __ATOMIC_ACQ_REL || order == __ATOMIC_SEQ_CST;
  a.block.race->atomic(a.at, both || order == __ATOMIC_ACQUIRE || order == __ATOMIC_CONSUME,
                       both || order == __ATOMIC_RELEASE);
}

void vgpu_fence() {
  Block& block = *current->block;
  if (block.race) block.race->fence();
}

void vgpu_copy(void* target, const void* source, uint32_t bytes, uint32_t valid) {
  const void* frame = __builtin_frame_address(0);
  Block& block = *current->block;
  Race* race = block.race;
  const bool late = block.launch->options.late;
  const bool plain = plain_shared(block, target, bytes) &&
                     (valid ? plain_read(block, source, valid) : true) && pass(block, 1 + !!valid);
  if (!plain) {
    // The engine touches memory at some time between now and the end of the wait.
    Strand engine;
    if (race) engine = race->issue(race->copy_engine(*current));
    const Race::Acting as(race, &engine, race ? site_of(block, frame) : 0, false);
    const Access write = access_of(target, bytes, kWrite, frame);
    check_shared(write);
    write.count(Space::kShared);
    if (valid) {
      const Access read = access_of(source, valid, kRead, frame);
      check_global(read);
      read.count(Space::kGlobal);
    }
  }
  if (block.counter) block.counter->totals.copied_bytes += bytes;
  if (!late) perform(target, source, bytes, valid);
  if (!late && !race) return;
  CopyQueue& queue = block.copies[current->index];
  // In place, field by field: a copy of a struct just written waits for the writes.
  Copy& copy = queue.copies.emplace_back();
  copy.target = target;
  copy.source = source;
  copy.bytes = static_cast<uint16_t>(bytes);
  copy.valid = static_cast<uint16_t>(valid);
  copy.done = !late;
  ++queue.issued;
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

// The matrix unit reads its operands by the async proxy, as the strand it was issued as.
static void run_deferred(Block& block, DeferredQueue::Item& item) {
  const Race::Acting as(block.race, &item.strand, item.site, true);
  item.perform(item.record.data());
}

uint32_t vgpu_shared_address(const void* pointer) {
  const Block& block = *current->block;
  if (pointer < block.segment_begin || pointer >= block.segment_end)
    vgpu_fail("%p is not in the block's shared memory", pointer);
  const auto window = reinterpret_cast<uintptr_t>(block.segment_begin) / 1024 * 1024;
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pointer) - window);
}

void* vgpu::shared_pointer(const Block& owner, uint32_t address, uint32_t bytes,
                           const void* frame) {
  const auto window = reinterpret_cast<uintptr_t>(owner.segment_begin) / 1024 * 1024;
  auto* pointer = reinterpret_cast<void*>(window + address);
  check_shared(access_of(pointer, bytes, kRead, frame));
  return pointer;
}

void* vgpu_shared_pointer(uint32_t address, uint32_t bytes) {
  return shared_pointer(*current->block, address, bytes, __builtin_frame_address(0));
}

void vgpu_defer(void (*perform)(const void* record), const void* record, size_t bytes,
                const Registers* registers) {
  Block& block = *current->block;
  const Warp& warp = *current->warp;
  const char* begin = static_cast<const char*>(record);
  DeferredQueue::Item item{perform, {begin, begin + bytes}, {}, 0, !block.launch->options.late, {}};
  if (block.race) {
    item.strand = block.race->issue(block.race->matrix_engine(warp));
    item.site = site_of(block, __builtin_frame_address(0));
    if (registers) item.registers = std::make_unique<Registers>(*registers);
  }
  if (item.done) run_deferred(block, item);
  if (!item.done || block.race) block.deferred[warp.index].items.push_back(std::move(item));
}

void vgpu_defer_commit() {
  DeferredQueue& queue = current->block->deferred[current->warp->index];
  commit(queue, queue.items.size());
}

void vgpu_defer_wait(int pending) {
  Block& block = *current->block;
  DeferredQueue& queue = block.deferred[current->warp->index];
  const uint32_t count = retire(queue, static_cast<size_t>(pending));
  for (uint32_t i = 0; i < count; ++i) {
    DeferredQueue::Item& item = queue.items[i];
    if (!item.done) run_deferred(block, item);
    if (block.race) block.race->await(item.strand.component, item.strand.step);
  }
  queue.items.erase(queue.items.begin(), queue.items.begin() + count);
}

void vgpu_async(const char* what, uint32_t stream, void (*perform)(const void* record),
                const void* record, size_t bytes) {
  const char* begin = static_cast<const char*>(record);
  current->block->start_async(
      what, stream,
      [perform, copy = std::vector<char>(begin, begin + bytes)] { perform(copy.data()); },
      __builtin_frame_address(0));
}
