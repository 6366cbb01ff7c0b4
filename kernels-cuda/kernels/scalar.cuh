// Online softmax (FlashAttention, algorithm 1) with one warp a query row and one key at a time: serves what the tiled
// kernels do not, above all head dimensions over 256. Any element type, any strides.
#pragma once
#include "softmax.cuh"

namespace ortflash {

constexpr int kScalarWarps = 4;

__device__ inline float reduce_warp(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

// Shared memory: one float a value dimension for each warp.
template <typename Element>
__global__ void __launch_bounds__(kScalarWarps * 32) scalar_attention(const __grid_constant__ AttentionParams p) {
  using Ops = ElementOps<Element>;
  extern __shared__ float accumulators[];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kScalarWarps + threadIdx.x / 32;
  if (row >= static_cast<int64_t>(p.batch) * p.query_heads * p.queries) return;
  const int i = row % p.queries, h = row / p.queries % p.query_heads, b = row / p.queries / p.query_heads;
  const int lane = lane_id(), key_head = h / p.heads_per_key;
  float *output = accumulators + threadIdx.x / 32 * p.value_dimension;
  for (int d = lane; d < p.value_dimension; d += 32) output[d] = 0.0f;

  auto base = [&](const OrtFlashTensor &t, int head) {
    return static_cast<Element *>(t.data) + b * t.batch + head * t.head;
  };
  const Element *query = base(p.query, h) + i * p.query.sequence;
  const Element *keys = base(p.key, key_head), *values = base(p.value, key_head);
  const Visibility visibility(p, b);
  const KeyRange visible = visibility.of(i), visit = visibility.to_visit(p, i, i);
  const int64_t mask_row = mask_row_of(p, b, h, i);

  RowSoftmax<true> softmax;
  for (int j = visit.begin; j < visit.end; ++j) {
    const Element *key = keys + j * p.key.sequence, *value = values + j * p.value.sequence;
    float dot = 0.0f;
    for (int d = lane; d < p.head_dimension; d += 32) {
      dot += Ops::widen(query[d * p.query.dimension]) * Ops::widen(key[d * p.key.dimension]);
    }
    const float score = ruled_score<Element>(p, visible, mask_row, j, reduce_warp(dot));
    if (score == kMinusInfinity) continue;
    const float highest = fmaxf(softmax.maximum[0], score);
    const float rescale = weight_of(softmax.maximum[0] - highest), weight = weight_of(score - highest);
    softmax.maximum[0] = highest;
    softmax.sum[0] = softmax.sum[0] * rescale + weight;
    for (int d = lane; d < p.value_dimension; d += 32) {
      output[d] = output[d] * rescale + weight * Ops::widen(value[d * p.value.dimension]);
    }
  }

  softmax.sum[0] *= 0.25f;  // every lane of a quad holds the whole sum
  float lse;
  const float factor = softmax.finish(0, 1.0f, sink_logit<Element>(p, h), lse);
  if (p.log_sum_exp && lane == 0) p.log_sum_exp[row] = lse;
  Element *target = base(p.output, h) + i * p.output.sequence;
  for (int d = lane; d < p.value_dimension; d += 32) target[d * p.output.dimension] = Ops::narrow(output[d] * factor);
}

}  // namespace ortflash
