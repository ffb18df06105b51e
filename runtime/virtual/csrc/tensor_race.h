// Accesses of tensor memory that nothing orders: all are asynchronous, so program order and barriers
// alone do not. What does: the order of multiplies and copies of a warp, tcgen05.wait, tcgen05.commit
// with its mbarrier, and between threads tcgen05.fence::before_thread_sync and
// tcgen05.fence::after_thread_sync around what synchronises them.
#pragma once
#include <string>
#include <vector>

#include "clock.h"
#include "vgpu/runtime.h"

namespace vgpu {

class TensorRace {
 public:
  enum Unit : uint8_t { kMma, kLoad, kStore };  // kMma: tcgen05.cp as well
  struct Area {
    uint8_t lanes;  // a bit for every 16
    uint32_t first, columns;
  };

  explicit TensorRace(const Block& block);
  // An instruction of the current warp begins; what it touches follows, in the tensor memory that
  // `home` stands for.
  void begin(Unit unit, const char* op, const void* frame);
  void touch(TensorRace& home, const Area& area, bool write);
  // How many multiplies and copies the current warp has issued.
  uint32_t issued() const;
  // The acting strand brings the news that so many of them are complete.
  void committed(uint32_t steps);
  void wait(bool store);
  void fence(bool after);
  void allocate(uint32_t first, uint32_t columns);
  void release(uint32_t first, uint32_t columns, const void* frame);

 private:
  // What a clock knows of a warp: multiplies issued before a fence and complete, loads and stores
  // waited for, and waited for before a fence.
  enum News : uint8_t { kIssued, kCommitted, kLoaded, kLoadFenced, kStored, kStoreFenced, kNews };
  struct Access {
    Area area;
    const char* op;
    Unit unit;
    bool write;
    uint32_t team, warp, step, site;
    dim3 block, thread;
  };

  uint32_t component(uint32_t warp, News news) const;
  bool knows(const Clock& clock, const Access& earlier, News news) const;
  bool complete(const Access& earlier) const;  // as far as the current thread knows
  bool ordered(const Access& earlier) const;   // before the instruction that has begun
  void report(const Access& now, const Access& earlier, const char* kind, const std::string& why);

  const Block& block_;
  std::vector<uint32_t> steps_[3], waited_[3];  // by unit and warp
  std::vector<Clock> ordered_;                  // by thread: what its next instruction comes after
  std::vector<Access> accesses_;                // that a later one may conflict with
  Access now_{};
};

}  // namespace vgpu
