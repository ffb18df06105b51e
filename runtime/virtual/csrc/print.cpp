// printf of kernels: kept per block, so that what comes out does not depend on the OS threads.
#include <cstdarg>

#include "machine.h"

namespace vgpu {

void flush_prints(Launch& launch) {
  for (const auto& [block, words] : launch.printed) fwrite(words.data(), 1, words.size(), stdout);
  launch.printed.clear();
  fflush(stdout);
}

}  // namespace vgpu

int vgpu_print(const char* format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int length = vsnprintf(nullptr, 0, format, again);
  va_end(again);
  std::string words(static_cast<size_t>(length) + 1, '\0');
  vsnprintf(words.data(), words.size(), format, arguments);
  va_end(arguments);
  words.pop_back();
  const vgpu::Block& block = *vgpu::current->block;
  vgpu::Launch& launch = *block.launch;
  const std::lock_guard<std::mutex> lock(launch.mutex);
  const uint64_t rows = uint64_t(launch.grid.y) * block.id.z + block.id.y;
  launch.printed[rows * launch.grid.x + block.id.x] += words;
  return length;
}
