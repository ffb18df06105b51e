#include <algorithm>

#include "race.h"

namespace vgpu {

namespace {

bool overlap(const TensorRace::Area& a, const TensorRace::Area& b) {
  return (a.lanes & b.lanes) && a.first < b.first + b.columns && b.first < a.first + a.columns;
}

bool covers(const TensorRace::Area& a, const TensorRace::Area& b) {
  return !(b.lanes & ~a.lanes) && a.first <= b.first && b.first + b.columns <= a.first + a.columns;
}

}  // namespace

TensorRace::TensorRace(const Block& block) : block_(block), ordered_(block.thread_count) {
  for (auto& steps : steps_) steps.assign(block.warp_count, 0);
  for (auto& steps : waited_) steps.assign(block.warp_count, 0);
}

uint32_t TensorRace::component(uint32_t warp, News news) const {
  return block_.race->news_engine(warp * kNews + news);
}

bool TensorRace::knows(const Clock& clock, const Access& earlier, News news) const {
  const uint32_t about = component(earlier.warp, news);
  return (earlier.team == block_.race->team() ? clock.of(about) : clock.of(earlier.team, about)) >=
         earlier.step;
}

bool TensorRace::complete(const Access& earlier) const {
  const News news = earlier.unit == kMma ? kCommitted : earlier.unit == kLoad ? kLoaded : kStored;
  return knows(block_.race->strand().known, earlier, news);
}

bool TensorRace::ordered(const Access& earlier) const {
  const News mma = now_.unit == kMma ? kIssued : kCommitted;  // multiplies follow each other
  const News news = earlier.unit == kMma    ? mma
                    : earlier.unit == kLoad ? kLoadFenced
                                            : kStoreFenced;
  return knows(ordered_[current->index], earlier, news);
}

void TensorRace::begin(Unit unit, const char* op, const void* frame) {
  const uint32_t warp = current->warp->index, step = ++steps_[unit][warp];
  now_ = {{}, op, unit, false, block_.race->team(), warp, step, site_of(block_, frame),
          block_.id, current->id};
  if (unit == kMma)
    for (const Thread* thread : current->warp->thread)
      ordered_[thread->index].raise(component(warp, kIssued), step);
}

void TensorRace::touch(TensorRace& home, const Area& area, bool write) {
  now_.area = area;
  now_.write = write;
  auto& accesses = home.accesses_;
  for (const Access& earlier : accesses) {
    if (!overlap(area, earlier.area) || !(write || earlier.write) || ordered(earlier)) continue;
    if (!complete(earlier)) {
      report(now_, earlier, "race", std::string(", not ordered with the ") + earlier.op);
      continue;
    }
    const bool fenced = earlier.unit == kMma ||
                        knows(block_.race->strand().known, earlier,
                              earlier.unit == kLoad ? kLoadFenced : kStoreFenced);
    report(now_, earlier, "tensor-fence",
           std::string(" after a ") + earlier.op + ", without tcgen05.fence::" +
               (fenced ? "after_thread_sync before it" : "before_thread_sync after that one"));
  }
  // A later access that conflicts with what this one covers conflicts with this one as well.
  accesses.erase(std::remove_if(accesses.begin(), accesses.end(),
                                [&](const Access& earlier) {
                                  const bool same = earlier.unit == now_.unit &&
                                                    earlier.team == now_.team &&
                                                    earlier.warp == now_.warp;
                                  return covers(area, earlier.area) &&
                                         (write || (same && !earlier.write));
                                }),
                 accesses.end());
  accesses.push_back(now_);
}

uint32_t TensorRace::issued() const { return steps_[kMma][current->warp->index]; }

void TensorRace::committed(uint32_t steps) {
  const uint32_t warp = current->warp->index;
  block_.race->await(component(warp, kIssued), steps);
  block_.race->await(component(warp, kCommitted), steps);
}

void TensorRace::wait(bool store) {
  const Unit unit = store ? kStore : kLoad;
  const uint32_t warp = current->warp->index, steps = steps_[unit][warp];
  waited_[unit][warp] = steps;
  block_.race->await(component(warp, store ? kStored : kLoaded), steps);
  for (const Thread* thread : current->warp->thread)
    ordered_[thread->index].raise(component(warp, store ? kStoreFenced : kLoadFenced), steps);
}

void TensorRace::fence(bool after) {
  Race& race = *block_.race;
  const uint32_t warp = current->warp->index;
  if (after) return ordered_[current->index].merge(race.strand().known);
  race.await(component(warp, kIssued), steps_[kMma][warp]);
  race.await(component(warp, kLoadFenced), waited_[kLoad][warp]);
  race.await(component(warp, kStoreFenced), waited_[kStore][warp]);
}

void TensorRace::allocate(uint32_t first, uint32_t columns) {
  const Area area{0xff, first, columns};
  accesses_.erase(std::remove_if(accesses_.begin(), accesses_.end(),
                                 [&](const Access& a) { return overlap(area, a.area); }),
                  accesses_.end());
}

void TensorRace::release(uint32_t first, uint32_t columns, const void* frame) {
  Access now{{0xff, first, columns}, "tcgen05.dealloc", kMma, true, 0, 0, 0,
             site_of(block_, frame), block_.id, current->id};
  for (const Access& earlier : accesses_)
    if (overlap(now.area, earlier.area) && !complete(earlier))
      report(now, earlier, "race", std::string(", not ordered with the ") + earlier.op);
}

void TensorRace::report(const Access& now, const Access& earlier, const char* kind,
                        const std::string& why) {
  Finding found;
  found.kind = kind;
  found.kernel = block_.launch->kernel->name;
  found.block = now.block;
  found.thread = now.thread;
  found.site = now.site;
  const Area& area = now.area;
  found.words = std::string(now.op) + (now.write ? " writes" : " reads") + " columns " +
                std::to_string(area.first) + " to " + std::to_string(area.first + area.columns - 1) +
                " of tensor memory" + why;
  found.has_other = found.other_thread_known = true;
  found.other = std::string(earlier.op) + (earlier.write ? " writes" : " reads") + " columns " +
                std::to_string(earlier.area.first) + " to " +
                std::to_string(earlier.area.first + earlier.area.columns - 1);
  found.other_site = earlier.site;
  found.other_block = earlier.block;
  found.other_thread = earlier.thread;
  block_.launch->sanitizer->report(std::move(found));
}

}  // namespace vgpu
