// The operator's formula (graph-rewrite/op/definition.ts) in double precision, kLanes threads a query row, plain loops: shares
// nothing with the kernels that it judges.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "../include/ortflash_attention.h"

namespace reference {

__device__ inline double number(const void *data, int element, int64_t index) {
  if (element == ORTFLASH_FLOAT16) return __half2float(static_cast<const __half *>(data)[index]);
  if (element == ORTFLASH_BFLOAT16) return __bfloat162float(static_cast<const __nv_bfloat16 *>(data)[index]);
  return static_cast<const float *>(data)[index];
}

// Element (b, h, j, d) of keys or values, past ones first.
__device__ inline double cached(const OrtFlashAttention &c, const void *past, const OrtFlashTensor &added, int dimension,
                                int64_t b, int64_t h, int64_t j, int64_t d) {
  if (j < c.past_keys) return number(past, c.element, ((b * c.key_heads + h) * c.past_keys + j) * dimension + d);
  return number(added.data, c.element,
                b * added.batch + h * added.head + (j - c.past_keys) * added.sequence + d * added.dimension);
}

// Threads that share a row: a warp, or where threads are dear, one.
#ifndef REFERENCE_LANES
#define REFERENCE_LANES 32
#endif
constexpr int kLanes = REFERENCE_LANES;

__device__ inline double sum_lanes(double x) {
  for (int lane = kLanes / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

__device__ inline double score(const OrtFlashAttention &c, int b, int h, int i, int j) {
  const int keys = c.past_keys + c.new_keys;
  const int64_t length = c.key_lengths ? c.key_lengths[b] : keys;
  const int64_t offset = c.align_end ? keys - c.queries : c.key_lengths ? length - c.queries : c.past_keys;
  const int64_t position = i + offset, at = (b % max(c.mask.batches, 1)) * c.mask.batch + h * c.mask.head +
                                            i * c.mask.query + j * c.mask.key;
  bool out = j >= length || (c.is_causal && j > position);
  out = out || (c.left_window >= 0 && j < position - c.left_window);
  out = out || (c.right_window >= 0 && j > position + c.right_window);
  out = out || (c.mask.kind != ORTFLASH_MASK_NONE && j >= c.mask.keys);
  if (!out && c.mask.kind == ORTFLASH_MASK_BOOLEAN) out = static_cast<const uint8_t *>(c.mask.data)[at] == 0;
  if (out) return c.masked_value;
  double dot = 0;
  for (int d = threadIdx.x % kLanes; d < c.head_dimension; d += kLanes) {
    dot += number(c.query.data, c.element,
                  b * c.query.batch + h * c.query.head + i * c.query.sequence + d * c.query.dimension) *
           cached(c, c.past_key, c.key, c.head_dimension, b, h / (c.query_heads / c.key_heads), j, d);
  }
  double s = sum_lanes(dot) * static_cast<double>(c.scale);
  if (c.softcap > 0) s = c.softcap * tanh(s / c.softcap);
  if (c.mask.kind == ORTFLASH_MASK_ADDITIVE) s += number(c.mask.data, c.element, at);
  return s;
}

// output, magnitude: (B, H, queries, Dv), Σ p·v and Σ p·|v|; lse: (B, H, queries). Blocks of kLanes threads.
__global__ void attention(OrtFlashAttention c, double *output, double *magnitude, double *lse) {
  const int64_t row = blockIdx.x;
  const int i = row % c.queries, h = row / c.queries % c.query_heads, b = row / c.queries / c.query_heads;
  const int keys = c.past_keys + c.new_keys, dimension = c.value_dimension;
  const double sink = c.sink ? number(c.sink, c.element, h) : -INFINITY;
  double highest = sink;
  for (int j = 0; j < keys; ++j) highest = fmax(highest, score(c, b, h, i, j));
  for (int d = threadIdx.x; d < dimension; d += kLanes) output[row * dimension + d] = magnitude[row * dimension + d] = 0;
  if (highest == -INFINITY) {
    lse[row] = -INFINITY;
    return;
  }
  double sum = exp(sink - highest);
  for (int j = 0; j < keys; ++j) {
    const double weight = exp(score(c, b, h, i, j) - highest);
    sum += weight;
    if (weight == 0) continue;
    for (int d = threadIdx.x; d < dimension; d += kLanes) {
      const double v = cached(c, c.past_value, c.value, dimension, b, h / (c.query_heads / c.key_heads), j, d);
      output[row * dimension + d] += weight * v;
      magnitude[row * dimension + d] += weight * fabs(v);
    }
  }
  for (int d = threadIdx.x; d < dimension; d += kLanes) {
    output[row * dimension + d] /= sum;
    magnitude[row * dimension + d] /= sum;
  }
  lse[row] = highest + log(sum);
}

}  // namespace reference
