// FlashAttention in float32 on the ordinary arithmetic units: 64 queries a block, 32 keys a step. 256 threads as 16 × 16:
// thread (y, x) holds rows 4y..4y+3 of scores and output; of the scores keys x and x + 16, of the output columns
// 64c + 4x..64c + 4x + 3.
#pragma once
#include "softmax.cuh"

namespace ortflash {

template <int kHeadDimension>
struct Float32Kernel {
  static constexpr int kRows = 64, kKeys = 32, kThreads = 256, kChunks = kHeadDimension / 64;
  static constexpr int kPitch = kHeadDimension + 4;  // of a row in shared memory, against bank conflicts
  struct Shared {
    float query[kRows][kPitch], key[kKeys][kPitch], value[kKeys][kPitch], weights[kRows][kKeys + 1];
  };
};

// Rows of a strided matrix → shared memory; zeros outside.
template <int kRows, int kHeadDimension, int kPitch, int kThreads>
__device__ inline void load_rows(float (&tile)[kRows][kPitch], const float *matrix, const OrtFlashTensor &t,
                                 int first_row, int row_limit, int column_limit, bool wide) {
  if (wide) {
    for (int i = threadIdx.x; i < kRows * kHeadDimension / 4; i += kThreads) {
      const int row = i / (kHeadDimension / 4), column = i % (kHeadDimension / 4) * 4;
      float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (first_row + row < row_limit && column < column_limit)
        four = *reinterpret_cast<const float4 *>(matrix + (first_row + row) * t.sequence + column);
      *reinterpret_cast<float4 *>(&tile[row][column]) = four;
    }
    return;
  }
  const bool along_rows = t.sequence == 1 && t.dimension != 1;
  for (int i = threadIdx.x; i < kRows * kHeadDimension; i += kThreads) {
    const int row = along_rows ? i % kRows : i / kHeadDimension, column = along_rows ? i / kRows : i % kHeadDimension;
    const bool take = first_row + row < row_limit && column < column_limit;
    tile[row][column] = take ? matrix[(first_row + row) * t.sequence + column * t.dimension] : 0.0f;
  }
}

template <typename Combine>
__device__ inline float reduce_row(float x, Combine combine) {
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

template <int kHeadDimension>
__global__ void __launch_bounds__(256) float32_attention(const __grid_constant__ AttentionParams p) {
  using Kernel = Float32Kernel<kHeadDimension>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto &shared = *reinterpret_cast<typename Kernel::Shared *>(memory);
  const int tiles = (p.queries + Kernel::kRows - 1) / Kernel::kRows;
  const int first_query = (tiles - 1 - static_cast<int>(blockIdx.x % tiles)) * Kernel::kRows;
  const int h = blockIdx.x / tiles % p.query_heads, b = blockIdx.x / tiles / p.query_heads;
  const int key_head = h / p.heads_per_key;
  const int y = threadIdx.x / 16, x = threadIdx.x % 16;
  auto base = [&](const OrtFlashTensor &t, int head) {
    return static_cast<float *>(t.data) + b * t.batch + head * t.head;
  };
  const float *keys = base(p.key, key_head), *values = base(p.value, key_head);
  const Visibility visibility(p, b);
  const KeyRange visit = visibility.to_visit(p, first_query, min(first_query + Kernel::kRows, p.queries) - 1);
  const int readable = visibility.readable_values(p);

  KeyRange visible[4];
  int64_t mask_row[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int i = min(first_query + 4 * y + r, p.queries - 1);
    visible[r] = visibility.of(i);
    mask_row[r] = mask_row_of(p, b, h, i);
  }
  float maximum[4], sum[4] = {}, output[4][Kernel::kChunks][4] = {};
#pragma unroll
  for (int r = 0; r < 4; ++r) maximum[r] = kMinusInfinity;

  constexpr int kPitch = Kernel::kPitch, kThreads = Kernel::kThreads;
  load_rows<Kernel::kRows, kHeadDimension, kPitch, kThreads>(shared.query, base(p.query, h), p.query, first_query,
                                                             p.queries, p.head_dimension, p.wide_loads);
  for (int first_key = visit.begin; first_key < visit.end; first_key += Kernel::kKeys) {
    __syncthreads();
    load_rows<Kernel::kKeys, kHeadDimension, kPitch, kThreads>(shared.key, keys, p.key, first_key, p.keys,
                                                               p.head_dimension, p.wide_loads);
    load_rows<Kernel::kKeys, kHeadDimension, kPitch, kThreads>(shared.value, values, p.value, first_key, readable,
                                                               p.value_dimension, p.wide_loads);
    __syncthreads();
    float score[4][2] = {};
#pragma unroll 4
    for (int d = 0; d < kHeadDimension; d += 4) {
      const float4 k0 = *reinterpret_cast<const float4 *>(&shared.key[x][d]);
      const float4 k1 = *reinterpret_cast<const float4 *>(&shared.key[x + 16][d]);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float4 q = *reinterpret_cast<const float4 *>(&shared.query[4 * y + r][d]);
        score[r][0] += q.x * k0.x + q.y * k0.y + q.z * k0.z + q.w * k0.w;
        score[r][1] += q.x * k1.x + q.y * k1.y + q.z * k1.z + q.w * k1.w;
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int key = first_key + x + 16 * c;
        score[r][c] = key < p.keys ? ruled_score<float>(p, visible[r], mask_row[r], key, score[r][c]) : kMinusInfinity;
      }
      const float highest = fmaxf(maximum[r], reduce_row(fmaxf(score[r][0], score[r][1]),
                                                         [](float a, float c) { return fmaxf(a, c); }));
      const float origin = highest == kMinusInfinity ? 0.0f : highest;
      const float rescale = weight_of(maximum[r] - origin);
      maximum[r] = highest;
      sum[r] *= rescale;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float weight = weight_of(score[r][c] - origin);
        sum[r] += weight;
        shared.weights[4 * y + r][x + 16 * c] = weight;
      }
#pragma unroll
      for (int c = 0; c < Kernel::kChunks; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output[r][c][e] *= rescale;
      }
    }
    __syncwarp();  // a row of weights is written and read by the same half of a warp
#pragma unroll 4
    for (int key = 0; key < Kernel::kKeys; ++key) {
#pragma unroll
      for (int c = 0; c < Kernel::kChunks; ++c) {
        const float4 v = *reinterpret_cast<const float4 *>(&shared.value[key][64 * c + 4 * x]);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float weight = shared.weights[4 * y + r][key];
          output[r][c][0] += weight * v.x;
          output[r][c][1] += weight * v.y;
          output[r][c][2] += weight * v.z;
          output[r][c][3] += weight * v.w;
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int i = first_query + 4 * y + r;
    // finish() adds up a quad; a row lies over four of them.
    RowSoftmax<true> softmax;
    softmax.maximum[0] = maximum[r];
    softmax.sum[0] = 0.25f * reduce_row(sum[r], [](float a, float c) { return a + c; });
    float lse;
    const float factor = softmax.finish(0, 1.0f, sink_logit<float>(p, h), lse);
    if (i >= p.queries) continue;
    if (p.log_sum_exp && x == 0) {
      p.log_sum_exp[(static_cast<int64_t>(b) * p.query_heads + h) * p.queries + i] = lse;
    }
    float *row = base(p.output, h) + i * p.output.sequence;
#pragma unroll
    for (int c = 0; c < Kernel::kChunks; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 64 * c + 4 * x + e;
        if (column < p.value_dimension) row[column * p.output.dimension] = output[r][c][e] * factor;
      }
    }
  }
}

}  // namespace ortflash
