// What puts the results of a row's splits together: Σ exp(maximum_s − highest)·output_s over the like sum of the splits' sums
// and the sink's. Maximum and sum travel apart: beside a maximum of −3.4e38 the logarithm of a sum would be lost.
#pragma once
#include "softmax.cuh"

namespace ortflash {

enum class Combining {
  // In workspace: the last of a row's blocks to end reads them, which a count tells it; or, where it would have much to
  // read, a second kernel.
  kWorkspace,
  // The splits are one cluster of blocks and read each other's shared memory (compute capability 9.0).
  kCluster
};

// As many blocks as every device can have in a cluster.
constexpr int kMostClusterSplits = 8;

// A query of one of the heads that share a key head.
struct PackedRow {
  int query, head;
};

// Row n of them; behind the last is a query that does not exist. Of one query, the usual case, without a division.
__device__ inline PackedRow packed_row(const AttentionParams &p, int key_head, int n) {
  int query = n >= p.heads_per_key;
  if (p.queries > 1) query = n / p.heads_per_key;
  return {query, key_head * p.heads_per_key + n - query * p.heads_per_key};
}

// Key heads, and batch entries, are each an axis of the grid, which spares the kernel divisions.
constexpr int kMostDecodeHeads = 65535;

// A split's keys, of those that the block's rows visit. Where they are not all keys, which the host has cut, but those of a
// window, or up to a length far below what a cache can hold, they are cut anew, so that all splits have some.
template <typename Kernel>
__device__ inline KeyRange keys_of_split(const AttentionParams &p, KeyRange visit, int split) {
  if (visit.begin <= 0 && visit.end >= p.keys) {
    const int begin = split * p.keys_per_split;
    return {begin, min(begin + p.keys_per_split, p.keys)};
  }
  const int first = visit.begin / Kernel::kKeys * Kernel::kKeys;
  const int steps = (max(visit.end - first, 0) + Kernel::kKeys - 1) / Kernel::kKeys;
  const int own = (steps + p.splits - 1) / p.splits * Kernel::kKeys, begin = first + split * own;
  return {begin, min(begin + own, visit.end)};
}

// Adds up the warps' results, each over its own keys, and writes the block's rows.
template <typename Kernel>
__device__ inline void merge_warps(const AttentionParams &p, float *results, int batch, int key_head, int first_row,
                                   int split) {
  using Element = typename Kernel::Element;
  constexpr int kRowFloats = Kernel::kRowFloats;
  for (int row = threadIdx.x / 32; row < Kernel::kRows; row += Kernel::kWarps) {
    const auto [i, h] = packed_row(p, key_head, first_row + row);
    if (i >= p.queries) continue;
    const float *warp_row[Kernel::kWarps];
    float highest = kMinusInfinity, sum = 0.0f, share[Kernel::kWarps];
#pragma unroll
    for (int w = 0; w < Kernel::kWarps; ++w) {
      warp_row[w] = results + (w * Kernel::kRows + row) * kRowFloats;
      highest = fmaxf(highest, warp_row[w][Kernel::kPitch]);
    }
    const float sink = p.splits == 1 ? sink_logit<Element>(p, h) : kMinusInfinity;
    highest = fmaxf(highest, sink);
    const float origin = highest == kMinusInfinity ? 0.0f : highest;
#pragma unroll
    for (int w = 0; w < Kernel::kWarps; ++w) {
      share[w] = weight_of(warp_row[w][Kernel::kPitch] - origin);
      sum += share[w] * warp_row[w][Kernel::kPitch + 1];
    }
    sum += weight_of(sink - origin);
    const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
    const float lse = sum > 0.0f ? origin + logf(sum) : kMinusInfinity;
    const int64_t rows = static_cast<int64_t>(p.batch) * p.query_heads * p.queries;
    const int64_t index = (static_cast<int64_t>(batch) * p.query_heads + h) * p.queries + i;
    if constexpr (Kernel::kCombining == Combining::kCluster) {
      if (p.splits > 1) {
        float *merged = results + (Kernel::kWarps * Kernel::kRows + row) * kRowFloats;
        if (lane_id() == 0) {
          merged[Kernel::kPitch] = highest;
          merged[Kernel::kPitch + 1] = sum;
        }
        for (int d = lane_id(); d < p.value_dimension; d += 32) {
          float total = 0.0f;
#pragma unroll
          for (int w = 0; w < Kernel::kWarps; ++w) total += share[w] * warp_row[w][d];
          merged[d] = total;
        }
        continue;
      }
    }
    if (lane_id() == 0) {
      if (p.splits > 1) p.partial_softmax[split * rows + index] = make_float2(highest, sum);
      else if (p.log_sum_exp) p.log_sum_exp[index] = lse;
    }
    Element *target = static_cast<Element *>(p.output.data) + batch * p.output.batch + h * p.output.head +
                      i * p.output.sequence;
    for (int d = lane_id(); d < p.value_dimension; d += 32) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < Kernel::kWarps; ++w) total += share[w] * warp_row[w][d];
      if (p.splits > 1) p.partial_output[(split * rows + index) * p.value_dimension + d] = total;
      else target[d * p.output.dimension] = ElementOps<Element>::narrow(total * factor);
    }
  }
}

// Combines a cluster's splits: each of its warps takes 32 elements of a row at a time.
template <typename Kernel>
__device__ inline void combine_cluster(const AttentionParams &p, const float *results, int batch, int key_head,
                                       int first_row, int split) {
  using Element = typename Kernel::Element;
  const float *merged = results + Kernel::kWarps * Kernel::kRows * Kernel::kRowFloats;
  const int rows = min(Kernel::kRows, p.queries * p.heads_per_key - first_row);
  ptx::cluster_arrive();
  ptx::cluster_wait();  // every block's rows are there
  constexpr int kPieces = Kernel::kHeadDimension / 32;
  for (int n = threadIdx.x / 32 * p.splits + split; n < rows * kPieces; n += Kernel::kWarps * p.splits) {
    const int row = n / kPieces, d = n % kPieces * 32 + lane_id();
    if (d >= p.value_dimension) continue;
    const auto [i, h] = packed_row(p, key_head, first_row + row);
    const float *mine = merged + row * Kernel::kRowFloats;
    const float sink = sink_logit<Element>(p, h);
    float maximum[kMostClusterSplits], part_sum[kMostClusterSplits], part[kMostClusterSplits], highest = sink;
#pragma unroll
    for (int s = 0; s < kMostClusterSplits; ++s) {
      maximum[s] = kMinusInfinity;
      part_sum[s] = part[s] = 0.0f;
      if (s >= p.splits) continue;
      maximum[s] = ptx::load_cluster(mine + Kernel::kPitch, s);
      part_sum[s] = ptx::load_cluster(mine + Kernel::kPitch + 1, s);
      part[s] = ptx::load_cluster(mine + d, s);
    }
#pragma unroll
    for (int s = 0; s < kMostClusterSplits; ++s) highest = fmaxf(highest, maximum[s]);
    const float origin = highest == kMinusInfinity ? 0.0f : highest;
    float sum = weight_of(sink - origin), total = 0.0f;
#pragma unroll
    for (int s = 0; s < kMostClusterSplits; ++s) {
      const float share = weight_of(maximum[s] - origin);
      sum += share * part_sum[s];
      total += share * part[s];
    }
    const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (p.log_sum_exp && d == 0) {
      p.log_sum_exp[(static_cast<int64_t>(batch) * p.query_heads + h) * p.queries + i] =
          sum > 0.0f ? origin + logf(sum) : kMinusInfinity;
    }
    static_cast<Element *>(p.output.data)[batch * p.output.batch + h * p.output.head + i * p.output.sequence +
                                          d * p.output.dimension] = ElementOps<Element>::narrow(total * factor);
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();  // no block leaves while another reads its rows
}

// A count of blocks that have ended, in memory that nobody has cleared: its upper 48 bits say whether it is this call's,
// by a number that the host draws for each call. The last to count puts it back to none, for the replay of a graph.
__device__ inline void open_tally(const AttentionParams &p, int index) {
  unsigned long long *word = p.tally + index;
  const unsigned long long seen = *const_cast<const volatile unsigned long long *>(word);
  if (seen >> 16 != p.tally_tag >> 16) atomicCAS(word, seen, p.tally_tag);  // in vain only where another block has done it
}

// Which of the tallies is the block's.
template <typename Kernel>
__device__ inline int tally_index(const AttentionParams &p, int row_tile) {
  const int row_tiles = (p.queries * p.heads_per_key + Kernel::kRows - 1) / Kernel::kRows;
  return (blockIdx.z * p.key_heads + blockIdx.y) * row_tiles + row_tile;
}

// Whether this block is the last of `p.splits` to end. By one thread of each.
__device__ inline bool count_in_tally(const AttentionParams &p, int index) {
  const bool last = (atomicAdd(p.tally + index, 1ull) & 0xffff) + 1 == p.splits;
  if (last) p.tally[index] = p.tally_tag;
  return last;
}

// kWidth neighbouring numbers of workspace, which other multiprocessors have written.
template <int kWidth>
__device__ inline void load_partial(float (&to)[kWidth], const float *from) {
  if constexpr (kWidth == 4) {
    const float4 four = __ldcg(reinterpret_cast<const float4 *>(from));
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    to[0] = __ldcg(from);
  }
}

// Adds up the splits of a block's rows, kWidth neighbouring elements a thread. `shares`: (rows, splits), each split's
// part in its row's result.
template <typename Kernel, int kWidth>
__device__ inline void add_splits(const AttentionParams &p, const float2 *shares, int batch, int key_head, int first_row,
                                  int rows) {
  using Element = typename Kernel::Element;
  constexpr int kAtOnce = 16;
  constexpr int kPieces = Kernel::kHeadDimension / kWidth;
  const int64_t stride = static_cast<int64_t>(p.batch) * p.query_heads * p.queries * p.value_dimension;
  for (int e = threadIdx.x; e < rows * kPieces; e += Kernel::kThreads) {
    const int row = e / kPieces, d = e % kPieces * kWidth;
    if (d >= p.value_dimension) continue;
    const auto [i, h] = packed_row(p, key_head, first_row + row);
    const int64_t index = (static_cast<int64_t>(batch) * p.query_heads + h) * p.queries + i;
    const float *part = p.partial_output + index * p.value_dimension + d;
    float total[kWidth] = {};
    for (int first = 0; first < p.splits; first += kAtOnce) {
      float loaded[kAtOnce][kWidth] = {};
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
        if (first + s < p.splits) load_partial<kWidth>(loaded[s], part + (first + s) * stride);
      }
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
        const float share = first + s < p.splits ? shares[row * p.splits + first + s].x : 0.0f;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) total[k] += share * loaded[s][k];
      }
    }
    Element *target = static_cast<Element *>(p.output.data) + batch * p.output.batch + h * p.output.head +
                      i * p.output.sequence + d * p.output.dimension;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) target[k * p.output.dimension] = ElementOps<Element>::narrow(total[k]);
  }
}

// The last of a tile's blocks puts its splits together.
template <typename Kernel>
__device__ inline void combine_in_last_block(const AttentionParams &p, float *memory, int row_tile, int batch,
                                             int key_head) {
  using Element = typename Kernel::Element;
  __shared__ bool is_last;
  __threadfence();  // the block's results are there before it counts
  __syncthreads();
  if (threadIdx.x == 0) is_last = count_in_tally(p, tally_index<Kernel>(p, row_tile));
  __syncthreads();
  if (!is_last) return;
  __threadfence();  // and read after
  const int first_row = Kernel::kRows * row_tile;
  const int rows = min(Kernel::kRows, p.queries * p.heads_per_key - first_row);
  float2 *shares = reinterpret_cast<float2 *>(memory);  // maximum and sum; then the share, and the sum
  for (int row = threadIdx.x / 32; row < rows; row += Kernel::kWarps) {
    const auto [i, h] = packed_row(p, key_head, first_row + row);
    const int64_t stride = static_cast<int64_t>(p.batch) * p.query_heads * p.queries;
    const int64_t place = (static_cast<int64_t>(batch) * p.query_heads + h) * p.queries + i;
    float2 *share = shares + row * p.splits;
    const float sink = sink_logit<Element>(p, h);
    float highest = sink, sum = 0.0f;
    for (int s = lane_id(); s < p.splits; s += 32) {
      share[s] = __ldcg(p.partial_softmax + s * stride + place);
      highest = fmaxf(highest, share[s].x);
    }
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, lane));
    const float origin = highest == kMinusInfinity ? 0.0f : highest;
    for (int s = lane_id(); s < p.splits; s += 32) {
      share[s].x = weight_of(share[s].x - origin);
      sum += share[s].x * share[s].y;
    }
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    sum += weight_of(sink - origin);
    const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
    for (int s = lane_id(); s < p.splits; s += 32) share[s].x *= factor;
    if (p.log_sum_exp && lane_id() == 0) p.log_sum_exp[place] = sum > 0.0f ? origin + logf(sum) : kMinusInfinity;
  }
  __syncthreads();
  if (p.value_dimension % 4 == 0) add_splits<Kernel, 4>(p, shares, batch, key_head, first_row, rows);
  else add_splits<Kernel, 1>(p, shares, batch, key_head, first_row, rows);
}

// The second kernel: a block a row.
constexpr int kCombineThreads = 256;

template <typename Element>
__global__ void __launch_bounds__(kCombineThreads) combine_splits(const __grid_constant__ AttentionParams p) {
  extern __shared__ float weights[];  // (splits), then (warps, Dv)
  __shared__ float shares[kCombineThreads / 32];
  const int64_t rows = static_cast<int64_t>(p.batch) * p.query_heads * p.queries, index = blockIdx.x;
  const int i = index % p.queries, h = index / p.queries % p.query_heads, b = index / p.queries / p.query_heads;
  const int warp = threadIdx.x / 32;
  // Each warp takes its own maximum, which all warps find alike.
  const float sink = sink_logit<Element>(p, h);
  float highest = sink;
  for (int s = lane_id(); s < p.splits; s += 32) highest = fmaxf(highest, p.partial_softmax[s * rows + index].x);
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, lane));
  const float origin = highest == kMinusInfinity ? 0.0f : highest;
  float sum = 0.0f;
  for (int s = threadIdx.x; s < p.splits; s += kCombineThreads) {
    const float2 part = p.partial_softmax[s * rows + index];
    weights[s] = weight_of(part.x - origin);
    sum += weights[s] * part.y;
  }
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (lane_id() == 0) shares[warp] = sum;
  __syncthreads();
  sum = weight_of(sink - origin);
#pragma unroll
  for (int w = 0; w < kCombineThreads / 32; ++w) sum += shares[w];

  float *totals = weights + p.splits;
  for (int d = lane_id(); d < p.value_dimension; d += 32) {
    float total = 0.0f;
#pragma unroll 4
    for (int s = warp; s < p.splits; s += kCombineThreads / 32) {
      total += weights[s] * p.partial_output[(s * rows + index) * p.value_dimension + d];
    }
    totals[warp * p.value_dimension + d] = total;
  }
  __syncthreads();
  const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
  if (p.log_sum_exp && threadIdx.x == 0) p.log_sum_exp[index] = sum > 0.0f ? origin + logf(sum) : kMinusInfinity;
  Element *target =
      static_cast<Element *>(p.output.data) + b * p.output.batch + h * p.output.head + i * p.output.sequence;
  for (int d = threadIdx.x; d < p.value_dimension; d += kCombineThreads) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kCombineThreads / 32; ++w) total += totals[w * p.value_dimension + d];
    target[d * p.output.dimension] = ElementOps<Element>::narrow(total * factor);
  }
}

}  // namespace ortflash
