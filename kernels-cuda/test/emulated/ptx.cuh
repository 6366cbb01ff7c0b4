// In the place of kernels/ptx.cuh: what each of its instructions does, on the processor (PTX ISA 9.0).
#pragma once
#include <cuda.h>

#include <cstdint>
#include <cstring>

#include "tensor_map.h"
#include "threads.h"

namespace ortflash::ptx {

using emulated::fail;

inline uint32_t shared_address(const void *pointer) { return emulated::address_of(pointer); }

inline float exp2(float x) { return ::exp2f(x); }
inline float reciprocal(float x) { return 1.0f / x; }

// ---- Ampere -----------------------------------------------------------------------------------------------------

inline void perform(const emulated::Copy &copy) {
  void *to = emulated::at_address(copy.to, copy.bytes);
  if (copy.take) std::memcpy(to, copy.from, copy.bytes);
  else std::memset(to, 0, copy.bytes);
}

template <uint32_t kBytes>
void copy_async(uint32_t shared, const void *global, bool take) {
  if (shared % kBytes != 0 || (take && reinterpret_cast<uintptr_t>(global) % kBytes != 0)) fail("cp.async is not aligned");
  const emulated::Copy copy{shared, kBytes, global, take};
  if (emulated::is_late()) emulated::fiber().copies.open.push_back(copy);
  else perform(copy);
}

inline void copy_async_16(uint32_t shared, const void *global, bool take) { copy_async<16>(shared, global, take); }
inline void copy_async_4(uint32_t shared, const void *global, bool take) { copy_async<4>(shared, global, take); }

inline void copy_async_commit() { emulated::fiber().copies.close(); }

template <int kPending>
void copy_async_wait() {
  auto &closed = emulated::fiber().copies.closed;
  while (closed.size() > kPending) {
    for (const emulated::Copy &copy : closed.front()) perform(copy);
    closed.erase(closed.begin());
  }
}

// Row l of matrix m lies where lane 8·m + l says; lane l takes row l/4, elements 2·(l mod 4) and the next.
template <bool kTransposed>
void load_matrix(uint32_t (&r)[4], uint32_t shared) {
  struct Given {
    uint32_t address, result[4];
  } given{shared, {}};
  if (shared % 16 != 0) fail("ldmatrix is not aligned");
  emulated::together(kTransposed ? "ldmatrix.trans" : "ldmatrix", given, [](Given *const(&all)[emulated::kLanes]) {
    for (int m = 0; m < 4; ++m) {
      uint16_t matrix[8][8];
      for (int row = 0; row < 8; ++row)
        std::memcpy(matrix[row], emulated::at_address(all[8 * m + row]->address, 16), 16);
      for (int lane = 0; lane < emulated::kLanes; ++lane) {
        const int i = lane / 4, j = lane % 4 * 2;
        const uint32_t low = kTransposed ? matrix[j][i] : matrix[i][j];
        const uint32_t high = kTransposed ? matrix[j + 1][i] : matrix[i][j + 1];
        all[lane]->result[m] = low | high << 16;
      }
    }
  });
  std::memcpy(r, given.result, sizeof r);
}

inline void load_matrix_x4(uint32_t (&r)[4], uint32_t shared) { load_matrix<false>(r, shared); }
inline void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t shared) { load_matrix<true>(r, shared); }

// Ties go away from zero.
inline uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const bool finite = (bits >> 23 & 0xff) != 0xff;
  return (finite ? bits + 0x1000 : bits) & ~uint32_t{0x1fff};
}

// What a lane gives to a warp's matrix product.
struct Fragments {
  float *d;
  const uint32_t *a;
  uint32_t b[2];
};

struct Half {
  static float low(uint32_t pair) { return __half2float(__half(__half_raw{static_cast<uint16_t>(pair)})); }
};
struct Bfloat16 {
  static float low(uint32_t pair) {
    const uint32_t bits = pair << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
};

// Of a 16×8×16 product: lane l holds of A rows l/4 (r even) and l/4 + 8 (odd), columns 2·(l mod 4) and the next (r < 2) and
// those 8 further; of B the same rows of column l/4; of D rows as of A, columns 2·(l mod 4) and the next.
template <typename Type>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fragments given{d, a, {b0, b1}};
  emulated::together("mma", given, [](Fragments *const(&all)[emulated::kLanes]) {
    float left[16][16], right[16][8], sum[16][8];
    for (int lane = 0; lane < emulated::kLanes; ++lane) {
      const Fragments &own = *all[lane];
      const int row = lane / 4, column = lane % 4 * 2;
      for (int half = 0; half < 2; ++half) {
        for (int r = 0; r < 4; ++r)
          left[row + r % 2 * 8][column + r / 2 * 8 + half] = Type::low(own.a[r] >> 16 * half);
        for (int r = 0; r < 2; ++r) {
          right[column + 8 * r + half][row] = Type::low(own.b[r] >> 16 * half);
          sum[row + 8 * r][column + half] = own.d[2 * r + half];
        }
      }
    }
    for (int i = 0; i < 16; ++i) {
      for (int k = 0; k < 16; ++k) {
        for (int j = 0; j < 8; ++j) sum[i][j] += left[i][k] * right[k][j];
      }
    }
    for (int lane = 0; lane < emulated::kLanes; ++lane) {
      for (int e = 0; e < 4; ++e) all[lane]->d[e] = sum[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
    }
  });
}

inline void multiply_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<Half>(d, a, b0, b1);
}
inline void multiply_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<Bfloat16>(d, a, b0, b1);
}

// Of a 16×8×8 product: lane l holds of A rows l/4 (r even) and l/4 + 8 (odd), columns l mod 4 (r < 2) and 4 further; of B row
// l mod 4 and 4 further, column l/4; D as above.
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fragments given{d, a, {b0, b1}};
  emulated::together("mma.tf32", given, [](Fragments *const(&all)[emulated::kLanes]) {
    const auto number = [](uint32_t bits) {
      if (bits & 0x1fff) fail("an operand that is not tf32");
      float x;
      std::memcpy(&x, &bits, 4);
      return x;
    };
    for (int lane = 0; lane < emulated::kLanes; ++lane) {
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
        for (int k = 0; k < 8; ++k) {
          all[lane]->d[e] += number(all[row % 8 * 4 + k % 4]->a[row / 8 + k / 4 * 2]) *
                             number(all[column * 4 + k % 4]->b[k / 4]);
        }
      }
    }
  });
}

// ---- Hopper -----------------------------------------------------------------------------------------------------

// An mbarrier: the arrivals and bytes that its phase still waits for.
struct Barrier {
  uint16_t pending, arrivals;
  int32_t bytes : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(Barrier) == 8);

inline Barrier read_barrier(const uint64_t *at) {
  emulated::address_of(at);
  Barrier barrier;
  std::memcpy(&barrier, at, 8);
  return barrier;
}

inline void write_barrier(uint64_t *at, Barrier barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.pending = barrier.arrivals;
    barrier.phase ^= 1;
  }
  std::memcpy(at, &barrier, 8);
  emulated::progress();
}

inline void barrier_init(uint64_t *at, uint32_t arrivals) {
  write_barrier(at, {static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0, 0});
}

inline void barrier_init_fence() {}

inline void barrier_arrive_with(uint64_t *at, uint32_t bytes) {
  Barrier barrier = read_barrier(at);
  if (barrier.pending == 0) fail("more arrive at a barrier than it was made for");
  --barrier.pending;
  barrier.bytes += static_cast<int32_t>(bytes);
  write_barrier(at, barrier);
}

inline void barrier_expect(uint64_t *at, uint32_t bytes) { barrier_arrive_with(at, bytes); }
inline void barrier_arrive(uint64_t *at) { barrier_arrive_with(at, 0); }

inline void barrier_deliver(uint64_t *at, uint32_t bytes) {
  Barrier barrier = read_barrier(at);
  barrier.bytes -= static_cast<int32_t>(bytes);
  write_barrier(at, barrier);
}

inline void barrier_wait(uint64_t *at, uint32_t parity) {
  emulated::wait_until("an mbarrier", [&] {
    if (read_barrier(at).phase != parity) return true;
    // Boxes that come as late as they can come now.
    auto &boxes = emulated::block().boxes;
    for (size_t n = 0; n < boxes.size();) {
      if (boxes[n].barrier != at) {
        ++n;
        continue;
      }
      boxes[n].deliver();
      boxes.erase(boxes.begin() + n);
    }
    return read_barrier(at).phase != parity;
  });
}

inline void tensor_copy(void *shared, const CUtensorMap *map, uint64_t *barrier, int dimension, int sequence, int head,
                        int batch) {
  const auto deliver = [=] {
    const int at[4] = {dimension, sequence, head, batch};
    barrier_deliver(barrier, emulated::copy_box(shared_address(shared), *map, at));
  };
  if (emulated::is_late()) emulated::block().boxes.push_back({barrier, deliver});
  else deliver();
}

inline void prefetch_tensor_map(const CUtensorMap *) {}
inline void fence_shared_async() {}
template <int kRegisters>
void registers_increase() {}
template <int kRegisters>
void registers_decrease() {}

// Counts at a hardware barrier; the last to come frees those that wait.
inline bool arrive_at(emulated::NamedBarrier &barrier, int threads) {
  emulated::progress();
  if (++barrier.arrived < threads) return false;
  barrier.arrived = 0;
  ++barrier.generation;
  return true;
}

inline void named_barrier_arrive(int id, int threads) { arrive_at(emulated::block().barriers[id], threads); }

inline void named_barrier_wait(int id, int threads) {
  emulated::NamedBarrier &barrier = emulated::block().barriers[id];
  const uint64_t generation = barrier.generation;
  if (!arrive_at(barrier, threads))
    emulated::wait_until("a named barrier", [&] { return barrier.generation != generation; });
}

inline void cluster_arrive() {
  emulated::Cluster &all = emulated::cluster();
  emulated::fiber().cluster_generation = all.generation;
  int live = 0;
  for (const emulated::Block &one : all.blocks) live += one.live;
  emulated::progress();
  if (++all.arrived < live) return;
  all.arrived = 0;
  ++all.generation;
}

inline void cluster_wait() {
  emulated::wait_until("the cluster",
                       [] { return emulated::cluster().generation != emulated::fiber().cluster_generation; });
}

inline float load_cluster(const float *shared, int block) {
  float x;
  std::memcpy(&x, emulated::in_block(shared, block), 4);
  return x;
}

inline void wait_for_prerequisites() {}

}  // namespace ortflash::ptx
