// Every PTX instruction the kernels use, one wrapper each, with what it does. wgmma has its own header, wgmma.cuh.
#pragma once
#include <cstdint>
#include <cuda.h>

namespace ortflash::ptx {

// Address of shared memory as the 32-bit number that PTX takes.
__device__ inline uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 2^x, one instruction, relative error 2^-22.
__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1/x, one instruction.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- Ampere: asynchronous copies and warp matrices --------------------------------------------------------------

// Copies 16 bytes global → shared in the background; writes zeros, and reads nothing, where `take` is false.
__device__ inline void copy_async_16(uint32_t shared, const void *global, bool take) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(take ? 16 : 0));
}

// The same of 4 bytes, by way of the multiprocessor's cache.
__device__ inline void copy_async_4(uint32_t shared, const void *global, bool take) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(take ? 4 : 0));
}

// Closes the group of copies issued so far by this thread.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;"); }

// Waits until at most `kPending` groups of this thread are still under way.
template <int kPending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Loads four 8×8 matrices of 16-bit elements from shared memory into fragments; lane l gives row l mod 8 of matrix l/8.
__device__ inline void load_matrix_x4(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

// The same, each matrix transposed.
__device__ inline void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

// D = A·B + D for one 16×8 tile: A 16×16 row-major, B 16×8 column-major, both float16; D in float32.
__device__ inline void multiply_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of bfloat16.
__device__ inline void multiply_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The float32 nearest to x that has 10 bits behind the point, as operand.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// D = A·B + D for one 16×8 tile of tf32: A 16×8 row-major, B 8×8 column-major, D in float32.
__device__ inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Hopper: barriers in shared memory, bulk tensor copies, register reallocation -------------------------------

// Makes an mbarrier that completes a phase after `arrivals` arrivals and all bytes expected in it.
__device__ inline void barrier_init(uint64_t *barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

// Makes the barriers' initial state visible to the copy engine.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and announces bytes that the copy engine will deliver in this phase.
__device__ inline void barrier_expect(uint64_t *barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ inline void barrier_arrive(uint64_t *barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Waits for the completion of the phase with this parity.
__device__ inline void barrier_wait(uint64_t *barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra ready;\n"
      "bra wait;\n"
      "ready:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Copies one box of a rank-4 tensor global → shared through the copy engine; elements outside the tensor become zeros.
__device__ inline void tensor_copy(void *shared, const CUtensorMap *map, uint64_t *barrier, int dimension, int sequence,
                                   int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(dimension), "r"(sequence), "r"(head), "r"(batch)
      : "memory");
}

// Fetches a tensor map into its cache ahead of the first copy.
__device__ inline void prefetch_tensor_map(const CUtensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Makes ordinary stores to shared memory visible to wgmma and the copy engine.
__device__ inline void fence_shared_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Gives this warpgroup more registers a thread; waits until they are free.
template <int kRegisters>
__device__ inline void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Hands registers of this warpgroup back.
template <int kRegisters>
__device__ inline void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Waits at hardware barrier `id` until `threads` threads have arrived or wait there.
__device__ inline void named_barrier_wait(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Arrives at hardware barrier `id` without waiting.
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Hopper: clusters of blocks, and launches that overlap; none of it in code for older devices ------------------

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define ORTFLASH_FROM_90(...) __trap()
#else
#define ORTFLASH_FROM_90(...) __VA_ARGS__
#endif

// Arrives at the cluster's barrier; makes this thread's stores to shared memory visible to those that wait.
__device__ inline void cluster_arrive() {
  ORTFLASH_FROM_90(asm volatile("barrier.cluster.arrive.release;" ::: "memory"));
}

// Waits until all threads of the cluster have arrived.
__device__ inline void cluster_wait() {
  ORTFLASH_FROM_90(asm volatile("barrier.cluster.wait.acquire;" ::: "memory"));
}

// What another block of the cluster has at the place of `shared`.
__device__ inline float load_cluster(const float *shared, int block) {
  float x = 0.0f;
  ORTFLASH_FROM_90(asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [there];\n}"
      : "=f"(x)
      : "r"(shared_address(shared)), "r"(block)
      : "memory"));
  return x;
}

// Waits until the kernels that this one overlaps with have ended and what they wrote is visible.
__device__ inline void wait_for_prerequisites() {
  ORTFLASH_FROM_90(asm volatile("griddepcontrol.wait;" ::: "memory"));
}

#undef ORTFLASH_FROM_90

}  // namespace ortflash::ptx
