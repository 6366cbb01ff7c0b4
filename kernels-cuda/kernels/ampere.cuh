// FlashAttention-2 (Dao 2023, section 3) on mma.sync, ldmatrix and cp.async, for compute capability 8.0 and later and any
// strides: a block takes kRows queries of one head, each warp its own rows; keys and values pass through shared memory.
#pragma once
#include "shared_tile.cuh"
#include "softmax.cuh"

namespace ortflash {

// What tiles may add to their sizes.
struct AmpereDefaults {
  static constexpr int kStages = 1;  // steps in shared memory; with 2, one barrier a step and a whole step for each copy
  static constexpr int kBlocks = 0;  // blocks a multiprocessor that registers have to suffice for; 0: whatever they do
  static constexpr bool kQueryInRegisters = false;
  static constexpr bool kLean = false;  // served by the kernel of ampere_lean.cuh; without it the values above have no use
};

template <int kHeadDimension>
struct AmpereTiles;

// kRowTiles: 16-row tiles a warp holds; two of them read each key fragment once for 32 rows.
template <>
struct AmpereTiles<64> : AmpereDefaults {
  static constexpr int kWarps = 4, kRowTiles = 2, kKeys = 64;
};
template <>
struct AmpereTiles<128> : AmpereDefaults {
  static constexpr int kWarps = 4, kRowTiles = 2, kKeys = 64;
};
template <>
struct AmpereTiles<256> : AmpereDefaults {
  static constexpr int kWarps = 8, kRowTiles = 1, kKeys = 64;
};

// For devices whose blocks have 99 KiB of shared memory (8.6, 8.9, 12.0), where the tiles above take more.
struct AmpereSmallTiles : AmpereDefaults {
  static constexpr int kWarps = 8, kRowTiles = 1, kKeys = 32;
};

template <typename Element_, int kHeadDimension_, typename Tiles_ = AmpereTiles<kHeadDimension_>>
struct AmpereKernel {
  using Element = Element_;
  using Tiles = Tiles_;
  static constexpr int kHeadDimension = kHeadDimension_;
  static constexpr int kThreads = Tiles::kWarps * 32;
  static constexpr int kRows = Tiles::kWarps * Tiles::kRowTiles * 16;
  static constexpr int kKeys = Tiles::kKeys;
  static constexpr int kRowTiles = Tiles::kRowTiles;
  using QueryTile = SharedTile<Element, kRows, kHeadDimension>;
  using KeyTile = SharedTile<Element, kKeys, kHeadDimension>;
  static constexpr int kSharedBytes = QueryTile::kBytes + 2 * Tiles::kStages * KeyTile::kBytes;
};

// S = Q·Kᵀ for the warp's rows.
template <typename Kernel, int kHeadDimension>
__device__ inline void multiply_query_key(ScoreFragment<Kernel::kKeys> (&scores)[Kernel::kRowTiles],
                                          const typename Kernel::QueryTile &query, const typename Kernel::KeyTile &key,
                                          int first_row) {
#pragma unroll
  for (int t = 0; t < Kernel::kRowTiles; ++t) {
#pragma unroll
    for (int j = 0; j < Kernel::kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[t].value[j][e] = 0.0f;
    }
  }
#pragma unroll
  for (int d = 0; d < kHeadDimension; d += 16) {
    uint32_t a[Kernel::kRowTiles][4];
#pragma unroll
    for (int t = 0; t < Kernel::kRowTiles; ++t) query.load_a(a[t], first_row + 16 * t, d);
#pragma unroll
    for (int j = 0; j < Kernel::kKeys; j += 16) {
      uint32_t b[4];
      key.load_b_from_rows(b, j, d);
#pragma unroll
      for (int t = 0; t < Kernel::kRowTiles; ++t) {
        multiply_16x8x16<typename Kernel::Element>(scores[t].value[j / 8], a[t], b[0], b[1]);
        multiply_16x8x16<typename Kernel::Element>(scores[t].value[j / 8 + 1], a[t], b[2], b[3]);
      }
    }
  }
}

// O += P·V for the warp's rows.
template <typename Kernel, int kHeadDimension>
__device__ inline void multiply_weight_value(float (&output)[Kernel::kRowTiles][kHeadDimension / 8][4],
                                             const uint32_t (&weights)[Kernel::kRowTiles][Kernel::kKeys / 16][4],
                                             const typename Kernel::KeyTile &value) {
#pragma unroll
  for (int k = 0; k < Kernel::kKeys / 16; ++k) {
#pragma unroll
    for (int d = 0; d < kHeadDimension; d += 16) {
      uint32_t b[4];
      value.load_b(b, 16 * k, d);
#pragma unroll
      for (int t = 0; t < Kernel::kRowTiles; ++t) {
        multiply_16x8x16<typename Kernel::Element>(output[t][d / 8], weights[t][k], b[0], b[1]);
        multiply_16x8x16<typename Kernel::Element>(output[t][d / 8 + 1], weights[t][k], b[2], b[3]);
      }
    }
  }
}

// kRules: scores go through softcap, mask or a finite masked_value; else only ranges of visible keys matter.
template <typename Kernel, bool kRules>
__global__ void __launch_bounds__(Kernel::kThreads) ampere_attention(const __grid_constant__ AttentionParams p) {
  using Element = typename Kernel::Element;
  constexpr int kHeadDimension = Kernel::kHeadDimension;
  constexpr int kKeys = Kernel::kKeys, kRowTiles = Kernel::kRowTiles, kThreads = Kernel::kThreads;
  extern __shared__ __align__(128) unsigned char shared[];
  const typename Kernel::QueryTile query_tile{reinterpret_cast<Element *>(shared)};
  const typename Kernel::KeyTile key_tile{reinterpret_cast<Element *>(shared + Kernel::QueryTile::kBytes)};
  const typename Kernel::KeyTile value_tile{key_tile.data + kKeys * kHeadDimension};

  const int tiles = (p.queries + Kernel::kRows - 1) / Kernel::kRows;
  const int tile = tiles - 1 - blockIdx.x % tiles;  // causal: the longest first
  const int head = blockIdx.x / tiles % p.query_heads, batch = blockIdx.x / tiles / p.query_heads;
  const int first_query = tile * Kernel::kRows, last_query = min(first_query + Kernel::kRows, p.queries) - 1;
  const int first_row = threadIdx.x / 32 * 16 * kRowTiles;
  const int key_head = head / p.heads_per_key;
  auto base = [&](const OrtFlashTensor &t, int h) {
    return static_cast<Element *>(t.data) + batch * t.batch + h * t.head;
  };
  const Element *query = base(p.query, head), *key = base(p.key, key_head), *value = base(p.value, key_head);

  const Visibility visibility(p, batch);
  const KeyRange visit = visibility.to_visit(p, first_query, last_query);
  const int readable = visibility.readable_values(p);
  auto load_keys = [&](int first) {
    key_tile.template load<kThreads>(key, p.key.sequence, p.key.dimension, first, p.keys, p.head_dimension,
                                     p.wide_loads, threadIdx.x);
    ptx::copy_async_commit();
  };
  auto load_values = [&](int first) {
    value_tile.template load<kThreads>(value, p.value.sequence, p.value.dimension, first, readable, p.value_dimension,
                                       p.wide_loads, threadIdx.x);
    ptx::copy_async_commit();
  };

  RowSoftmax<kRules> softmax[kRowTiles];
  float output[kRowTiles][kHeadDimension / 8][4] = {};
  FragmentRows rows[kRowTiles];
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows[t].query[r] = first_query + first_row + 16 * t + lane_id() / 4 + 8 * r;
      rows[t].head[r] = head;
    }
  }

  const int begin = visit.begin / kKeys * kKeys;
  if (begin < visit.end) {
    query_tile.template load<kThreads>(query, p.query.sequence, p.query.dimension, first_query, p.queries,
                                       p.head_dimension, p.wide_loads, threadIdx.x);
    load_keys(begin);
  }
  for (int first_key = begin; first_key < visit.end; first_key += kKeys) {
    ptx::copy_async_wait<0>();
    __syncthreads();  // the keys are there, and no warp reads the last values any more
    load_values(first_key);
    ScoreFragment<kKeys> scores[kRowTiles];
    multiply_query_key<Kernel, kHeadDimension>(scores, query_tile, key_tile, first_row);
    ptx::copy_async_wait<0>();
    __syncthreads();  // the values are there, and no warp reads these keys any more
    if (first_key + kKeys < visit.end) load_keys(first_key + kKeys);

    uint32_t weights[kRowTiles][kKeys / 16][4];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      const KeyRange range[2] = {visibility.of(rows[t].query[0]), visibility.of(rows[t].query[1])};
      if constexpr (kRules) {
        MaskFragment<kKeys> mask;
        if (p.mask.kind != ORTFLASH_MASK_NONE) {
          mask.load(p, batch, rows[t], first_key);
          mask.settle(p);
        }
        apply_rules<Element>(scores[t], p, range, mask, first_key);
      } else if (range[1].begin > first_key || range[0].end < first_key + kKeys) {
        hide_outside(scores[t], range, first_key, kMinusInfinity);
      }
      float rescale[2];
      softmax[t].update(scores[t], p.scale, rescale);
#pragma unroll
      for (int d = 0; d < kHeadDimension / 8; ++d) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output[t][d][e] *= rescale[e / 2];
      }
      to_operand<Element>(scores[t], weights[t]);
    }
    multiply_weight_value<Kernel, kHeadDimension>(output, weights, value_tile);
  }

#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    float factor[2];
    Element *row[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = rows[t].query[r];
      float lse;
      factor[r] = softmax[t].finish(r, p.scale, sink_logit<Element>(p, head), lse);
      row[r] = i < p.queries ? base(p.output, head) + i * p.output.sequence : nullptr;
      if (p.log_sum_exp && i < p.queries && lane_column() == 0) {
        p.log_sum_exp[(static_cast<int64_t>(batch) * p.query_heads + head) * p.queries + i] = lse;
      }
    }
    store_rows<Element, kHeadDimension>(output[t], factor, row, p);
  }
}

}  // namespace ortflash
