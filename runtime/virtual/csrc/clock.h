// Vector clocks: which steps of the other strands a strand knows to have happened before it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace vgpu {

// A shared, copied-on-write table from component to the last step known of it. One OS thread at a
// time uses the clocks of a gang, so the count of owners is plain.
class Clock {
 public:
  Clock() = default;
  Clock(const Clock& other) : body_(other.body_) {
    if (body_) ++body_->owners;
  }
  Clock(Clock&& other) noexcept : body_(std::exchange(other.body_, nullptr)) {}
  Clock& operator=(Clock other) noexcept {
    std::swap(body_, other.body_);
    return *this;
  }
  ~Clock() { drop(); }

  bool operator==(const Clock& other) const { return body_ == other.body_; }
  explicit operator bool() const { return body_ != nullptr; }

  uint32_t of(uint32_t component) const {
    return body_ && component < body_->steps.size() ? body_->steps[component] : 0;
  }
  // The same for a component of another team, see `Epoch`.
  uint32_t of(uint32_t team, uint32_t component) const {
    const Other* other = find(team);
    return other ? other->second.of(component) : 0;
  }
  // Whether anything of that team is known, be it only that it has begun.
  bool has(uint32_t team) const { return find(team) != nullptr; }

  void raise(uint32_t component, uint32_t step) {
    Body& mine = own();
    if (component >= mine.steps.size()) mine.steps.resize(component + 1, 0);
    mine.steps[component] = std::max(mine.steps[component], step);
  }
  void merge(const Clock& other) {
    if (!other || *this == other) return;
    if (!body_) {
      *this = other;
      return;
    }
    Body& mine = own();
    const std::vector<uint32_t>& theirs = other.body_->steps;
    if (mine.steps.size() < theirs.size()) mine.steps.resize(theirs.size(), 0);
    for (size_t i = 0; i < theirs.size(); ++i) mine.steps[i] = std::max(mine.steps[i], theirs[i]);
    for (const auto& [team, clock] : other.body_->others) merge(team, clock);
  }
  // What is known of another team.
  void merge(uint32_t team, const Clock& clock) {
    std::vector<Other>& others = own().others;
    const auto at = std::lower_bound(others.begin(), others.end(), team, before);
    if (at != others.end() && at->first == team) return at->second.merge(clock);
    others.insert(at, {team, clock});
  }
  // This clock as seen from outside its team: its own components become those of `team`.
  Clock exported(uint32_t team) const {
    Clock out;
    Clock local = *this;
    local.own().others.clear();
    out.merge(team, local);
    if (body_)
      for (const auto& [other, known] : body_->others) out.merge(other, known);
    return out;
  }
  // What an exported clock says to a member of `team`.
  Clock imported(uint32_t team) const {
    Clock out;
    if (!body_) return out;
    for (const auto& [other, known] : body_->others)
      if (other == team) {
        out.merge(known);
      } else {
        out.merge(other, known);
      }
    return out;
  }

 private:
  using Other = std::pair<uint32_t, Clock>;
  struct Body {
    uint32_t owners = 1;
    std::vector<uint32_t> steps;
    std::vector<Other> others;  // by team
  };
  Body* body_ = nullptr;

  static bool before(const Other& other, uint32_t team) { return other.first < team; }
  const Other* find(uint32_t team) const {
    if (!body_) return nullptr;
    const std::vector<Other>& others = body_->others;
    const auto at = std::lower_bound(others.begin(), others.end(), team, before);
    return at != others.end() && at->first == team ? &*at : nullptr;
  }

  void drop() {
    if (body_ && --body_->owners == 0) delete body_;
  }
  Body& own() {
    if (!body_) {
      body_ = new Body;
    } else if (body_->owners > 1) {
      auto* copy = new Body(*body_);
      copy->owners = 1;
      --body_->owners;
      body_ = copy;
    }
    return *body_;
  }
};

// Who acts: a CUDA thread, or an engine that works for it (cp.async, wgmma).
struct Strand {
  uint32_t component = 0, step = 1;
  uint32_t issuer = ~0u, issued = 0;  // of an engine: it knows this strand up to this step
  Clock known;   // of the others
  Clock fenced;  // of all: writes made visible to the async proxy
};

// Where strands meet: some release what they know into it, others acquire it.
class Sync {
 public:
  void release(Strand& strand) {
    if (!(last_ == strand.known)) {
      known.merge(strand.known);
      last_ = strand.known;
    }
    known.raise(strand.component, strand.step++);
    if (!(last_fenced_ == strand.fenced)) {
      fenced.merge(strand.fenced);
      last_fenced_ = strand.fenced;
    }
  }
  void acquire(Strand& strand) const {
    strand.known.merge(known);
    strand.fenced.merge(fenced);
  }
  // The same for a strand that released into it and has learned nothing since.
  void give(Strand& strand) const {
    strand.known = known;
    strand.fenced = fenced;
  }

  Clock known, fenced;

 private:
  Clock last_, last_fenced_;  // merging the same again is common and would change nothing
};

// A block's threads at a barrier of several blocks.
struct Meeting {
  Sync arrived, complete;
  std::vector<std::pair<Clock, Clock>> came;  // by thread: known and fenced as it arrived
};

}  // namespace vgpu
