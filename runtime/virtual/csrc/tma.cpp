// Bulk copies: which bytes move, when, and what they signal.
#include <algorithm>

#include "counters.h"
#include "race.h"
#include "tensor_map.h"
#include "vgpu/cluster.h"
#include "vgpu/numbers.h"

namespace vgpu {

namespace {

// By CUtensorMapDataType; what the plain copies need of it.
constexpr uint8_t kFloat32 = 7;

const TensorMap& read_map(const CUtensorMap* map) {
  if (reinterpret_cast<uintptr_t>(map) % 64) vgpu_fail("tensor map at an address not a multiple of 64");
  const auto& what = *reinterpret_cast<const TensorMap*>(map);
  if (what.mark != kTensorMapMark) vgpu_fail("tensor map that was never encoded");
  return what;
}

// Calls visit(row) for each row of the box in the order they lie in shared memory: its first
// element's address, null where the tensor ends.
template <class Visit>
void visit_tile(const TensorMap& map, const int32_t* at, Visit visit) {
  uint32_t step[kMaxRank] = {};
  for (;;) {
    int64_t offset = 0;
    bool inside = true;
    for (uint32_t i = 1; i < map.rank; ++i) {
      const int64_t index = int64_t(at[i]) + step[i];
      inside = inside && index >= 0 && index <= map.extent[i];
      offset += index * static_cast<int64_t>(map.stride[i - 1]);
    }
    visit(inside ? reinterpret_cast<char*>(map.address) + offset : nullptr);
    uint32_t i = 1;
    for (; i < map.rank; ++i) {
      step[i] += map.step[i];
      if (step[i] < map.box[i]) break;
      step[i] = 0;
    }
    if (i >= map.rank) return;
  }
}

// Four rows of a matrix, by number.
template <class Visit>
void visit_rows(const TensorMap& map, const int32_t* at, Visit visit) {
  for (int i = 1; i <= 4; ++i) {
    const bool inside = at[i] >= 0 && uint32_t(at[i]) <= map.extent[1];
    visit(inside ? reinterpret_cast<char*>(map.address) + int64_t(at[i]) * int64_t(map.stride[0])
                 : nullptr);
  }
}

// Pixels of an image: through the bounding box along W, then H, D and the images, each read at the
// filter's offset.
template <class Visit>
void visit_pixels(const TensorMap& map, const TmaCoordinates& where, Visit visit) {
  const uint32_t spatial = map.rank - 2u;
  int64_t base[kMaxRank];
  for (uint32_t i = 1; i < map.rank; ++i) base[i] = where.at[i];
  for (uint32_t pixel = 0; pixel < map.box[1]; ++pixel) {
    int64_t offset = 0;
    bool inside = true;
    for (uint32_t i = 1; i < map.rank; ++i) {
      const int64_t index = base[i] + (i <= spatial ? where.offset[i - 1] : 0);
      inside = inside && index >= 0 && index <= map.extent[i];
      offset += index * static_cast<int64_t>(map.stride[i - 1]);
    }
    visit(inside ? reinterpret_cast<char*>(map.address) + offset : nullptr);
    uint32_t i = 1;
    for (; i <= spatial; ++i) {
      base[i] += map.step[i];
      if (base[i] <= int64_t(map.extent[i]) + map.upper[i - 1]) break;
      base[i] = map.lower[i - 1];
    }
    if (i > spatial) ++base[i];
  }
}

Box box_of(const CUtensorMap* encoded, void* shared, const TmaCoordinates& where, bool write,
           const void* frame) {
  const TensorMap& map = read_map(encoded);
  if (map.im2col != where.im2col)
    vgpu_fail("tensor map was encoded for %s, the copy is %s", map.im2col ? "im2col" : "tiles",
              where.im2col ? "im2col" : "of a tile");
  if (map.rank != where.count)
    vgpu_fail("tensor map has %u dimensions, the copy gives %u coordinates", map.rank, where.count);
  if (where.rows && map.box[1] != 1)
    vgpu_fail("copies of four rows need a tensor map with boxes of one row, got %u", map.box[1]);
  if (where.at[0] * map.element_bits % 8)
    vgpu_fail("coordinate 0 of a packed 4-bit tensor is even, got %d", where.at[0]);
  Box box{};
  box.shared = static_cast<char*>(shared);
  box.swizzle = map.swizzle;
  box.fill = map.fill_nan ? 0xff : 0;
  box.type = map.type;
  const auto bytes_of = [&](int64_t elements) { return elements * map.element_bits / 8; };
  const int64_t first = where.at[0], length = map.box[0], end = int64_t(map.extent[0]) + 1;
  const int64_t skip = std::clamp<int64_t>(-first, 0, length);
  const int64_t stop = std::clamp<int64_t>(end - first, skip, length);
  const auto valid = static_cast<uint32_t>(bytes_of(stop - skip));
  const auto row_bytes = static_cast<uint32_t>(bytes_of(length));
  const auto add = [&](char* row) {
    if (row && valid) {
      char* global = row + bytes_of(first + skip);
      check_bulk(global, valid, false, write, frame);
      box.pieces.push_back({global, box.bytes + static_cast<uint32_t>(bytes_of(skip)), valid});
    }
    box.bytes += row_bytes;
  };
  if (where.im2col) {
    visit_pixels(map, where, add);
  } else if (where.rows) {
    visit_rows(map, where.at, add);
  } else {
    visit_tile(map, where.at, add);
  }
  if (reinterpret_cast<uintptr_t>(shared) % 128)
    vgpu_fail("shared memory of a tensor copy is aligned to 128 bytes, got shared address %#x",
              vgpu_shared_address(shared));
  check_bulk(shared, box.bytes, true, !write, frame);
  if (Counter* counter = current->block->counter) counter->bulk_global(box, write);
  return box;
}

Box plain_box(void* shared, void* global, uint32_t bytes, bool write, const void* frame) {
  const auto address = reinterpret_cast<uintptr_t>(global);
  if (bytes == 0 || bytes % 16 || address % 16 || reinterpret_cast<uintptr_t>(shared) % 16)
    vgpu_fail("a bulk copy needs a size and addresses that are multiples of 16, got %u bytes, "
              "global %#zx, shared address %#x",
              bytes, static_cast<size_t>(address), vgpu_shared_address(shared));
  check_bulk(shared, bytes, true, !write, frame);
  check_bulk(global, bytes, false, write, frame);
  Box box{};
  box.shared = static_cast<char*>(shared);
  box.type = kFloat32;  // what their reductions add
  box.bytes = bytes;
  box.pieces.push_back({static_cast<char*>(global), 0, bytes});
  if (Counter* counter = current->block->counter) counter->bulk_global(box, write);
  return box;
}

// Moves the box between shared memory and `flat`, where it lies unswizzled.
template <bool ToShared>
void transfer(const Box& box, char* flat) {
  const auto move = [](char* shared, char* other, uint32_t bytes) {
    memcpy(ToShared ? shared : other, ToShared ? other : shared, bytes);
  };
  if (!box.swizzle) return move(box.shared, flat, box.bytes);
  // Bits 7 to 9 of an address are XORed into the number of the 16-byte chunk within its row.
  const uintptr_t mask = box.swizzle - 16u;
  const auto start = reinterpret_cast<uintptr_t>(box.shared);
  for (uint32_t offset = 0; offset < box.bytes; offset += 16) {
    const uintptr_t at = start + offset;
    move(reinterpret_cast<char*>(at ^ (at >> 3 & mask)), flat + offset, 16);
  }
}

// Tells the race checker what a copy touches.
void trace_global(const Box& box, bool write) {
  if (current->block->race)
    for (const Piece& piece : box.pieces) trace_bulk(piece.global, piece.bytes, false, write);
}
void trace_shared(const Box& box, bool write) {
  if (current->block->race) trace_bulk(box.shared, box.bytes, true, write);
}

void load(const Box& box) {
  trace_global(box, false);
  trace_shared(box, true);
  thread_local std::vector<char> flat;
  flat.assign(box.bytes, static_cast<char>(box.fill));
  for (const Piece& piece : box.pieces) memcpy(&flat[piece.offset], piece.global, piece.bytes);
  transfer<true>(box, flat.data());
}

template <class T, class Bits>
void add(char* global, const char* values, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; i += sizeof(T)) {
    T value;
    memcpy(static_cast<void*>(&value), values + i, sizeof(T));
    auto* cell = reinterpret_cast<Bits*>(global + i);
    Bits old = __atomic_load_n(cell, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(cell, &old,
                                        bit_cast<Bits>(T(bit_cast<T>(old) + value)), false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    }
  }
}

using Adder = void (*)(char* global, const char* values, uint32_t bytes);

// By CUtensorMapDataType; null where the hardware has no addition.
constexpr Adder kAdders[] = {nullptr,
                             nullptr,
                             add<uint32_t, uint32_t>,
                             add<int32_t, uint32_t>,
                             add<uint64_t, uint64_t>,
                             add<int64_t, uint64_t>,
                             add<__half, uint16_t>,
                             add<float, uint32_t>,
                             add<double, uint64_t>,
                             add<__nv_bfloat16, uint16_t>};

}  // namespace

void BulkStore::read() {
  if (was_read) return;
  was_read = true;
  flat.resize(box.bytes);
  transfer<false>(box, flat.data());
}

void BulkStore::finish() {
  if (finished) return;
  finished = true;
  read();
  for (const Piece& piece : box.pieces) {
    const char* values = &flat[piece.offset];
    if (reduction == Reduction::kNone) {
      memcpy(piece.global, values, piece.bytes);
    } else {
      kAdders[box.type](piece.global, values, piece.bytes);
    }
  }
}

namespace {

void start_load(Box box, uint64_t* barrier, const void* frame) {
  require_mbarrier(barrier, frame);
  if (Counter* counter = current->block->counter) counter->bulk_copy(box.bytes, true);
  const auto perform = [box = std::move(box), barrier] {
    load(box);
    vgpu_mbarrier_complete_tx(barrier, box.bytes);
  };
  current->block->start_async("bulk load", kUnordered, perform, frame);
}

// The load of each block in the mask, as its own copy.
void start_loads(const Box& box, uint64_t* barrier, uint16_t mask, const void* frame) {
  if (mask == 0) vgpu_fail("multicast to no block of the cluster");
  for (uint32_t rank = 0; rank < 16; ++rank) {
    if (!(mask >> rank & 1)) continue;
    Box theirs = box;
    theirs.shared = static_cast<char*>(vgpu_map_rank(box.shared, rank));
    start_load(std::move(theirs), static_cast<uint64_t*>(vgpu_map_rank(barrier, rank)), frame);
  }
}

void start_store(Box box, Reduction reduction, const void* frame) {
  if (reduction == Reduction::kAdd && (box.type >= std::size(kAdders) || !kAdders[box.type]))
    vgpu_fail("bulk additions do not exist for tensor map data type %u", box.type);
  Block& block = *current->block;
  if (block.counter) {
    block.counter->bulk_copy(box.bytes, false);
    if (reduction == Reduction::kAdd) block.counter->bulk_global(box, false);
  }
  BulkStore store{std::move(box), reduction, {}, {}, {}};
  if (Race* race = block.race) {
    // Both happen at some time between now and the end of a wait.
    const uint32_t site = site_of(block, frame);
    store.reader = race->issue(race->async_engine());
    store.writer = race->issue(race->async_engine());
    {
      const Race::Acting as(race, &store.reader, site, true);
      trace_shared(store.box, false);
    }
    const Race::Acting as(race, &store.writer, site, true);
    if (reduction == Reduction::kNone) trace_global(store.box, true);
  }
  auto& stores = block.stores[current->index].stores;
  stores.push_back(std::move(store));
  if (!block.launch->options.late) stores.back().finish();
}

void await(Race* race, const Strand& strand) {
  if (race) race->await(strand.component, strand.step);
}

}  // namespace

void Block::end_stores(Thread& thread) {
  const auto found = stores.find(thread.index);
  if (found == stores.end()) return;
  StoreQueue& queue = found->second;
  if (queue.waited < queue.stores.size())
    vgpu_fail("the thread exits while its bulk stores may still read shared memory: "
              "cp.async.bulk.wait_group is missing");
  for (BulkStore& store : queue.stores) store.finish();
  stores.erase(found);
}

}  // namespace vgpu

using namespace vgpu;

void vgpu_tma_load(const CUtensorMap* map, void* shared, uint64_t* barrier,
                   const TmaCoordinates* where) {
  const void* frame = __builtin_frame_address(0);
  start_load(box_of(map, shared, *where, false, frame), barrier, frame);
}

void vgpu_tma_store(const CUtensorMap* map, const void* shared, const TmaCoordinates* where,
                    Reduction reduction) {
  const void* frame = __builtin_frame_address(0);
  start_store(box_of(map, const_cast<void*>(shared), *where, true, frame), reduction, frame);
}

void vgpu_bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  const void* frame = __builtin_frame_address(0);
  start_load(plain_box(shared, const_cast<void*>(global), bytes, false, frame), barrier, frame);
}

void vgpu_bulk_store(void* global, const void* shared, uint32_t bytes, Reduction reduction) {
  const void* frame = __builtin_frame_address(0);
  start_store(plain_box(const_cast<void*>(shared), global, bytes, true, frame), reduction, frame);
}

void vgpu_tma_load_multicast(const CUtensorMap* map, void* shared, uint64_t* barrier,
                             const TmaCoordinates* where, uint16_t mask) {
  const void* frame = __builtin_frame_address(0);
  start_loads(box_of(map, shared, *where, false, frame), barrier, mask, frame);
}

void vgpu_bulk_load_multicast(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
                              uint16_t mask) {
  const void* frame = __builtin_frame_address(0);
  start_loads(plain_box(shared, const_cast<void*>(global), bytes, false, frame), barrier, mask,
              frame);
}

void vgpu_bulk_send(void* target, const void* source, uint32_t bytes, uint64_t* barrier) {
  const void* frame = __builtin_frame_address(0);
  if (bytes == 0 || bytes % 16 || (reinterpret_cast<uintptr_t>(target) |
                                   reinterpret_cast<uintptr_t>(source)) % 16)
    vgpu_fail("a bulk copy needs a size and addresses that are multiples of 16, got %u bytes",
              bytes);
  check_bulk(source, bytes, true, false, frame);
  check_bulk(target, bytes, true, true, frame);
  if (Counter* counter = current->block->counter) {
    counter->bulk_copy(bytes, false);
    counter->bulk_shared(bytes, true);
  }
  const auto perform = [=] {
    if (current->block->race) {
      trace_bulk(source, bytes, true, false);
      trace_bulk(target, bytes, true, true);
    }
    memcpy(target, source, bytes);
    vgpu_mbarrier_complete_tx(barrier, bytes);
  };
  current->block->start_async("bulk copy to another block", kUnordered, perform, frame);
}

void vgpu_bulk_commit() {
  StoreQueue& queue = current->block->stores[current->index];
  commit(queue, queue.stores.size());
}

void vgpu_bulk_wait(int pending, bool read) {
  StoreQueue& queue = current->block->stores[current->index];
  Race* race = current->block->race;
  const uint32_t old = older(queue, static_cast<size_t>(pending));
  if (read) {
    for (uint32_t i = 0; i < old; ++i) {
      queue.stores[i].read();
      await(race, queue.stores[i].reader);
    }
    queue.waited = std::max(queue.waited, old);
    return;
  }
  for (uint32_t i = 0; i < old; ++i) {
    queue.stores[i].finish();
    await(race, queue.stores[i].reader);
    await(race, queue.stores[i].writer);
  }
  retire(queue, static_cast<size_t>(pending));
  queue.stores.erase(queue.stores.begin(), queue.stores.begin() + old);
  queue.waited = queue.waited > old ? queue.waited - old : 0;
}

void vgpu_tma_prefetch(const CUtensorMap* map) { read_map(map); }
