// Few queries against many keys (Flash-Decoding; FlashAttention-2, section 3.2 for the packing of grouped heads): the keys
// are cut into splits, a block each; the up to 16 rows of a block are queries × heads that share a key head, so that keys
// are read once for all of them. Each warp streams keys of its own through its own stages, with no barrier in the loop.
#pragma once
#include "decode_combine.cuh"
#include "shared_tile.cuh"

namespace ortflash {

struct DecodeDefaults {
  static constexpr int kWarps = 4;
  static constexpr Combining kCombining = Combining::kWorkspace;
  static constexpr SplitRule kSplits{2, 128, 0x7fffffff, false};
  // Blocks start while the kernel before them ends, and wait for it before they read (programmatic dependent launch, 9.0).
  static constexpr bool kStartsEarly = false;
};

template <int kHeadDimension>
struct DecodeTiles;

template <>
struct DecodeTiles<64> : DecodeDefaults {
  static constexpr int kStages = 6;
};
template <>
struct DecodeTiles<128> : DecodeDefaults {
  static constexpr int kStages = 3;
};
template <>
struct DecodeTiles<256> : DecodeDefaults {
  static constexpr int kStages = 3;
};

// The forms below are for compute capability 9.0, see choose_decode_form().
template <int kHeadDimension>
struct DecodeWideTiles : DecodeTiles<kHeadDimension> {
  static constexpr int kWarps = kHeadDimension == 256 ? 4 : 8;  // as many as a multiprocessor has memory for
  static constexpr SplitRule kSplits{1, 128, 0x7fffffff, false};
  static constexpr bool kStartsEarly = true;
};

template <int kHeadDimension>
struct DecodeClusterTiles : DecodeWideTiles<kHeadDimension> {
  static constexpr Combining kCombining = Combining::kCluster;
  static constexpr SplitRule kSplits{1, 128, kMostClusterSplits, true};
};

template <typename Element_, int kHeadDimension_, typename Tiles_ = DecodeTiles<kHeadDimension_>>
struct DecodeKernel {
  using Element = Element_;
  using Tiles = Tiles_;
  static constexpr Combining kCombining = Tiles::kCombining;
  static constexpr int kHeadDimension = kHeadDimension_, kWarps = Tiles::kWarps, kThreads = 32 * kWarps;
  static constexpr int kRows = 16, kKeys = 16, kStages = Tiles::kStages;
  using Tile = SharedTile<Element, 16, kHeadDimension>;
  static constexpr int kStageBytes = 2 * Tile::kBytes;
  static constexpr int kPitch = kHeadDimension + 4;  // floats a row of a warp's result
  static constexpr int kRowFloats = kPitch + 2;      // and its maximum and sum
  static constexpr int kStreamBytes = kWarps * kStages * kStageBytes;
  // With a cluster, the block's merged rows follow those of its warps.
  static constexpr int kResultBytes = (kWarps + (kCombining == Combining::kCluster)) * 16 * kRowFloats * 4;
  static constexpr int kSharedBytes = kStreamBytes > kResultBytes ? kStreamBytes : kResultBytes;
};

template <typename Kernel, bool kRules>
__device__ inline void decode_split(const AttentionParams &p) {
  using Element = typename Kernel::Element;
  using Tile = typename Kernel::Tile;
  constexpr int kHeadDimension = Kernel::kHeadDimension, kStages = Kernel::kStages;
  extern __shared__ __align__(128) unsigned char shared[];
  if constexpr (Kernel::Tiles::kStartsEarly) ptx::wait_for_prerequisites();
  int row_tile = 0, split = blockIdx.x;
  if (p.queries * p.heads_per_key > 16) {
    row_tile = blockIdx.x / p.splits;
    split = blockIdx.x % p.splits;
  }
  const int first_row = 16 * row_tile, key_head = blockIdx.y, batch = blockIdx.z;
  const int warp = threadIdx.x / 32;
  const Element *keys = static_cast<Element *>(p.key.data) + batch * p.key.batch + key_head * p.key.head;
  const Element *values = static_cast<Element *>(p.value.data) + batch * p.value.batch + key_head * p.value.head;

  FragmentRows rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const PackedRow row = packed_row(p, key_head, first_row + lane_id() / 4 + 8 * r);
    rows.query[r] = row.query;
    rows.head[r] = row.head;
  }
  const Visibility visibility(p, batch);
  const int last_query = min(packed_row(p, key_head, first_row + 15).query, p.queries - 1);
  const KeyRange visit = visibility.to_visit(p, packed_row(p, key_head, first_row).query, last_query);
  const int readable = visibility.readable_values(p);
  const KeyRange own_keys = keys_of_split<Kernel>(p, visit, split);
  const int begin = own_keys.begin, end = own_keys.end;

  auto key_tile = [&](int stage) {
    return Tile{reinterpret_cast<Element *>(shared + (warp * kStages + stage) * Kernel::kStageBytes)};
  };
  auto value_tile = [&](int stage) { return Tile{key_tile(stage).data + 16 * kHeadDimension}; };
  using Copy = TileCopy<Element, 16, kHeadDimension, 32>;
  const Copy copy_keys(keys, p.key.sequence, p.head_dimension, lane_id());
  const Copy copy_values(values, p.value.sequence, p.value_dimension, lane_id());
  auto fetch = [&](int stage, int first) {
    if (first < end && p.wide_loads) {
      copy_keys.load(key_tile(stage), first, p.keys);
      copy_values.load(value_tile(stage), first, readable);
    } else if (first < end) {
      key_tile(stage).template load<32>(keys, p.key.sequence, p.key.dimension, first, p.keys, p.head_dimension,
                                        p.wide_loads, lane_id());
      value_tile(stage).template load<32>(values, p.value.sequence, p.value.dimension, first, readable,
                                          p.value_dimension, p.wide_loads, lane_id());
    }
    ptx::copy_async_commit();
  };

  constexpr int kStride = 16 * Kernel::kWarps;
  const int first = begin + 16 * warp;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) fetch(s, first + s * kStride);
  if constexpr (Kernel::kCombining == Combining::kWorkspace) {
    if (p.tally && threadIdx.x == 0) open_tally(p, tally_index<Kernel>(p, row_tile));
  }
  // The rows of Q, straight to operands: each lane reads its own pairs, once.
  uint32_t query[kHeadDimension / 16][4];
  const Element *query_row[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    query_row[r] = static_cast<Element *>(p.query.data) + batch * p.query.batch + rows.head[r] * p.query.head +
                   rows.query[r] * p.query.sequence;
  }
#pragma unroll
  for (int d = 0; d < kHeadDimension / 16; ++d) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int r = e % 2, column = 16 * d + e / 2 * 8 + lane_column();
      const bool take = rows.query[r] < p.queries && column < p.head_dimension;
      if (p.wide_loads) {
        query[d][e] = take ? *reinterpret_cast<const uint32_t *>(query_row[r] + column) : 0;
      } else {
        const auto number = [&](int c) { return ElementOps<Element>::widen(query_row[r][c * p.query.dimension]); };
        query[d][e] = ElementOps<Element>::pack(
            take ? number(column) : 0.0f, take && column + 1 < p.head_dimension ? number(column + 1) : 0.0f);
      }
    }
  }

  RowSoftmax<kRules> softmax;
  float output[kHeadDimension / 8][4] = {};
  int stage = 0;
  for (int first_key = first; first_key < end; first_key += kStride) {
    fetch((stage + kStages - 1) % kStages, first_key + (kStages - 1) * kStride);
    ptx::copy_async_wait<kStages - 1>();
    __syncwarp();
    ScoreFragment<16> scores = {};
#pragma unroll
    for (int d = 0; d < kHeadDimension / 16; ++d) {
      uint32_t b[4];
      key_tile(stage).load_b_from_rows(b, 0, 16 * d);
      multiply_16x8x16<Element>(scores.value[0], query[d], b[0], b[1]);
      multiply_16x8x16<Element>(scores.value[1], query[d], b[2], b[3]);
    }
    const KeyRange range[2] = {visibility.of(rows.query[0]), visibility.of(rows.query[1])};
    if constexpr (kRules) {
      MaskFragment<16> mask;
      if (p.mask.kind != ORTFLASH_MASK_NONE) mask.load(p, batch, rows, first_key);  // too narrow to need settling
      apply_rules<Element>(scores, p, range, mask, first_key);
    } else {
      hide_outside(scores, range, first_key, kMinusInfinity);
    }
    float rescale[2];
    softmax.update(scores, p.scale, rescale);
    uint32_t weights[1][4];
    to_operand<Element>(scores, weights);
#pragma unroll
    for (int d = 0; d < kHeadDimension / 8; d += 2) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        output[d][e] *= rescale[e / 2];
        output[d + 1][e] *= rescale[e / 2];
      }
      uint32_t b[4];
      value_tile(stage).load_b(b, 0, 8 * d);
      multiply_16x8x16<Element>(output[d], weights[0], b[0], b[1]);
      multiply_16x8x16<Element>(output[d + 1], weights[0], b[2], b[3]);
    }
    __syncwarp();  // the stage is free for the copies of the next step
    stage = (stage + 1) % kStages;
  }

  ptx::copy_async_wait<0>();
  __syncthreads();  // results take the place of the stages
  float *results = reinterpret_cast<float *>(shared);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float *row = results + (warp * 16 + lane_id() / 4 + 8 * r) * (Kernel::kPitch + 2);
    const float sum = reduce_quad(softmax.sum[r], [](float a, float b) { return a + b; });
    if (lane_column() == 0) {
      const bool natural = kRules || softmax.maximum[r] == kMinusInfinity;
      row[Kernel::kPitch] = natural ? softmax.maximum[r] : softmax.maximum[r] * p.scale;
      row[Kernel::kPitch + 1] = sum;
    }
#pragma unroll
    for (int d = 0; d < kHeadDimension / 8; ++d) {
      row[8 * d + lane_column()] = output[d][2 * r];
      row[8 * d + lane_column() + 1] = output[d][2 * r + 1];
    }
  }
  __syncthreads();
  merge_warps<Kernel>(p, results, batch, key_head, first_row, split);
  if constexpr (Kernel::kCombining == Combining::kCluster) {
    if (p.splits > 1) combine_cluster<Kernel>(p, results, batch, key_head, first_row, split);
  } else if (p.tally) {
    combine_in_last_block<Kernel>(p, results, row_tile, batch, key_head);
  }
}

template <typename Kernel, bool kRules>
__global__ void __launch_bounds__(Kernel::kThreads) decode_attention(const __grid_constant__ AttentionParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  // Never started there.
  if constexpr (Kernel::kCombining != Combining::kCluster)
#endif
    decode_split<Kernel, kRules>(p);
}

}  // namespace ortflash
