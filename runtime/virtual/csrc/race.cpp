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

void Race::begin() {
  team_ = static_cast<uint32_t>(sanitizer_.block_of_team.size());
  first_peer_ = team_ - block_.rank;
  sanitizer_.block_of_team.push_back(block_.number);
  block_.shared_shadow->stamp = team_;
  block_.shared_shadow->readers.clear();
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
  shared_atomics_.clear();
  visits_.clear();
  exited_ = Sync{};
  acting_ = nullptr;
  pending_ = Pending{};
}

void Race::end() {
  strands_.clear();
  sites_.clear();
  for (Sync& barrier : barriers_) barrier = Sync{};
  phases_.clear();
  fences_.clear();
  observed_.clear();
  shared_atomics_.clear();
  exited_ = Sync{};
  if (block_.tensor) block_.tensor->race.reset();
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

void Race::arrive_at(const void* object, Race& owner) {
  Sync& pending = owner.phases_[object].pending;
  if (&owner == this) return pending.release(strand());
  Sync mine;
  mine.release(strand());
  pending.known.merge(mine.known.exported(team_).imported(owner.team_));
  pending.fenced.merge(mine.fenced.exported(team_).imported(owner.team_));
}

void Race::arrive_at(Meeting& meeting, bool relaxed) {
  const Strand& me = strand();
  meeting.came.resize(block_.thread_count);
  meeting.came[current->index] = {me.known, me.fenced};
  if (relaxed) {
    meeting.arrived.known.merge(fences_[current->index].known);
  } else {
    meeting.arrived.release(strand());
  }
}

void Race::complete(const std::vector<Block*>& blocks, std::vector<Meeting>& meetings) {
  Clock known, fenced;
  for (size_t b = 0; b < blocks.size(); ++b) {
    Race& race = *blocks[b]->race;
    Sync& arrived = meetings[b].arrived;
    arrived.known.merge(race.exited_.known);  // the gone count as arrived
    known.merge(arrived.known.exported(race.team_));
    fenced.merge(arrived.fenced.exported(race.team_));
    arrived = Sync{};
  }
  for (size_t b = 0; b < blocks.size(); ++b) {
    meetings[b].complete.known = known.imported(blocks[b]->race->team_);
    meetings[b].complete.fenced = fenced.imported(blocks[b]->race->team_);
  }
}

void Race::wait_for(Meeting& meeting) {
  Strand& me = strand();
  auto& [known, fenced] = meeting.came[current->index];
  // Threads that learned nothing in between share what they know from now on.
  if (me.known == known && me.fenced == fenced) {
    meeting.complete.give(me);
  } else {
    meeting.complete.acquire(me);
  }
  known = fenced = Clock{};
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

void Race::fence_mbarrier_init() {
  const uint32_t engine = init_engine(*current);
  if (engine < engine_steps_.size())
    fences_[current->index].known.raise(engine, engine_steps_[engine]);
}

// An atomic hands over what its thread releases, or what its last fence did; it brings what others
// handed over, at once or at the next fence.
void Race::atomic(uintptr_t at, bool acquires, bool releases) {
  Block* const owner = block_.owner_of(reinterpret_cast<const void*>(at));
  Clock& carried = owner ? owner->race->shared_atomics_[at] : sanitizer_.atomics[at];
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
  if (!now.async_proxy || now.atomic || !write.step || write.async_proxy) return false;
  if (write.team == team_) return strand.fenced.of(write.component) < write.step;
  return write.team >= first_peer_ && strand.fenced.of(write.team, write.component) < write.step;
}

// --- shadow memory -------------------------------------------------------------------------------

template <class Visit>
void Race::each_cell(Region& region, uintptr_t at, uint32_t bytes, Visit visit) {
  const uintptr_t base = region.begin & ~uintptr_t(3), end = at + bytes;
  readers_ = &region.readers;
  for (uintptr_t word = at & ~uintptr_t(3); word < end; word += 4) {
    Cell& cell = region.words[(word - base) / 4];
    if (cell.stamp != region.stamp) {
      cell = Cell{};
      cell.stamp = region.stamp;
    }
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

// Readers that are not ordered with each other are all kept, but of blocks outside the gang only
// one: a write of this block conflicts with all of them alike.
void Race::note_read(Cell& cell, const Strand& strand, const Epoch& now) {
  const bool mine = cell.read.team == now.team && cell.read.component == now.component;
  if (mine || !cell.read.step || knows(strand, cell.read)) {
    cell.read = now;
    return;
  }
  if (!cell.readers) cell.readers = readers_->make();
  ReaderLists::List& list = (*readers_)[cell.readers];
  std::vector<Epoch>& epochs = list.epochs;
  if (!epochs.empty() && epochs[0].team < first_peer_) epochs.clear();
  const auto key = [](const Epoch& epoch) { return uint64_t(epoch.team) << 16 | epoch.component; };
  if (list.hint >= epochs.size() || key(epochs[list.hint]) != key(now)) {
    const auto at = std::lower_bound(epochs.begin(), epochs.end(), now,
                                     [&](const Epoch& a, const Epoch& b) { return key(a) < key(b); });
    list.hint = static_cast<size_t>(at - epochs.begin());
    if (at == epochs.end() || key(*at) != key(now)) epochs.insert(at, now);
  }
  epochs[list.hint++] = now;
}

// Another block's shared memory exists from when it begins until the last of its threads exits.
void Race::visit(Race& host, const Remote& visit) {
  host.visits_[uint64_t(visit.epoch.team) << 16 | visit.epoch.component] = visit;
  if (strand().known.has(host.team_)) return;
  Finding found = finding("cluster-lifetime", visit.epoch.site);
  found.words = std::string(visit.use.write ? "write" : "read") + " of " +
                std::to_string(visit.bytes) + " bytes of " + where(block_, visit.at) +
                ", which may not have begun to run: no cluster barrier orders it";
  sanitizer_.report(std::move(found));
}

void Race::check_visits() {
  for (const auto& [key, visit] : visits_) {
    const Epoch& epoch = visit.epoch;
    if (exited_.known.of(epoch.team, epoch.component) >= epoch.step) continue;
    const Actor who = actor(epoch);
    Finding found;
    found.kind = "cluster-lifetime";
    found.kernel = block_.launch->kernel->name;
    found.site = epoch.site;
    found.block = who.block;
    found.thread = who.thread;
    found.by_thread = who.thread_known;
    found.words = std::string(visit.use.write ? "write" : "read") + who.by + " of " +
                  std::to_string(visit.bytes) + " bytes of " + where(block_, visit.at) +
                  " of a block of the cluster that does not wait for it before it exits";
    found.has_other = true;
    found.other = "exit";
    found.other_block = block_.id;
    sanitizer_.report(std::move(found));
  }
}

void Race::access(Region& region, uintptr_t at, uint32_t bytes, Use use, uint32_t site) {
  settle();
  if (acting_site_) site = acting_site_;
  if (region.written) check_initialised(region, at, bytes, use, site);
  const Strand& me = strand();
  const Epoch now{team_, me.step, site, static_cast<uint16_t>(me.component), use.atomic,
                  async_proxy_};
  if (region.owner && region.owner != this) visit(*region.owner, {now, at, bytes, use});
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
  Finding race = conflict(at, bytes, now, use.write, earlier, earlier_wrote);
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

Race::Actor Race::actor(const Epoch& epoch) const {
  const dim3 &grid = block_.launch->grid, &shape = block_.launch->block;
  const uint32_t threads = block_.thread_count, engine = epoch.component;
  const uint32_t matrix = 2 * threads, async = matrix + block_.warp_count;
  Actor who;
  uint32_t thread = engine;
  if (engine >= async + kAsyncEngines) {
    thread = engine - async - kAsyncEngines;
  } else if (engine >= async) {
    thread = 0;
    who.thread_known = false;
    who.by = " by an asynchronous copy";
  } else if (engine >= matrix) {
    thread = std::min((engine - matrix) * kWarp, threads - 1);
    who.by = " by an asynchronous matrix instruction";
  } else if (engine >= threads) {
    thread = engine - threads;
    who.by = " by cp.async";
  }
  who.thread = {thread % shape.x, thread / shape.x % shape.y, thread / shape.x / shape.y};
  const uint64_t number = sanitizer_.block_of_team[epoch.team];
  who.block = {static_cast<unsigned>(number % grid.x),
               static_cast<unsigned>(number / grid.x % grid.y),
               static_cast<unsigned>(number / grid.x / grid.y)};
  return who;
}

Finding Race::conflict(uintptr_t at, uint32_t bytes, const Epoch& now, bool write,
                       const Epoch& earlier, bool earlier_wrote) const {
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
  const Actor who = actor(earlier);
  found.other = verb(earlier, earlier_wrote) + who.by;
  found.other_thread_known = who.thread_known;
  found.other_block = who.block;
  found.other_thread = who.thread;
  return found;
}

}  // namespace vgpu
