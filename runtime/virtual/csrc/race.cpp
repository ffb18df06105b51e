// Shadow memory and the rules of the race checker.
#include "race.h"

namespace vgpu {

uint32_t ReaderLists::make() {
  if (free_.empty()) {
    lists_.emplace_back();
    return static_cast<uint32_t>(lists_.size() - 1);
  }
  const uint32_t number = free_.back();
  free_.pop_back();
  return number;
}

void ReaderLists::drop(uint32_t number) {
  lists_[number].epochs.clear();
  lists_[number].hint = 0;
  free_.push_back(number);
}

void ReaderLists::clear() {
  free_.clear();
  for (uint32_t number = static_cast<uint32_t>(lists_.size()); --number > 0;) drop(number);
}

void Race::begin(uint64_t number) {
  team_ = static_cast<uint32_t>(sanitizer_.block_of_team.size());
  sanitizer_.block_of_team.push_back(number);
  const uint32_t threads = block_.thread_count;
  strands_.assign(threads, Strand{});
  for (uint32_t i = 0; i < threads; ++i) strands_[i].component = i;
  engine_steps_.clear();
  async_issued_ = 0;
  sites_.assign(block_.warp_count * kWarp, Sync{});
  for (Sync& barrier : barriers_) barrier = Sync{};
  phases_.clear();
  fences_.assign(threads, Sync{});
  observed_.assign(threads, Clock{});
  shared_readers_.clear();
  shared_atomics_.clear();
  exited_ = Sync{};
  acting_ = nullptr;
  pending_ = Pending{};
}

// --- happens-before ------------------------------------------------------------------------------

void Race::arrive(const Warp& warp, const Site& site) {
  sites_[warp.index * kWarp + static_cast<uint32_t>(&site - warp.site)].release(strand());
}

void Race::leave(const Warp& warp, const Site& site) {
  Sync& sync = sites_[warp.index * kWarp + static_cast<uint32_t>(&site - warp.site)];
  sync.release(strand());  // with what was done and learned on behalf of all
  for (uint32_t left = site.arrived; left; left &= left - 1)
    sync.give(strand_of(*warp.thread[__builtin_ctz(left)]));
  sync = Sync{};
}

void Race::leave_barrier(int id, const Barrier& barrier) {
  Sync& sync = barriers_[id];
  if (!barrier.count) sync.known.merge(exited_.known);  // the gone count as arrived
  for (uint32_t w = 0; w < block_.warp_count; ++w)
    for (uint32_t left = barrier.waiting[w]; left; left &= left - 1)
      sync.give(strand_of(*block_.warps[w].thread[__builtin_ctz(left)]));
  sync = Sync{};
}

void Race::complete(const void* object) {
  Phase& phase = phases_[object];
  phase.complete = std::move(phase.pending);
  phase.pending = Sync{};
}

void Race::fence_async_proxy() {
  Strand& me = strand();
  me.fenced.merge(me.known);
  me.fenced.raise(me.component, me.step++);
}

void Race::fence() {
  const uint32_t thread = current->index;
  strand().known.merge(observed_[thread]);
  observed_[thread] = Clock{};
  fences_[thread] = Sync{};
  fences_[thread].release(strand());
}

// An atomic hands over what its thread releases, or what its last fence did; it brings what others
// handed over, at once or at the next fence.
void Race::atomic(uintptr_t at, bool acquires, bool releases) {
  const bool shared = reinterpret_cast<char*>(at) >= block_.segment_begin &&
                      reinterpret_cast<char*>(at) < block_.segment_end;
  Clock& carried = shared ? shared_atomics_[at] : sanitizer_.atomics[at];
  const uint32_t thread = current->index;
  (acquires ? strand().known : observed_[thread]).merge(carried.imported(team_));
  if (releases) {
    Sync now;
    now.release(strand());
    carried.merge(now.known.exported(team_));
  } else if (fences_[thread].known) {
    carried.merge(fences_[thread].known.exported(team_));
  }
}

Strand Race::issue(uint32_t engine) {
  Strand& me = strand();
  if (engine >= engine_steps_.size()) engine_steps_.resize(engine + 1, 0);
  Strand out;
  out.component = engine;
  out.step = ++engine_steps_[engine];
  out.issuer = me.component;
  out.issued = me.step++;
  out.known = me.known;
  out.fenced = me.fenced;
  return out;
}

Race::Acting::Acting(Race* race, Strand* strand, uint32_t site, bool async_proxy) : race_(race) {
  if (!race) return;
  race->acting_ = strand;
  race->acting_site_ = site;
  race->async_proxy_ = async_proxy;
}

Race::Acting::~Acting() {
  if (!race_) return;
  race_->acting_ = nullptr;
  race_->acting_site_ = 0;
  race_->async_proxy_ = false;
}

bool Race::knows(const Strand& strand, const Epoch& epoch) const {
  if (epoch.team == team_)
    return epoch.component == strand.component ||
           (epoch.component == strand.issuer && epoch.step <= strand.issued) ||
           strand.known.of(epoch.component) >= epoch.step;
  return epoch.team < sanitizer_.first_team ||
         strand.known.of(epoch.team, epoch.component) >= epoch.step;
}

bool Race::conflicts(const Strand& strand, const Epoch& now, const Epoch& earlier) const {
  return earlier.step && !(now.atomic && earlier.atomic) && !knows(strand, earlier);
}

// The async proxy sees what other proxies wrote only across a fence.proxy.async.
bool Race::unfenced(const Strand& strand, const Epoch& now, const Epoch& write) const {
  return now.async_proxy && !now.atomic && write.step && write.team == team_ && !write.async_proxy &&
         strand.fenced.of(write.component) < write.step;
}

// --- shadow memory -------------------------------------------------------------------------------

Cell& Race::fresh(const Region& region, Cell& cell) {
  const uint32_t stamp = region.shared ? team_ : sanitizer_.first_team;
  if (cell.stamp != stamp) {
    cell = Cell{};
    cell.stamp = stamp;
  }
  return cell;
}

template <class Visit>
void Race::each_cell(Region& region, uintptr_t at, uint32_t bytes, Visit visit) {
  const uintptr_t base = region.begin & ~uintptr_t(3), end = at + bytes;
  readers_ = &lists(region);
  for (uintptr_t word = at & ~uintptr_t(3); word < end; word += 4) {
    Cell& cell = fresh(region, region.words[(word - base) / 4]);
    const uintptr_t first = std::max(word, at), last = std::min(word + 4, end);
    if (!cell.split && last - first == 4) {
      visit(cell);
      continue;
    }
    Cell* parts = &region.bytes[word - base];
    if (!cell.split) {
      for (int i = 0; i < 4; ++i) {
        parts[i] = cell;
        if (i && cell.readers) {
          parts[i].readers = readers_->make();
          (*readers_)[parts[i].readers] = (*readers_)[cell.readers];
        }
      }
      cell.split = true;
    }
    for (uintptr_t byte = first; byte < last; ++byte) visit(parts[byte - word]);
  }
}

const Epoch* Race::find_conflict(Cell& cell, const Strand& strand, const Epoch& now, bool write) {
  if (conflicts(strand, now, cell.write)) return &cell.write;
  if (!write) return unfenced(strand, now, cell.write) ? &cell.write : nullptr;
  if (conflicts(strand, now, cell.read)) return &cell.read;
  if (cell.readers)
    for (const Epoch& reader : (*readers_)[cell.readers].epochs)
      if (conflicts(strand, now, reader)) return &reader;
  return nullptr;
}

void Race::claim(Cell& cell, const Epoch& now) {
  cell.write = now;
  cell.read = Epoch{};
  if (cell.readers) {
    readers_->drop(cell.readers);
    cell.readers = 0;
  }
}

// Readers that are not ordered with each other are all kept, but of other blocks only one: a write
// of this block conflicts with all of them alike.
void Race::note_read(Cell& cell, const Strand& strand, const Epoch& now) {
  const bool mine = cell.read.team == now.team && cell.read.component == now.component;
  if (mine || !cell.read.step || knows(strand, cell.read)) {
    cell.read = now;
    return;
  }
  if (!cell.readers) cell.readers = readers_->make();
  ReaderLists::List& list = (*readers_)[cell.readers];
  std::vector<Epoch>& epochs = list.epochs;
  if (!epochs.empty() && epochs[0].team != now.team) epochs.clear();
  const size_t count = epochs.size();
  for (size_t i = 0; i < count; ++i) {
    const size_t at = (list.hint + i) % count;
    if (epochs[at].component != now.component) continue;
    epochs[at] = now;
    list.hint = at + 1;
    return;
  }
  epochs.push_back(now);
}

void Race::access(Region& region, uintptr_t at, uint32_t bytes, Use use, uint32_t site) {
  settle();
  if (acting_site_) site = acting_site_;
  if (region.written) check_initialised(region, at, bytes, use, site);
  const Strand& me = strand();
  const Epoch now{team_, me.step, site, static_cast<uint16_t>(me.component), use.atomic,
                  async_proxy_};
  Epoch earlier{};
  bool earlier_wrote = false;
  each_cell(region, at, bytes, [&](Cell& cell) {
    const Epoch* found = find_conflict(cell, me, now, use.write);
    if (found && !earlier.step) {
      earlier = *found;
      earlier_wrote = found == &cell.write;
    }
    if (!use.write) {
      note_read(cell, me, now);
    } else if (!found) {
      claim(cell, now);
    }
  });
  if (!earlier.step) return;
  Finding race = conflict(region, at, bytes, now, use.write, earlier, earlier_wrote);
  if (!use.write || acting_ || use.atomic) {
    sanitizer_.report(std::move(race));
    if (use.write) each_cell(region, at, bytes, [&](Cell& cell) { claim(cell, now); });
    return;
  }
  const char* memory = reinterpret_cast<const char*>(at);
  pending_ = {&region, at, bytes, now, std::move(race), {memory, memory + bytes}};
}

// Threads that write the same value to one place are harmless and customary. Whether they do shows
// once the write, announced in `access`, has happened: at the next event of the block.
void Race::settle() {
  if (!pending_.region) return;
  Pending pending = std::move(pending_);
  pending_ = Pending{};
  if (!memcmp(pending.before.data(), reinterpret_cast<const void*>(pending.at), pending.bytes))
    return;
  each_cell(*pending.region, pending.at, pending.bytes,
            [&](Cell& cell) { claim(cell, pending.epoch); });
  sanitizer_.report(std::move(pending.finding));
}

void Race::check_initialised(Region& region, uintptr_t at, uint32_t bytes, Use use, uint32_t site) {
  uint8_t* written = &region.written[at - region.begin];
  if (use.read && memchr(written, 0, bytes)) {
    Finding found = finding("uninitialised", site);
    found.words = "read of " + std::to_string(bytes) + " bytes of " + where(block_, at) +
                  ", which nothing has written";
    sanitizer_.report(std::move(found));
  }
  if (use.write) memset(written, 1, bytes);
}

Finding Race::finding(const char* kind, uint32_t site) const {
  Finding found;
  found.kind = kind;
  found.kernel = block_.launch->kernel->name;
  found.block = block_.id;
  found.thread = current->id;
  found.site = site;
  return found;
}

Finding Race::conflict(const Region&, uintptr_t at, uint32_t bytes, const Epoch& now, bool write,
                       const Epoch& earlier, bool earlier_wrote) const {
  const dim3 &grid = block_.launch->grid, &shape = block_.launch->block;
  const uint32_t threads = block_.thread_count, engine = earlier.component;
  const Strand& me = acting_ ? *acting_ : strands_[current->index];
  const bool ordered = knows(me, earlier);
  Finding found = finding(ordered ? "proxy-fence" : "race", now.site);
  const auto verb = [](const Epoch& epoch, bool wrote) {
    return std::string(epoch.atomic ? "atomic " : "") + (wrote ? "write" : "read");
  };
  found.words = verb(now, write) + " of " + std::to_string(bytes) + " bytes of " +
                where(block_, at) +
                (ordered ? " by the async proxy, without fence.proxy.async after the "
                         : ", not ordered with the ") +
                verb(earlier, earlier_wrote);
  found.has_other = true;
  found.other_site = earlier.site;
  found.other = verb(earlier, earlier_wrote);
  found.other_thread_known = true;
  uint32_t thread = engine;
  if (engine >= 2 * threads + block_.warp_count) {
    thread = 0;
    found.other_thread_known = false;
    found.other += " by an asynchronous copy";
  } else if (engine >= 2 * threads) {
    thread = std::min((engine - 2 * threads) * kWarp, threads - 1);
    found.other += " by an asynchronous matrix instruction";
  } else if (engine >= threads) {
    thread = engine - threads;
    found.other += " by cp.async";
  }
  found.other_thread = {thread % shape.x, thread / shape.x % shape.y, thread / shape.x / shape.y};
  const uint64_t number = sanitizer_.block_of_team[earlier.team];
  found.other_block = {static_cast<unsigned>(number % grid.x),
                       static_cast<unsigned>(number / grid.x % grid.y),
                       static_cast<unsigned>(number / grid.x / grid.y)};
  return found;
}

}  // namespace vgpu
