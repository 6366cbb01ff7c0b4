// Included before every other file where kernels are compiled for the processor: CUDA C++'s own words and functions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "threads.h"

// How sources are copied for this: `extern __shared__` has become `extern`, and other __shared__ static.
#undef __global__
#undef __device__
#undef __grid_constant__
#undef __launch_bounds__
#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

using std::max;
using std::min;

inline void __threadfence() {}
inline void __syncwarp() {
  char nothing = 0;
  emulated::together("__syncwarp", nothing, [](auto &) {});
}
void __syncthreads();

template <typename T>
T __shfl_sync(unsigned, T x, int from) {
  struct Given {
    T x, result;
    int from;
  } given{x, x, from & 31};
  emulated::together("__shfl_sync", given, [](Given *const(&all)[emulated::kLanes]) {
    for (Given *one : all) one->result = all[one->from]->x;
  });
  return given.result;
}

template <typename T>
T __shfl_xor_sync(unsigned lanes_of_warp, T x, int lanes) {
  return __shfl_sync(lanes_of_warp, x, emulated::lane() ^ lanes);
}

inline int __any_sync(unsigned, int holds) {
  int given = holds;
  emulated::together("__any_sync", given, [](int *const(&all)[emulated::kLanes]) {
    int any = 0;
    for (const int *one : all) any |= *one != 0;
    for (int *one : all) *one = any;
  });
  return given;
}

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

template <typename T>
T __ldcg(const T *from) {
  return *from;
}

template <typename T>
T atomicAdd(T *to, T x) {
  const T was = *to;
  *to += x;
  return was;
}

template <typename T>
T atomicCAS(T *to, T expected, T wanted) {
  const T was = *to;
  if (was == expected) *to = wanted;
  return was;
}

template <typename T>
cudaError_t cudaMalloc(T **pointer, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void **>(pointer), bytes);
}

template <typename... Formal, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Formal...), Actual &&...arguments) {
  const std::tuple<std::decay_t<Formal>...> given(arguments...);
  return emulated::launch(*config, [&] { std::apply(kernel, given); });
}

template <typename... Formal>
cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, void (*)(Formal...), const cudaLaunchConfig_t *) {
  *clusters = 1;
  return cudaSuccess;
}
