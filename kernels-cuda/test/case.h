// Random calls of the attention kernels: sizes off every tile boundary, layouts, masks and options, with NaN wherever the
// kernels must not read.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../include/ortflash_attention.h"

#define CHECK_CUDA(call)                                                                          \
  do {                                                                                            \
    const cudaError_t error_ = (call);                                                            \
    if (error_ != cudaSuccess) {                                                                  \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_));        \
      std::exit(2);                                                                               \
    }                                                                                             \
  } while (0)

namespace harness {

using Random = std::mt19937_64;

inline int between(Random &random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
inline bool chance(Random &random, double p) { return std::uniform_real_distribution<double>()(random) < p; }
template <typename T>
T pick(Random &random, std::initializer_list<T> values) {
  return values.begin()[between(random, 0, static_cast<int>(values.size()) - 1)];
}

inline int element_bytes(int element) { return element == ORTFLASH_FLOAT32 ? 4 : 2; }

// Rounds to the element type's bits.
inline uint32_t encode(int element, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (element == ORTFLASH_FLOAT32) return bits;
  if (element == ORTFLASH_BFLOAT16) {
    if (std::isnan(x)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  const __half half = __float2half_rn(x);
  uint16_t short_bits;
  std::memcpy(&short_bits, &half, 2);
  return short_bits;
}

// Device memory whose every byte was 0xff (NaN in every float type) before data came in.
struct Buffer {
  void *data = nullptr;
  size_t bytes = 0;
  std::vector<uint8_t> host;

  Buffer() = default;
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() { cudaFree(data); }

  void reserve(size_t size) {
    bytes = size + 256;  // beyond the end lies poison, too
    host.assign(bytes, 0xff);
    CHECK_CUDA(cudaMalloc(&data, bytes));
  }
  void put(int element, int64_t index, float x) {
    const uint32_t bits = encode(element, x);
    std::memcpy(host.data() + index * element_bytes(element), &bits, element_bytes(element));
  }
  void upload() { CHECK_CUDA(cudaMemcpy(data, host.data(), bytes, cudaMemcpyHostToDevice)); }
};

// A strided tensor (B, H, S, D): axes in some order of memory, gaps between, a first element that may be unaligned.
struct Strided {
  OrtFlashTensor view{};
  int64_t offset = 0, elements = 0;

  Strided(Random &random, int batch, int heads, int sequence, int dimension, bool tidy) {
    static const int orders[][4] = {{0, 1, 2, 3}, {0, 2, 1, 3}, {2, 0, 1, 3}, {0, 1, 3, 2}};  // of B, H, S, D; inner last
    const int *order = orders[tidy ? between(random, 0, 2) : between(random, 0, 3)];
    const int sizes[4] = {batch, heads, sequence, dimension};
    int64_t strides[4], extent = 1;
    for (int n = 3; n >= 0; --n) {
      strides[order[n]] = extent;
      extent *= sizes[order[n]];
      if (chance(random, 0.3)) extent += tidy ? 8 * between(random, 0, 3) : between(random, 0, 9);
    }
    view = {nullptr, strides[0], strides[1], strides[2], strides[3]};
    offset = chance(random, 0.5) ? 0 : tidy ? 8 * between(random, 1, 5) : between(random, 1, 40);
    elements = offset + extent;
  }
  int64_t at(int b, int h, int s, int d) const {
    return offset + b * view.batch + h * view.head + s * view.sequence + d * view.dimension;
  }
};

// What a random call has to be like for a candidate kernel (candidates/) to serve it.
struct Wish {
  int element, dimension;  // OrtFlashElement; the tile's: the call's are of it
  bool bias;               // an additive mask with rows of 16-byte pieces; else nothing between product and softmax
  bool few_queries;
};

}  // namespace harness
