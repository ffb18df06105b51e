// Findings, the places they name, and the C interface of a sanitize session.
#include <sys/mman.h>

#include <mutex>

#include "race.h"

namespace vgpu {

void Sanitizer::report(Finding finding) {
  const std::string key = finding.kind + "/" + finding.kernel + "/" + std::to_string(finding.site) +
                          "/" + std::to_string(finding.other_site);
  const auto [known, is_new] = known_.try_emplace(key, findings_.size());
  if (!is_new) {
    if (known->second < findings_.size()) ++findings_[known->second].count;
  } else if (findings_.size() < limit_) {
    findings_.push_back(std::move(finding));
  } else {
    ++dropped_;
  }
}

void Sanitizer::begin_launch() {
  first_team = static_cast<uint32_t>(block_of_team.size());
  atomics.clear();
  for (const auto& region : arguments) {
    region->readers.clear();
    region->stamp = first_team;
  }
}

std::string where(const Block& block, uintptr_t at) {
  const auto inside = [at](const char* begin, size_t bytes) {
    return begin && at >= reinterpret_cast<uintptr_t>(begin) &&
           at < reinterpret_cast<uintptr_t>(begin) + bytes;
  };
  const uint32_t cluster = block.cluster_size(), first = block.rank - block.rank % cluster;
  for (uint32_t rank = 0; rank < cluster; ++rank) {
    const Block& owner = block.gang ? *block.gang->member(first + rank) : block;
    const std::string whose =
        &owner == &block ? "" : " of block rank " + std::to_string(rank) + " of the cluster";
    if (inside(owner.shared, kSharedCapacity))
      return "dynamic shared memory at offset " +
             std::to_string(at - reinterpret_cast<uintptr_t>(owner.shared)) + whose;
    if (inside(owner.segment_begin, static_cast<size_t>(owner.segment_end - owner.segment_begin)))
      return "static shared memory" + whose;
  }
  for (const Range& range : block.launch->ranges)
    if (at >= range.begin && at < range.end)
      return "argument '" + range.name + "' at byte offset " + std::to_string(at - range.begin);
  return "memory";
}

uint32_t site_of(const Block& block, const void* frame, uintptr_t pc) {
  const LoadedModule& module = *block.launch->module;
  uint32_t innermost = 0;
  while (true) {
    if (pc >= module.image_begin && pc < module.image_end) {
      // A return address is one past its call.
      const auto site = static_cast<uint32_t>(pc - 1 - module.image_begin);
      if (module.table->text_begin <= reinterpret_cast<const char*>(pc) &&
          reinterpret_cast<const char*>(pc) <= module.table->text_end)
        return site;
      if (!innermost) innermost = site;
    }
    const auto* record = static_cast<const uintptr_t*>(frame);  // the caller's, then where to return
    if (frame < block.stacks_begin || frame >= block.stacks_end - 2 * sizeof *record) return innermost;
    pc = record[1];
    if (record[0] <= reinterpret_cast<uintptr_t>(frame)) frame = nullptr;
    else frame = reinterpret_cast<const void*>(record[0]);
  }
}

}  // namespace vgpu

using namespace vgpu;

namespace {

// As `_Finding` of sanitizer.py reads it. Strings live as long as the session.
struct PlainFinding {
  const char *kind, *kernel, *words, *other;
  uint32_t block[3], thread[3], site;
  uint32_t other_block[3], other_thread[3], other_site;
  uint32_t by_thread, has_other, other_by_thread;
  uint64_t count;
};

void fill(uint32_t (&out)[3], const dim3& v) { out[0] = v.x, out[1] = v.y, out[2] = v.z; }

}  // namespace

VGPU_API void* vgpu_sanitizer_new(size_t limit) { return new Sanitizer(limit); }
VGPU_API void vgpu_sanitizer_delete(void* session) { delete static_cast<Sanitizer*>(session); }

// The session launches from this OS thread report to, null for none.
VGPU_API void vgpu_sanitizer_use(void* session) {
  active_sanitizer = static_cast<Sanitizer*>(session);
}

VGPU_API void vgpu_sanitizer_argument(void* session, const void* pointer, size_t bytes,
                                      bool initialised) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  if (bytes) static_cast<Sanitizer*>(session)->add_argument(begin, begin + bytes, initialised);
}

VGPU_API size_t vgpu_sanitizer_count(const void* session) {
  return static_cast<const Sanitizer*>(session)->findings().size();
}
VGPU_API uint64_t vgpu_sanitizer_dropped(const void* session) {
  return static_cast<const Sanitizer*>(session)->dropped();
}
VGPU_API void vgpu_sanitizer_finding(const void* session, size_t index, void* out) {
  const Finding& f = static_cast<const Sanitizer*>(session)->findings()[index];
  auto& plain = *static_cast<PlainFinding*>(out);
  plain = {f.kind.c_str(), f.kernel.c_str(), f.words.c_str(), f.other.c_str(), {}, {}, f.site, {},
           {}, f.other_site, f.by_thread, f.has_other, f.other_thread_known,
           f.count};
  fill(plain.block, f.block), fill(plain.thread, f.thread);
  fill(plain.other_block, f.other_block), fill(plain.other_thread, f.other_thread);
}

// The first byte of an argument that nothing has written, -1 if there is none.
VGPU_API int64_t vgpu_sanitizer_unwritten(void* session, const void* pointer) {
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  const Region* region = static_cast<Sanitizer*>(session)->argument_at(at);
  if (!region || !region->written) return -1;
  const uint8_t* written = region->written.get();
  const size_t size = region->end - region->begin;
  const auto* found = static_cast<const uint8_t*>(memchr(written, 0, size));
  return found ? found - written : -1;
}

// Memory far from everything else: any 32-bit index, times eight bytes, that leaves it on either
// side meets addresses that do not exist.
static constexpr size_t kRedZone = size_t(16) << 30;

VGPU_API void* vgpu_guarded_new(size_t bytes) {
  char* all = static_cast<char*>(mmap(nullptr, 2 * kRedZone + bytes, PROT_NONE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (all == MAP_FAILED) return nullptr;
  if (mprotect(all + kRedZone, bytes, PROT_READ | PROT_WRITE)) {
    munmap(all, 2 * kRedZone + bytes);
    return nullptr;
  }
  return all + kRedZone;
}
VGPU_API void vgpu_guarded_delete(void* memory, size_t bytes) {
  munmap(static_cast<char*>(memory) - kRedZone, 2 * kRedZone + bytes);
}
