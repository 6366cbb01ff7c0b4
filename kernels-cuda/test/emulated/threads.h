// CUDA's threads on one processor, so that the kernels' own sources run where there is no GPU: each thread of a block is a
// fiber that runs until it waits. Blocks run one after the other, those of a cluster together.
//
// What can happen at several times on a GPU happens here early or late, drawn for each launch: copies in the background
// when they are asked for or only when they are waited for. Warps go on in an order drawn anew in every round, side by
// side or each as far ahead as the others let it.
// Shared memory is poison before each block. A wait without end, lanes that part before a warp's instruction and an
// address outside shared memory end the program with what was wrong.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace emulated {

constexpr int kLanes = 32;
// As much as a block of compute capability 9.0 can have, and where it begins: aligned to 128 bytes and no further.
constexpr uint32_t kSharedBytes = 232448, kFirstAddress = 1024 + 128;

// 4 or 16 bytes on their way to shared memory (cp.async).
struct Copy {
  uint32_t to, bytes;
  const void *from;
  bool take;
};

struct Fiber;

// A matrix product on its way (wgmma); `multiply` does one of a warp, given the products of its lanes.
struct Product {
  float *d;
  const uint32_t *a;  // registers, or null
  uint64_t a_operand, b_operand;
  bool add;
  void (*multiply)(const Product *const (&lanes)[kLanes]);
};

// What a thread has asked for in the background: closed groups, then the open one.
template <typename Asked>
struct Groups {
  std::vector<std::vector<Asked>> closed;
  std::vector<Asked> open;
  void close() {
    closed.push_back(std::move(open));
    open.clear();
  }
};

struct Warp {
  int arrived = 0;
  uint64_t generation = 0;
  const char *operation = nullptr;
  void *given[kLanes] = {};
};

struct NamedBarrier {
  int arrived = 0;
  uint64_t generation = 0;
};

// A box that the copy engine brings (cp.async.bulk.tensor), and the barrier that hears of it.
struct BoxCopy {
  uint64_t *barrier;
  std::function<void()> deliver;
};

struct Block {
  uint3 index{};
  int live = 0;
  std::vector<Warp> warps;
  NamedBarrier barriers[16];
  std::vector<BoxCopy> boxes;
  std::vector<uint8_t> image;  // its shared memory while another block of its cluster runs
};

struct Cluster {
  std::vector<Block> blocks;
  int arrived = 0;
  uint64_t generation = 0;
};

// The thread that runs.
struct Fiber {
  int thread = 0;
  bool done = true;
  const char *waits_for = "";
  Groups<Copy> copies;
  Groups<Product> products;
  uint64_t cluster_generation = 0;
};

Fiber &fiber();
Block &block();
Cluster &cluster();
// Whether this launch's background work is done as late as it can be.
bool is_late();
// Says that something has changed for which others may wait.
void progress();
// Lets the other threads run.
void yield(const char *waits_for);
[[noreturn]] void fail(const char *format, ...);

// Waits until `holds()`.
template <typename Holds>
void wait_until(const char *what, Holds holds) {
  while (!holds()) yield(what);
  progress();
}

inline int lane() { return fiber().thread % kLanes; }
inline Warp &warp() { return block().warps[fiber().thread / kLanes]; }

// One instruction of a whole warp: `act` runs once, with what each lane gives.
template <typename Given, typename Act>
void together(const char *operation, Given &given, Act act) {
  Warp &w = warp();
  if (w.arrived > 0 && w.operation != operation)
    fail("lanes of a warp have parted: %s beside %s", operation, w.operation);
  w.operation = operation;
  w.given[lane()] = &given;
  if (++w.arrived < kLanes) {
    const uint64_t generation = w.generation;
    progress();
    while (w.generation == generation) yield(operation);
    return;
  }
  Given *all[kLanes];
  for (int n = 0; n < kLanes; ++n) all[n] = static_cast<Given *>(w.given[n]);
  w.arrived = 0;
  ++w.generation;
  progress();
  act(all);
}

// Shared memory by its 32-bit address.
void *at_address(uint32_t address, uint32_t bytes);
uint32_t address_of(const void *shared);
// What block `rank` of the cluster has at this place.
const void *in_block(const void *shared, int rank);

cudaError_t launch(const cudaLaunchConfig_t &config, const std::function<void()> &kernel);

}  // namespace emulated
