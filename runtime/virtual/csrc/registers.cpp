// The register file of a block.
#include <algorithm>

#include "machine.h"
#include "vgpu/registers.h"

namespace vgpu {

namespace {
constexpr uint32_t kRegisterFile = 65536;  // of one multiprocessor
}

void Block::share_out_registers() {
  // What the compiler may give each thread when one block fills a multiprocessor.
  const uint32_t each = std::min(256u, kRegisterFile / (warp_count * kWarp) / 8 * 8);
  std::fill_n(registers, warp_count, each);
  free_registers = 0;
}

}  // namespace vgpu

using namespace vgpu;

void vgpu_set_registers(uint32_t per_thread, bool grow) {
  Thread& me = *current;
  Block& block = *me.block;
  uint32_t& mine = block.registers[me.warp->index];
  // The compiler may have started with fewer than these, so growing to less is no mistake.
  if (grow && per_thread <= mine) return;
  if (!grow && per_thread > mine)
    vgpu_fail("setmaxnreg.dec to %u registers, the warp's threads have at most %u", per_thread,
              mine);
  if (!grow) {
    block.free_registers += (mine - per_thread) * kWarp;
    mine = per_thread;
    for (const Thread* thread : block.register_waits)
      block.wake(*thread->warp, 1u << thread->lane);
    block.register_waits.clear();
    return;
  }
  const uint32_t needed = (per_thread - mine) * kWarp;
  while (block.free_registers < needed) {
    block.register_waits.push_back(&me);
    block.sleep(me, "registers other warps must release (setmaxnreg.inc)");
  }
  block.free_registers -= needed;
  mine = per_thread;
}
