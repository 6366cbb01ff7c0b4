// FlashAttention-2 (Dao 2023, section 3) on mma.sync, ldmatrix and cp.async, for compute capability 8.0 and later and any
// strides: a block takes kRows queries of one head, each warp its own rows; keys and values pass through shared memory.
// Beside the products little is left: addresses of copies are worked out once, fragments asked for one product ahead.
#pragma once
#include "shared_tile.cuh"
#include "softmax.cuh"

namespace ortflash {

// kRowTiles: 16-row tiles a warp holds; two of them read each key fragment once for 32 rows.
template <int kHeadDimension, bool kRules>
struct AmpereTiles;

template <>
struct AmpereTiles<64, false> {
  static constexpr int kWarps = 4, kRowTiles = 2, kKeys = 128;
};
template <>
struct AmpereTiles<64, true> {
  static constexpr int kWarps = 4, kRowTiles = 2, kKeys = 64;
};
template <bool kRules>
struct AmpereTiles<128, kRules> {
  static constexpr int kWarps = 4, kRowTiles = 2, kKeys = 64;
};
template <bool kRules>
struct AmpereTiles<256, kRules> {
  static constexpr int kWarps = 8, kRowTiles = 1, kKeys = 64;
};

// For devices whose blocks have 99 KiB of shared memory (8.6, 8.9, 12.0), where the tiles above take more.
struct AmpereSmallTiles {
  static constexpr int kWarps = 8, kRowTiles = 1, kKeys = 32;
};

template <typename Element_, int kHeadDimension_, bool kRules_ = false,
          typename Tiles_ = AmpereTiles<kHeadDimension_, kRules_>>
struct AmpereKernel {
  using Element = Element_;
  using Tiles = Tiles_;
  // Scores go through softcap, mask or a finite masked_value; else only ranges of visible keys matter.
  static constexpr bool kRules = kRules_;
  static constexpr int kHeadDimension = kHeadDimension_;
  static constexpr int kThreads = Tiles::kWarps * 32;
  static constexpr int kRows = Tiles::kWarps * Tiles::kRowTiles * 16;
  static constexpr int kKeys = Tiles::kKeys;
  static constexpr int kRowTiles = Tiles::kRowTiles;
  using QueryTile = SharedTile<Element, kRows, kHeadDimension>;
  using KeyTile = SharedTile<Element, kKeys, kHeadDimension>;
  static constexpr int kSharedBytes = QueryTile::kBytes + 2 * KeyTile::kBytes;
};

// S = Q·Kᵀ for the warp's rows, fragments asked for one product ahead.
template <typename Kernel>
__device__ inline void multiply_query_key(ScoreFragment<Kernel::kKeys> (&scores)[Kernel::kRowTiles],
                                          const typename Kernel::QueryTile &query, int first_row,
                                          const typename Kernel::KeyTile &key) {
  constexpr int kAcross = Kernel::kKeys / 16, kAlong = Kernel::kHeadDimension / 16;
  uint32_t a[2][Kernel::kRowTiles][4], b[2][4];
  auto load_query = [&](int d) {
#pragma unroll
    for (int t = 0; t < Kernel::kRowTiles; ++t) query.load_a(a[d % 2][t], first_row + 16 * t, 16 * d);
  };
  load_query(0);
  key.load_b_from_rows(b[0], 0, 0);
#pragma unroll
  for (int t = 0; t < Kernel::kRowTiles; ++t) {
#pragma unroll
    for (int j = 0; j < Kernel::kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[t].value[j][e] = 0.0f;
    }
  }
#pragma unroll
  for (int d = 0; d < kAlong; ++d) {
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
      const int now = (d * kAcross + j) % 2;
      if (j + 1 < kAcross) {
        key.load_b_from_rows(b[now ^ 1], 16 * (j + 1), 16 * d);
      } else if (d + 1 < kAlong) {
        load_query(d + 1);
        key.load_b_from_rows(b[now ^ 1], 0, 16 * (d + 1));
      }
#pragma unroll
      for (int t = 0; t < Kernel::kRowTiles; ++t) {
        multiply_16x8x16<typename Kernel::Element>(scores[t].value[2 * j], a[d % 2][t], b[now][0], b[now][1]);
        multiply_16x8x16<typename Kernel::Element>(scores[t].value[2 * j + 1], a[d % 2][t], b[now][2], b[now][3]);
      }
    }
  }
}

// O += P·V for the warp's rows, fragments asked for one product ahead.
template <typename Kernel>
__device__ inline void multiply_weight_value(float (&output)[Kernel::kRowTiles][Kernel::kHeadDimension / 8][4],
                                             const uint32_t (&weights)[Kernel::kRowTiles][Kernel::kKeys / 16][4],
                                             const typename Kernel::KeyTile &value) {
  constexpr int kAcross = Kernel::kHeadDimension / 16, kAlong = Kernel::kKeys / 16;
  uint32_t b[2][4];
  value.load_b(b[0], 0, 0);
#pragma unroll
  for (int k = 0; k < kAlong; ++k) {
#pragma unroll
    for (int d = 0; d < kAcross; ++d) {
      const int now = (k * kAcross + d) % 2;
      if (d + 1 < kAcross) value.load_b(b[now ^ 1], 16 * k, 16 * (d + 1));
      else if (k + 1 < kAlong) value.load_b(b[now ^ 1], 16 * (k + 1), 0);
#pragma unroll
      for (int t = 0; t < Kernel::kRowTiles; ++t) {
        multiply_16x8x16<typename Kernel::Element>(output[t][2 * d], weights[t][k], b[now][0], b[now][1]);
        multiply_16x8x16<typename Kernel::Element>(output[t][2 * d + 1], weights[t][k], b[now][2], b[now][3]);
      }
    }
  }
}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) ampere_attention(const __grid_constant__ AttentionParams p) {
  using Element = typename Kernel::Element;
  constexpr int kHeadDimension = Kernel::kHeadDimension;
  constexpr int kKeys = Kernel::kKeys, kRowTiles = Kernel::kRowTiles, kThreads = Kernel::kThreads;
  extern __shared__ __align__(128) unsigned char shared[];
  const typename Kernel::QueryTile query_tile{reinterpret_cast<Element *>(shared)};
  const typename Kernel::KeyTile key_tile{reinterpret_cast<Element *>(shared + Kernel::QueryTile::kBytes)};
  const typename Kernel::KeyTile value_tile{key_tile.data + kKeys * kHeadDimension};

  const BlockTile<Kernel::kRows> tile(p);
  const int first_query = tile.first_query, head = tile.head, batch = tile.batch;
  const int last_query = min(first_query + Kernel::kRows, p.queries) - 1;
  const int first_row = threadIdx.x / 32 * 16 * kRowTiles;
  const int key_head = head / p.heads_per_key;
  auto base = [&](const OrtFlashTensor &t, int h) {
    return static_cast<Element *>(t.data) + batch * t.batch + h * t.head;
  };
  const Element *query = base(p.query, head), *key = base(p.key, key_head), *value = base(p.value, key_head);

  const Visibility visibility(p, batch);
  const KeyRange visit = visibility.to_visit(p, first_query, last_query);
  const int readable = visibility.readable_values(p);
  using Copy = TileCopy<Element, kKeys, kHeadDimension, kThreads>;
  const Copy copy_keys(key, p.key.sequence, p.head_dimension, threadIdx.x);
  const Copy copy_values(value, p.value.sequence, p.value_dimension, threadIdx.x);
  auto load_keys = [&](int first) {
    if (p.wide_loads) {
      copy_keys.load(key_tile, first, p.keys);
    } else {
      key_tile.template load<kThreads>(key, p.key.sequence, p.key.dimension, first, p.keys, p.head_dimension,
                                       p.wide_loads, threadIdx.x);
    }
    ptx::copy_async_commit();
  };
  auto load_values = [&](int first) {
    if (p.wide_loads) {
      copy_values.load(value_tile, first, readable);
    } else {
      value_tile.template load<kThreads>(value, p.value.sequence, p.value.dimension, first, readable,
                                         p.value_dimension, p.wide_loads, threadIdx.x);
    }
    ptx::copy_async_commit();
  };

  RowSoftmax<Kernel::kRules> softmax[kRowTiles];
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

  // Keys that every query of the block sees: steps within them need no look at ranges.
  const KeyRange seen_by_all{visibility.of(last_query).begin, visibility.of(first_query).end};
  auto to_weights = [&](int first_key, ScoreFragment<kKeys>(&scores)[kRowTiles],
                        uint32_t(&weights)[kRowTiles][kKeys / 16][4]) {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      if constexpr (!Kernel::kRules) {
        if (first_key < seen_by_all.begin || first_key + kKeys > seen_by_all.end) {
          const KeyRange range[2] = {visibility.of(rows[t].query[0]), visibility.of(rows[t].query[1])};
          if (range[1].begin > first_key) hide_before(scores[t], range, first_key);
          if (range[0].end < first_key + kKeys) hide_after(scores[t], range, first_key);
        }
      } else {
        const KeyRange range[2] = {visibility.of(rows[t].query[0]), visibility.of(rows[t].query[1])};
        MaskFragment<kKeys> mask;
        if (p.mask.kind != ORTFLASH_MASK_NONE) {
          mask.load(p, batch, rows[t], first_key);
          mask.settle(p);
        }
        apply_rules<Element>(scores[t], p, range, mask, first_key);
      }
      float rescale[2];
      softmax[t].update(scores[t], p.scale, rescale);
      if (__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
        for (int d = 0; d < kHeadDimension / 8; ++d) {
#pragma unroll
          for (int e = 0; e < 4; ++e) output[t][d][e] *= rescale[e / 2];
        }
      }
      to_operand<Element>(scores[t], weights[t]);
    }
  };

  const int begin = visit.begin / kKeys * kKeys;
  if (begin < visit.end) {
    query_tile.template load<kThreads>(query, p.query.sequence, p.query.dimension, first_query, p.queries,
                                       p.head_dimension, p.wide_loads, threadIdx.x);
    load_keys(begin);
  }
  for (int first_key = begin; first_key < visit.end; first_key += kKeys) {
    ScoreFragment<kKeys> scores[kRowTiles];
    uint32_t weights[kRowTiles][kKeys / 16][4];
    ptx::copy_async_wait<0>();
    __syncthreads();  // the keys are there, and no warp reads the last values any more
    load_values(first_key);
    multiply_query_key<Kernel>(scores, query_tile, first_row, key_tile);
    ptx::copy_async_wait<0>();
    __syncthreads();  // the values are there, and no warp reads these keys any more
    if (first_key + kKeys < visit.end) load_keys(first_key + kKeys);
    to_weights(first_key, scores, weights);
    multiply_weight_value<Kernel>(output, weights, value_tile);
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
