// The virtual GPU as a driver: modules, functions, launches, options.
#include <dlfcn.h>
#include <link.h>

#include <pthread.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <numeric>
#include <thread>

#include "counters.h"
#include "driver.h"
#include "race.h"
#include "tensor_map.h"

namespace vgpu {

namespace {

constexpr uint32_t kMaxCluster = 8;        // portable
constexpr uint64_t kMaxCooperative = 1024;

thread_local std::string last_error;
thread_local Options options;
thread_local std::vector<Range> ranges;
thread_local uint64_t error_place = 0;  // of the last error, see vgpu_error_site

struct Function {
  const LoadedModule* module;
  const Kernel* kernel;
};

struct DriverModule {
  LoadedModule loaded;
  std::vector<std::unique_ptr<Function>> functions;
};

int fail(std::string words, uint32_t site = 0) {
  last_error = std::move(words);
  error_place = site;
  return 1;
}

// Fills in where the dynamic linker put the module, and the calling OS thread's copy of its
// shared memory.
struct Placement {
  const void* inside;
  uintptr_t image_begin = 0, image_end = 0;
  char *segment_begin = nullptr, *segment_end = nullptr;
};

int visit_object(dl_phdr_info* info, size_t, void* wanted) {
  auto& placement = *static_cast<Placement*>(wanted);
  const auto inside = reinterpret_cast<uintptr_t>(placement.inside);
  uintptr_t begin = ~uintptr_t(0), end = 0;
  size_t tls_bytes = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type == PT_LOAD) {
      begin = std::min<uintptr_t>(begin, info->dlpi_addr + header.p_vaddr);
      end = std::max<uintptr_t>(end, info->dlpi_addr + header.p_vaddr + header.p_memsz);
    } else if (header.p_type == PT_TLS) {
      tls_bytes = header.p_memsz;
    }
  }
  if (inside < begin || inside >= end) return 0;
  placement.image_begin = begin;
  placement.image_end = end;
  placement.segment_begin = static_cast<char*>(info->dlpi_tls_data);
  placement.segment_end = placement.segment_begin ? placement.segment_begin + tls_bytes : nullptr;
  return 1;
}

Placement locate(const void* inside) {
  Placement placement{inside};
  dl_iterate_phdr(visit_object, &placement);
  return placement;
}

// Blocks are large and their stacks warm: OS threads borrow them from here.
class BlockPool {
 public:
  std::unique_ptr<Block> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Block>();
    auto block = std::move(free_.back());
    free_.pop_back();
    return block;
  }
  void give(std::unique_ptr<Block> block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(block));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> free_;
};

BlockPool& pool() {
  static auto* instance = new BlockPool;  // never destroyed: threads may outlive static objects
  return *instance;
}

// The number in the grid of a gang's member.
uint64_t block_number(const Launch& launch, uint64_t gang, uint32_t member) {
  const dim3 &grid = launch.grid, &shape = launch.cluster;
  const uint32_t size = shape.x * shape.y * shape.z;
  const uint64_t cluster = (gang * launch.gang + member) / size;
  const uint32_t rank = member % size;
  const uint64_t columns = grid.x / shape.x, rows = grid.y / shape.y;
  const uint64_t x = cluster % columns * shape.x + rank % shape.x;
  const uint64_t y = cluster / columns % rows * shape.y + rank / shape.x % shape.y;
  const uint64_t z = cluster / columns / rows * shape.z + rank / shape.x / shape.y;
  return x + grid.x * (y + grid.y * z);
}

// OS threads that run gangs together, one block each.
struct Team {
  Gang gang;
  pthread_barrier_t meeting;
  uint64_t turn = 0;

  Team(uint32_t size, uint32_t cluster) : gang(size, cluster) {
    pthread_barrier_init(&meeting, nullptr, size);
  }
  ~Team() { pthread_barrier_destroy(&meeting); }
};

// As member `member` of a team, or alone if there is none.
void run_blocks(Launch& launch, Team* team, uint32_t member) {
  const FaultStack fault_stack;
  auto block = pool().take();
  block->launch = &launch;
  launch.module->table->touch_shared();
  const Placement placement = locate(launch.module->table);
  block->segment_begin = placement.segment_begin;
  block->segment_end = placement.segment_end;
  std::unique_ptr<Race> race;
  std::unique_ptr<Region> shadow;
  if (launch.sanitizer) {
    race = std::make_unique<Race>(*block, *launch.sanitizer);
    shadow = std::make_unique<Region>(reinterpret_cast<uintptr_t>(block->segment_begin),
                                      reinterpret_cast<uintptr_t>(block->segment_end), race.get(),
                                      false);
  }
  block->race = race.get();
  block->shared_shadow = shadow.get();
  std::unique_ptr<Counter> counter;
  if (launch.tally) counter = std::make_unique<Counter>(*block, *launch.tally);
  block->counter = counter.get();
  for (;;) {
    uint64_t turn = 0;
    if (member == 0) turn = launch.failed || interrupted() ? launch.gangs : launch.next++;
    if (team) {
      if (member == 0) team->turn = turn;
      pthread_barrier_wait(&team->meeting);
      turn = team->turn;
      pthread_barrier_wait(&team->meeting);
    }
    if (turn >= launch.gangs) break;
    const uint64_t gang = launch.order.empty() ? turn : launch.order[turn];
    block->run(block_number(launch, gang, member), team ? &team->gang : nullptr, member);
  }
  counter.reset();  // while the block is still its
  pool().give(std::move(block));
}

int module_load(int, const void* image, size_t, void** module) {
  // Kernels look up vgpu_* in the global scope; whoever loaded this library may not have put it
  // there.
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(&module_load), &self))
    dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
  const char* path = static_cast<const char*>(image);
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return fail(std::string("the virtual GPU cannot load a kernel: ") + dlerror());
  const auto* table = static_cast<const Module*>(dlsym(handle, "vgpu_module"));
  if (!table || table->abi != kModuleAbi) {
    dlclose(handle);
    return fail(std::string(path) + " was not built by this version of the virtual GPU");
  }
  const Placement placement = locate(table);
  *module = new DriverModule{{handle, table, placement.image_begin, placement.image_end}, {}};
  return 0;
}

int module_unload(void* module) {
  auto* loaded = static_cast<DriverModule*>(module);
  dlclose(loaded->loaded.handle);
  delete loaded;
  return 0;
}

int function_get(void* module, const char* name, uint32_t dynamic_smem, void** function) {
  auto* loaded = static_cast<DriverModule*>(module);
  const Module& table = *loaded->loaded.table;
  if (dynamic_smem > kSharedCapacity)
    return fail("kernel " + std::string(name) + " asks for " + std::to_string(dynamic_smem) +
                " bytes of dynamic shared memory, a block has at most " +
                std::to_string(kSharedCapacity));
  std::string known;
  for (uint32_t i = 0; i < table.kernel_count; ++i) {
    if (std::string(table.kernels[i].name) == name) {
      loaded->functions.push_back(
          std::make_unique<Function>(Function{&loaded->loaded, &table.kernels[i]}));
      *function = loaded->functions.back().get();
      return 0;
    }
    known += (i ? ", " : "") + std::string(table.kernels[i].name);
  }
  return fail("no kernel " + std::string(name) + " in the module, it has " + known);
}

// The registered ranges, with what the kernel's signature says may be written.
std::vector<Range> ranges_of(const Kernel& kernel, void** arguments) {
  std::vector<Range> found = ranges;
  for (uint32_t i = 0; i < kernel.parameter_count; ++i) {
    const Parameter& parameter = kernel.parameters[i];
    if (!parameter.tensor_map && (!parameter.pointer || parameter.constant)) continue;
    // A tensor map does not say whether it is for loads or stores; its first word is the address.
    const auto at = *static_cast<uintptr_t*>(arguments[i]);
    for (Range& range : found)
      if (at >= range.begin && at < range.end) {
        range.writable = true;
        if (active_sanitizer) range.shadow = active_sanitizer->argument_at(range.begin);
      }
  }
  return found;
}

int launch_kernel(void* function, tp_dim3 grid, tp_dim3 cluster, tp_dim3 block,
                  uint32_t dynamic_smem, void*, void** arguments) {
  const auto& entry = *static_cast<Function*>(function);
  const std::string name = entry.kernel->name;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads)
    return fail("kernel " + name + ": a block has 1 to 1024 threads, got " +
                std::to_string(threads));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0)
    return fail("kernel " + name + ": a grid has at least one block, got " +
                std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                std::to_string(grid.z));
  if (block.z > 64 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return fail("kernel " + name + ": no GPU launches a block with z above 64 or a grid with x "
                "above 2147483647 or y or z above 65535, got block z " + std::to_string(block.z) +
                " and grid " + std::to_string(grid.x) + ", " + std::to_string(grid.y) + ", " +
                std::to_string(grid.z));
  const uint64_t cluster_size = uint64_t(cluster.x) * cluster.y * cluster.z;
  if (cluster_size < 1 || cluster_size > kMaxCluster)
    return fail("kernel " + name + ": a cluster has 1 to " + std::to_string(kMaxCluster) +
                " blocks (more is not portable), got " + std::to_string(cluster_size));
  if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z)
    return fail("kernel " + name + ": the grid is not made of whole clusters");
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (options.cooperative && blocks > kMaxCooperative)
    return fail("kernel " + name + ": at most " + std::to_string(kMaxCooperative) +
                " blocks run at once in a cooperative grid, got " + std::to_string(blocks));
  const uint64_t gang = options.cooperative ? blocks : cluster_size;
  if (dynamic_smem > kSharedCapacity)
    return fail("kernel " + name + ": dynamic shared memory is at most " +
                std::to_string(kSharedCapacity) + " bytes, got " + std::to_string(dynamic_smem));
  const Parameter* parameters = entry.kernel->parameters;
  const bool takes_pointers =
      std::any_of(parameters, parameters + entry.kernel->parameter_count,
                  [](const Parameter& parameter) { return parameter.pointer || parameter.tensor_map; });
  if (entry.module->table->checked && takes_pointers && ranges.empty())
    return fail("kernel " + name +
                " is a checked build: register the memory of its tensor arguments first");

  if (active_counting && !entry.module->table->checked)
    return fail("kernel " + name + " is not a checked build: only those are counted");

  Launch launch;
  launch.module = entry.module;
  launch.kernel = entry.kernel;
  launch.grid = {grid.x, grid.y, grid.z};
  launch.block = {block.x, block.y, block.z};
  launch.dynamic_shared = dynamic_smem;
  launch.arguments = arguments;
  launch.options = options;
  launch.ranges = ranges_of(*entry.kernel, arguments);
  launch.cluster = {cluster.x, cluster.y, cluster.z};
  launch.gang = static_cast<uint32_t>(gang);
  launch.gangs = gang ? blocks / gang : 0;
  if (launch.options.schedule != Schedule::kRing) {
    launch.order.resize(launch.gangs);
    std::iota(launch.order.begin(), launch.order.end(), 0u);
    if (launch.options.schedule == Schedule::kReverse)
      std::reverse(launch.order.begin(), launch.order.end());
    else
      std::shuffle(launch.order.begin(), launch.order.end(), std::mt19937_64(launch.options.seed));
  }

  if (active_sanitizer) {
    launch.sanitizer = active_sanitizer;
    launch.options.threads = 1;  // shadow memory is one thread's
    active_sanitizer->begin_launch();
  }
  std::unique_ptr<Tally> tally;
  if (active_counting) tally = std::make_unique<Tally>(launch.ranges);
  launch.tally = tally.get();
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const uint64_t wanted = launch.options.threads > 0 ? launch.options.threads : cores;
  const uint64_t count = std::min(wanted, launch.gangs);
  const FaultGuard guard;
  const Watchdog watchdog(launch);
  std::deque<Team> teams;
  std::vector<std::thread> helpers;
  for (uint64_t i = 0; i < count; ++i) {
    Team* team = nullptr;
    if (launch.gang > 1)
      team = &teams.emplace_back(launch.gang, static_cast<uint32_t>(cluster_size));
    for (uint32_t member = 0; member < launch.gang; ++member)
      if (i || member)
        helpers.emplace_back([&launch, team, member] { run_blocks(launch, team, member); });
  }
  if (count) run_blocks(launch, teams.empty() ? nullptr : &teams[0], 0);
  for (std::thread& helper : helpers) helper.join();
  flush_prints(launch);
  if (interrupted() && !launch.failed) return fail("kernel " + name + ": interrupted");
  if (launch.failed) return fail(launch.error, launch.error_site);
  if (tally)
    active_counting->launches.push_back({name, launch.grid, launch.block, tally->totals()});
  return 0;
}

const char* error_words(int) { return last_error.c_str(); }

int launch_cooperative(void* function, tp_dim3 grid, tp_dim3 cluster, tp_dim3 block,
                       uint32_t dynamic_smem, void* stream, void** arguments) {
  const bool before = std::exchange(options.cooperative, true);
  const int code = launch_kernel(function, grid, cluster, block, dynamic_smem, stream, arguments);
  options.cooperative = before;
  return code;
}

int encode_tensor_map(const tp_tensor_map* what, void* out) {
  const tp_tensor_map& w = *what;
  auto* map = static_cast<CUtensorMap*>(out);
  const int code =
      w.pixels ? vgpu_tensor_map_im2col(map, w.type, w.rank, w.address, w.extents, w.strides,
                                        w.lower, w.upper, w.channels, w.pixels, w.steps,
                                        w.interleave, w.swizzle, w.l2, w.fill)
               : vgpu_tensor_map_tiled(map, w.type, w.rank, w.address, w.extents, w.strides, w.box,
                                       w.steps, w.interleave, w.swizzle, w.l2, w.fill);
  return code ? fail(vgpu_tensor_map_error()) : 0;
}

const tp_driver table = {
    TILEPROOF_DRIVER_ABI, "virtual",   module_load,        module_unload,    function_get,
    launch_kernel,        error_words, launch_cooperative, encode_tensor_map};

}  // namespace

}  // namespace vgpu

thread_local vgpu::Sanitizer* vgpu::active_sanitizer = nullptr;

// Where in its module the last error of this OS thread happened, 0 if unknown.
VGPU_API uint64_t vgpu_error_site() { return vgpu::error_place; }
VGPU_API const tp_driver* vgpu_driver() { return &vgpu::table; }

// Options and argument ranges hold for launches from the calling OS thread, until changed.
VGPU_API void vgpu_set_options(int late, int schedule, uint64_t seed, int threads, uint64_t steps,
                               double seconds) {
  vgpu::options = {late != 0, static_cast<vgpu::Schedule>(schedule), seed, threads, false, steps,
                   seconds};
}

// Until options are set again.
VGPU_API void vgpu_set_cooperative() { vgpu::options.cooperative = true; }

VGPU_API void vgpu_clear_ranges() { vgpu::ranges.clear(); }

// Adds the memory of a tensor argument. Tensors that overlap become one range.
// `allocation`: where the memory it lies in begins.
VGPU_API void vgpu_register(const void* pointer, size_t bytes, const char* name,
                            const void* allocation) {
  if (!bytes) return;
  auto begin = reinterpret_cast<uintptr_t>(pointer), end = begin + bytes;
  std::string names = name;
  auto& all = vgpu::ranges;
  for (size_t i = 0; i < all.size();) {
    if (all[i].begin < end && begin < all[i].end) {
      begin = std::min(begin, all[i].begin);
      end = std::max(end, all[i].end);
      if (all[i].name != names) names = all[i].name + "/" + names;
      all.erase(all.begin() + static_cast<ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
  all.push_back({begin, end, names, false, reinterpret_cast<uintptr_t>(allocation)});
  std::sort(all.begin(), all.end(),
            [](const vgpu::Range& a, const vgpu::Range& b) { return a.begin < b.begin; });
}
