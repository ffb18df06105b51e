#include "counters.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace vgpu {

namespace {

constexpr uint32_t kSector = 32, kLine = 128, kBankBytes = 4, kBanks = 32;
constexpr uint32_t kWavefront = kBanks * kBankBytes;

using Spans = std::vector<std::pair<uintptr_t, uint32_t>>;  // address, bytes

// Distinct units of `size` bytes that the spans touch.
uint64_t distinct(const Spans& spans, uint32_t size) {
  std::vector<uintptr_t> units;
  for (const auto& [at, bytes] : spans)
    for (uintptr_t unit = at / size; unit <= (at + bytes - 1) / size; ++unit) units.push_back(unit);
  std::sort(units.begin(), units.end());
  return static_cast<uint64_t>(std::unique(units.begin(), units.end()) - units.begin());
}

// Passes over the banks in which these spans are served: the most distinct words in one bank.
uint64_t passes(const Spans& spans) {
  std::vector<uintptr_t> words;
  for (const auto& [at, bytes] : spans)
    for (uintptr_t word = at / kBankBytes; word <= (at + bytes - 1) / kBankBytes; ++word)
      words.push_back(word);
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  uint64_t in_bank[kBanks] = {}, most = 0;
  for (const uintptr_t word : words) most = std::max(most, ++in_bank[word % kBanks]);
  return most;
}

}  // namespace

void Totals::add(const Totals& other) {
  auto* mine = reinterpret_cast<uint64_t*>(this);
  const auto* theirs = reinterpret_cast<const uint64_t*>(&other);
  for (size_t i = 0; i < sizeof(Totals) / sizeof(uint64_t); ++i) mine[i] += theirs[i];
}

// --- of a launch ---------------------------------------------------------------------------------

Tally::Tally(const std::vector<Range>& ranges) {
  for (const Range& range : ranges) {
    Touched touched{range.begin, range.end, range.allocation, {}};
    for (auto& bits : touched.bits) bits.reset(new std::atomic<uint64_t>[touched.words()]());
    ranges_.push_back(std::move(touched));
  }
}

void Tally::add(const Totals& part) {
  const std::lock_guard<std::mutex> lock(mutex_);
  totals_.add(part);
}

const Tally::Touched* Tally::find(uintptr_t at) const {
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), at,
                                      [](uintptr_t a, const Touched& r) { return a < r.begin; });
  return after == ranges_.begin() || at >= (after - 1)->end ? nullptr : &*(after - 1);
}

void Tally::touch(uintptr_t at, uint32_t bytes, bool write) {
  const Touched* range = find(at);
  if (!range) return;
  for (uintptr_t byte = at - range->begin, end = byte + bytes; byte < end;) {
    const uintptr_t first = byte % 64, count = std::min<uintptr_t>(64 - first, end - byte);
    const uint64_t mask = (count == 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1) << first;
    range->bits[write][byte / 64].fetch_or(mask, std::memory_order_relaxed);
    byte += count;
  }
}

uintptr_t Tally::normal(uintptr_t at) const {
  const Touched* range = find(at);
  return range ? at - range->allocation : at;
}

Totals Tally::totals() const {
  Totals all = totals_;
  all.reductions /= kWarp;  // rendezvous of one redux.sync
  for (const Touched& range : ranges_)
    for (int write = 0; write < 2; ++write)
      for (size_t i = 0; i < range.words(); ++i)
        all.global[write].unique_bytes +=
            static_cast<uint64_t>(__builtin_popcountll(range.bits[write][i]));
  return all;
}

// --- of a block ----------------------------------------------------------------------------------

Counter::~Counter() {
  for (uint32_t warp = 0; warp < kMaxThreads / kWarp; ++warp) meet(warp);
  tally_.add(totals);
}

void Counter::access(Space space, uintptr_t at, uint32_t bytes, Use use, const void* frame) {
  if (space == Space::kPrivate) return;
  if (use.read && use.write) ++totals.atomics;
  // More than the widest instruction moves (a structure, st.bulk): as bulk copies do.
  if (space == Space::kShared && bytes > 16) return bulk_shared(bytes, use.write);
  const uint32_t lane = current->lane, warp = current->warp->index;
  const auto from = static_cast<const uintptr_t*>(frame)[1];
  Point& point = points_[warp][from * 4 + static_cast<uint32_t>(space)];
  point.space = space;
  point.use = use;
  const uint32_t visit = point.visits[lane]++ - point.closed;
  if (visit >= point.open.size()) point.open.resize(visit + 1);
  Group& group = point.open[visit];
  group.lanes |= 1u << lane;
  group.at[lane] = at;
  group.bytes[lane] = bytes;
  const uint32_t present = std::min<uint32_t>(block_.thread_count - warp * kWarp, kWarp);
  const uint32_t all = kFullMask >> (kWarp - present);
  while (!point.open.empty() && point.open.front().lanes == all) {
    close(point, point.open.front());
    point.open.pop_front();
    ++point.closed;
  }
}

void Counter::meet(uint32_t warp) {
  for (auto& [from, point] : points_[warp])
    for (const Group& group : point.open)
      if (group.lanes) close(point, group);
  points_[warp].clear();
}

void Counter::leave(const Warp& warp, const char* op, uint32_t lanes) {
  if (!strcmp(op, "__shfl_sync")) ++totals.shuffles;
  if (!strcmp(op, "redux.sync")) ++totals.reductions;
  if (lanes == warp.live) meet(warp.index);
}

void Counter::leave(const Barrier& barrier) {
  ++totals.barriers;
  for (uint32_t warp = 0; warp < block_.warp_count; ++warp)
    if (block_.warps[warp].live && barrier.waiting[warp] == block_.warps[warp].live) meet(warp);
}

void Counter::close(const Point& point, const Group& group) {
  for (const bool write : {false, true})
    if (write ? point.use.write : point.use.read)
      point.space == Space::kGlobal ? global(group, write) : shared(group, write);
}

void Counter::global(const Group& group, bool write) {
  Spans spans;
  GlobalTraffic& traffic = totals.global[write];
  for (uint32_t left = group.lanes; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    tally_.touch(group.at[lane], group.bytes[lane], write);
    spans.emplace_back(tally_.normal(group.at[lane]), group.bytes[lane]);
    traffic.bytes += group.bytes[lane];
  }
  ++traffic.accesses;
  traffic.sectors += distinct(spans, kSector);
  traffic.lines += distinct(spans, kLine);
}

// A pass serves at most 128 bytes: a warp's words of 4 bytes in one, of 8 and 16 bytes by halves and
// quarters of the warp.
void Counter::shared(const Group& group, bool write) {
  uint32_t widest = kBankBytes;
  for (uint32_t left = group.lanes; left; left &= left - 1)
    widest = std::max(widest, group.bytes[__builtin_ctz(left)]);
  const int lanes_at_once = static_cast<int>(kWavefront / widest);
  SharedTraffic& traffic = totals.shared[write];
  ++traffic.accesses;
  for (int first = 0; first < kWarp; first += lanes_at_once) {
    Spans spans;
    for (int lane = first; lane < first + lanes_at_once; ++lane) {
      if (!(group.lanes >> lane & 1)) continue;
      spans.emplace_back(group.at[lane], group.bytes[lane]);
      traffic.bytes += group.bytes[lane];
    }
    if (spans.empty()) continue;
    const uint64_t needed = passes(spans);
    traffic.wavefronts += needed;
    traffic.conflicts += needed - 1;
  }
}

void Counter::rows(void* const* rows, bool write) {
  Spans spans;
  for (int i = 0; i < 8; ++i) spans.emplace_back(reinterpret_cast<uintptr_t>(rows[i]), 16);
  SharedTraffic& traffic = totals.shared[write];
  const uint64_t needed = passes(spans);
  ++traffic.accesses;
  traffic.bytes += 8 * 16;
  traffic.wavefronts += needed;
  traffic.conflicts += needed - 1;
}

void Counter::bulk_global(const Box& box, bool write) {
  Spans spans;
  GlobalTraffic& traffic = totals.global[write];
  for (const Piece& piece : box.pieces) {
    const auto at = reinterpret_cast<uintptr_t>(piece.global);
    tally_.touch(at, piece.bytes, write);
    spans.emplace_back(tally_.normal(at), piece.bytes);
    traffic.bytes += piece.bytes;
  }
  ++traffic.accesses;
  traffic.sectors += distinct(spans, kSector);
  traffic.lines += distinct(spans, kLine);
}

void Counter::bulk_shared(uint32_t bytes, bool write) {
  SharedTraffic& traffic = totals.shared[write];
  ++traffic.accesses;
  traffic.bytes += bytes;
  traffic.wavefronts += (bytes + kWavefront - 1) / kWavefront;
}

}  // namespace vgpu

thread_local vgpu::Counting* vgpu::active_counting = nullptr;

void vgpu_count_matrix(vgpu::MatrixUnit unit, vgpu::MatrixType type, uint64_t operations,
                       uint64_t operand_bytes) {
  vgpu::Counter* counter = vgpu::current->block->counter;
  if (!counter) return;
  counter->totals.matrix[static_cast<uint32_t>(unit)][static_cast<uint32_t>(type)] += operations;
  counter->totals.operand_bytes += operand_bytes;
}

VGPU_API vgpu::Counting* vgpu_counting_new() { return new vgpu::Counting; }
VGPU_API void vgpu_counting_delete(vgpu::Counting* counting) { delete counting; }
// Null for none. Returns what was active.
VGPU_API vgpu::Counting* vgpu_counting_use(vgpu::Counting* counting) {
  return std::exchange(vgpu::active_counting, counting);
}
VGPU_API size_t vgpu_counting_launches(const vgpu::Counting* counting) {
  return counting->launches.size();
}
// Name, and grid and block in `sizes`, of a launch; its totals into `words`, `count` of them.
VGPU_API const char* vgpu_counting_launch(const vgpu::Counting* counting, size_t index,
                                          uint32_t* sizes, uint64_t* words, size_t count) {
  const auto& entry = counting->launches[index];
  if (count != sizeof entry.totals / sizeof *words) return nullptr;
  memcpy(words, &entry.totals, sizeof entry.totals);
  const uint32_t both[] = {entry.grid.x,  entry.grid.y,  entry.grid.z,
                           entry.block.x, entry.block.y, entry.block.z};
  memcpy(sizes, both, sizeof both);
  return entry.kernel.c_str();
}
