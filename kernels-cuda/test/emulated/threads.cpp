#include "threads.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Dynamic shared memory, by every name that a kernel gives it.
extern "C" {
alignas(1024) unsigned char emulated_shared[emulated::kSharedBytes];
}
namespace ortflash {
extern unsigned char shared[emulated::kSharedBytes] __attribute__((alias("emulated_shared")));
extern unsigned char memory[emulated::kSharedBytes] __attribute__((alias("emulated_shared")));
extern float weights[emulated::kSharedBytes / 4] __attribute__((alias("emulated_shared")));
extern float accumulators[emulated::kSharedBytes / 4] __attribute__((alias("emulated_shared")));
}  // namespace ortflash

namespace emulated {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr uint8_t kPoison = 0xff;

// A fiber and where it goes on. It lives as long as the program and takes one thread after the other.
struct Running : Fiber {
  ucontext_t context{};
  jmp_buf place;
  bool started = false;
};

std::deque<Running> fibers;
Running *current;
Block *running_block;
Cluster *running_cluster;
const std::function<void()> *running_kernel;
jmp_buf scheduler;
uint64_t changes;
bool late, far_ahead;
uint32_t dynamic_bytes;
std::mt19937 order_of_turns(1);

void run_threads() {
  for (;;) {
    (*running_kernel)();
    Warp &w = warp();
    if (w.arrived > 0) fail("a lane ends while others of its warp wait in %s", w.operation);
    --running_block->live;
    current->done = true;
    progress();
    yield("its next thread");
  }
}

void resume(Running &one, int threads_across, int threads_down) {
  current = &one;
  threadIdx.x = one.thread % threads_across;
  threadIdx.y = one.thread / threads_across % threads_down;
  threadIdx.z = one.thread / threads_across / threads_down;
  if (_setjmp(scheduler) != 0) return;
  if (one.started) _longjmp(one.place, 1);
  one.started = true;
  getcontext(&one.context);
  one.context.uc_stack.ss_sp =
      mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  one.context.uc_stack.ss_size = kStackBytes;
  makecontext(&one.context, run_threads, 0);
  setcontext(&one.context);
}

// Lets every thread of a warp run until it waits.
void run_warp(size_t first_fiber, int threads, int w) {
  for (int n = w * kLanes; n < std::min(threads, (w + 1) * kLanes); ++n) {
    Running &one = fibers[first_fiber + n];
    if (!one.done) resume(one, blockDim.x, blockDim.y);
  }
}

// Runs a block's threads for as long as any of them gets on: its warps side by side, or each as far ahead of the others as
// they let it.
void run_block(Block &of, size_t first_fiber, int threads) {
  running_block = &of;
  blockIdx = of.index;
  std::vector<int> turns((threads + kLanes - 1) / kLanes);
  for (size_t n = 0; n < turns.size(); ++n) turns[n] = static_cast<int>(n);
  uint64_t before;
  do {
    before = changes;
    std::shuffle(turns.begin(), turns.end(), order_of_turns);
    for (const int w : turns) {
      uint64_t before_warp;
      do {
        before_warp = changes;
        run_warp(first_fiber, threads, w);
      } while (far_ahead && changes != before_warp);
    }
  } while (of.live > 0 && changes != before);
}

void check_bounds(const Block &of) {
  if (!of.boxes.empty()) fail("a block has ended before boxes that it asked for have come");
  unsigned char *end = emulated_shared + kSharedBytes;
  const auto *wrong = std::find_if(emulated_shared + dynamic_bytes, end, [](uint8_t x) { return x != kPoison; });
  if (wrong != end)
    fail("wrote at byte %td of shared memory, of which it has %u", wrong - emulated_shared, dynamic_bytes);
}

void run_cluster(Cluster &all, int threads) {
  running_cluster = &all;
  const bool alone = all.blocks.size() == 1;
  std::vector<uint8_t> poison(kSharedBytes, kPoison);
  for (size_t b = 0; b < all.blocks.size(); ++b) {
    Block &one = all.blocks[b];
    one.live = threads;
    one.warps.assign((threads + kLanes - 1) / kLanes, Warp{});
    one.image = poison;
    for (int n = 0; n < threads; ++n) {
      Fiber &fresh = fibers[b * threads + n];
      fresh = Fiber();
      fresh.thread = n;
      fresh.done = false;
    }
  }
  const auto live = [&] {
    return std::any_of(all.blocks.begin(), all.blocks.end(), [](const Block &one) { return one.live > 0; });
  };
  while (live()) {
    const uint64_t before = changes;
    for (size_t b = 0; b < all.blocks.size(); ++b) {
      Block &one = all.blocks[b];
      if (one.live == 0) continue;
      std::memcpy(emulated_shared, one.image.data(), kSharedBytes);
      run_block(one, b * threads, threads);
      if (one.live == 0) check_bounds(one);
      if (!alone) std::memcpy(one.image.data(), emulated_shared, kSharedBytes);
    }
    if (changes != before) continue;
    for (int n = 0; n < threads; n += kLanes) {
      const Fiber &one = fibers[n];
      if (!one.done) std::fprintf(stderr, "thread %d waits for %s\n", one.thread, one.waits_for);
    }
    fail("no thread gets on any more");
  }
}

int cluster_size(const cudaLaunchConfig_t &config) {
  for (unsigned n = 0; n < config.numAttrs; ++n) {
    if (config.attrs[n].id == cudaLaunchAttributeClusterDimension) return config.attrs[n].val.clusterDim.x;
  }
  return 1;
}

}  // namespace

Fiber &fiber() { return *current; }
Block &block() { return *running_block; }
Cluster &cluster() { return *running_cluster; }
bool is_late() { return late; }
void progress() { ++changes; }

void yield(const char *waits_for) {
  current->waits_for = waits_for;
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}

void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fflush(stdout);
  std::fprintf(stderr, "block %u,%u,%u thread %d: ", blockIdx.x, blockIdx.y, blockIdx.z, current ? current->thread : -1);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::_Exit(3);
}

void *at_address(uint32_t address, uint32_t bytes) {
  const uint32_t place = address - kFirstAddress;
  if (address < kFirstAddress || place + bytes > dynamic_bytes)
    fail("address %u is outside the block's %u bytes of shared memory", address, dynamic_bytes);
  return emulated_shared + place;
}

uint32_t address_of(const void *shared) {
  const ptrdiff_t place = static_cast<const unsigned char *>(shared) - emulated_shared;
  if (place < 0 || place > ptrdiff_t{kSharedBytes}) fail("a pointer is not into shared memory");
  return kFirstAddress + static_cast<uint32_t>(place);
}

const void *in_block(const void *shared, int rank) {
  const Block &other = running_cluster->blocks.at(rank);
  if (&other == running_block) return shared;
  return other.image.data() + (static_cast<const unsigned char *>(shared) - emulated_shared);
}

cudaError_t launch(const cudaLaunchConfig_t &config, const std::function<void()> &kernel) {
  const int across = cluster_size(config);
  const int threads = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  if (config.dynamicSmemBytes > kSharedBytes || threads == 0 || config.gridDim.x % across != 0)
    return cudaErrorInvalidConfiguration;
  while (fibers.size() < size_t(threads) * across) fibers.emplace_back();
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  dynamic_bytes = static_cast<uint32_t>(config.dynamicSmemBytes);
  running_kernel = &kernel;
  late = order_of_turns() % 2 == 0;
  far_ahead = order_of_turns() % 2 == 0;
  std::vector<uint3> first;
  for (unsigned z = 0; z < gridDim.z; ++z) {
    for (unsigned y = 0; y < gridDim.y; ++y) {
      for (unsigned x = 0; x < gridDim.x; x += across) first.push_back({x, y, z});
    }
  }
  std::shuffle(first.begin(), first.end(), order_of_turns);
  for (const uint3 &index : first) {
    Cluster all;
    all.blocks.resize(across);
    for (int n = 0; n < across; ++n) all.blocks[n].index = {index.x + n, index.y, index.z};
    run_cluster(all, threads);
  }
  return cudaSuccess;
}

}  // namespace emulated

void __syncthreads() {
  using namespace emulated;
  NamedBarrier &barrier = block().barriers[0];
  const uint64_t generation = barrier.generation;
  ++barrier.arrived;
  wait_until("__syncthreads", [&] {
    if (barrier.generation != generation) return true;
    if (barrier.arrived < block().live) return false;
    barrier.arrived = 0;
    ++barrier.generation;
    return true;
  });
}
