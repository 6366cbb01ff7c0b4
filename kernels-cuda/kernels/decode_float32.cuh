// Few float32 queries against many keys, exact, on the ordinary arithmetic units; splits are those of decode.cuh. What
// takes time is to read keys and values once: a key's 8·D bytes keep a multiprocessor of an H100 waiting for 0.64·D clocks of
// four issue slots each, of which a row (query × head that shares the key head) takes D/16 for its multiply-adds. A block
// therefore takes up to 16 rows; kRows is the least of 1, 4, 8 and 16 that holds the call's.
#pragma once
#include "decode_combine.cuh"

namespace ortflash {

// Two blocks a multiprocessor; 64 KiB at least are a split.
template <int kHeadDimension>
struct DecodeFloat32Tiles {
  static constexpr int kWarps = 4, kStages = 2;
  static constexpr Combining kCombining = Combining::kWorkspace;
  static constexpr bool kStartsEarly = false;  // see DecodeDefaults of decode.cuh
  static constexpr int kLeastKeys = 8192 / kHeadDimension, kStep = kLeastKeys < 64 ? kLeastKeys : 64;
  static constexpr SplitRule kSplits{2, kLeastKeys, 0x7fffffff, false, kStep};
};

template <int kHeadDimension_, int kRows_, typename Tiles_ = DecodeFloat32Tiles<kHeadDimension_>>
struct DecodeFloat32Kernel {
  using Element = float;
  using Tiles = Tiles_;
  static constexpr Combining kCombining = Tiles::kCombining;
  static constexpr int kHeadDimension = kHeadDimension_, kRows = kRows_, kWarps = Tiles::kWarps, kThreads = 32 * kWarps;
  static constexpr int kStages = Tiles::kStages;
  // Of a step of a warp, which brings 4 KiB of keys and as much of values.
  static constexpr int kKeys = 1024 / kHeadDimension, kTileFloats = kKeys * kHeadDimension;
  static constexpr int kQueryFloats = kRows * kHeadDimension;
  static constexpr int kWeightFloats = (kKeys * kRows + kRows + 3) / 4 * 4;  // a warp's weights and rescaling factors
  static constexpr int kPitch = kHeadDimension + 4;                          // of a row of a warp's result
  static constexpr int kRowFloats = kPitch + 4;                              // and its maximum and sum, in 16-byte pieces
  static constexpr int kStreamFloats = kWarps * (2 * kStages * kTileFloats + kWeightFloats) + kQueryFloats;
  // With a cluster, the block's merged rows follow those of its warps.
  static constexpr int kResultFloats = (kWarps + (kCombining == Combining::kCluster)) * kRows * kRowFloats;
  static constexpr int kSharedBytes = 4 * (kStreamFloats > kResultFloats ? kStreamFloats : kResultFloats);
};

// What a warp copies of a matrix, kKeys rows at a time, to a tile in shared memory: zeros outside. A lane's pieces of 16
// bytes lie in the same column of every row, or in two.
template <int kKeys, int kColumns>
struct RowStream {
  static constexpr int kLanes = kColumns < 128 ? kColumns / 4 : 32;  // of a row
  static constexpr int kRowsAtOnce = 32 / kLanes, kPieces = kColumns / 4 / kLanes;
  const float *matrix, *source;
  int64_t row_stride, column_stride;
  int row, column, columns;

  __device__ RowStream(const float *matrix, const OrtFlashTensor &t, int columns)
      : matrix(matrix), row_stride(t.sequence), column_stride(t.dimension), columns(columns) {
    row = lane_id() / kLanes;
    column = lane_id() % kLanes * 4;
    source = matrix + row * row_stride + (column < columns ? column : 0);
  }

  // Rows first.., of which those from `limit` on are zeros. 16 bytes at a time.
  __device__ void load_wide(float *tile, int first, int limit) const {
    const uint32_t to = ptx::shared_address(tile) + (row * kColumns + column) * 4;
    const float *from = source + first * row_stride;
    const auto copy = [&](int n, bool inside) {
#pragma unroll
      for (int c = 0; c < kPieces; ++c) {
        const float *piece = inside ? from + 128 * c : matrix;
        ptx::copy_async_16(to + (n * kColumns + 128 * c) * 4, piece, inside && column + 128 * c < columns);
      }
      from += kRowsAtOnce * row_stride;
    };
    if (first + kKeys <= limit) {
#pragma unroll
      for (int n = 0; n < kKeys; n += kRowsAtOnce) copy(n, true);
    } else {
#pragma unroll
      for (int n = 0; n < kKeys; n += kRowsAtOnce) copy(n, first + row + n < limit);
    }
  }

  // The same element by element. Neighbouring lanes take neighbours in memory, whichever axis is contiguous.
  __device__ void load_elements(float *tile, int first, int limit) const {
    const bool along_rows = row_stride == 1 && column_stride != 1;
#pragma unroll 4
    for (int i = lane_id(); i < kKeys * kColumns; i += 32) {
      const int r = along_rows ? i % kKeys : i / kColumns, c = along_rows ? i / kKeys : i % kColumns;
      const bool take = first + r < limit && c < columns;
      const float *from = take ? matrix + (first + r) * row_stride + c * column_stride : matrix;
      ptx::copy_async_4(ptx::shared_address(tile + r * kColumns + c), from, take);
    }
  }

  __device__ void load(float *tile, int first, int limit, bool wide) const {
    if (wide) load_wide(tile, first, limit);
    else load_elements(tile, first, limit);
  }
};

// Sums over kLanes neighbouring lanes of kCount numbers each. At every step a lane hands half of its numbers over, as long as it
// has two; at last it holds kCount/kLanes whole sums, or one that other lanes hold, too: the first of them has the number that
// the lane's upper bits say.
template <int kCount, int kLanes, int kSize>
__device__ inline void add_lanes(float (&number)[kSize]) {
  if constexpr (kLanes > 1) {
    constexpr int kHalf = kCount / 2;
    const bool upper = lane_id() & (kLanes / 2);
    if constexpr (kHalf > 0) {
#pragma unroll
      for (int n = 0; n < kHalf; ++n) {
        const float given = upper ? number[n] : number[n + kHalf], kept = upper ? number[n + kHalf] : number[n];
        number[n] = kept + __shfl_xor_sync(0xffffffffu, given, kLanes / 2);
      }
      add_lanes<kHalf, kLanes / 2>(number);
    } else {
      number[0] += __shfl_xor_sync(0xffffffffu, number[0], kLanes / 2);
      add_lanes<1, kLanes / 2>(number);
    }
  }
}

// How a step's raw scores lie over a warp. Eight lanes share a key, of which each takes every eighth piece of 16 bytes; four
// keys are taken at once. After add_lanes() each lane holds kHeld scores, kHeldKeys of each of kHeldRows rows.
template <typename Kernel>
struct ScoreLayout {
  static constexpr int kLanes = 8, kOwnKeys = Kernel::kKeys / 4, kCount = Kernel::kRows * kOwnKeys;
  static constexpr int kHeld = kCount > kLanes ? kCount / kLanes : 1;
  static constexpr int kCopies = kCount > kLanes ? 1 : kLanes / kCount;  // lanes that hold the same score
  static constexpr int kHeldRows = kHeld > kOwnKeys ? kHeld / kOwnKeys : 1, kHeldKeys = kHeld / kHeldRows;
  static constexpr int kLanesOfRow = Kernel::kRows < kLanes ? kLanes / Kernel::kRows : 1;

  static __device__ int first() { return lane_id() % kLanes / kCopies * kHeld; }
  static __device__ int row(int r) { return first() / kOwnKeys + r; }
  static __device__ int key(int k) { return (first() % kOwnKeys + k) * 4 + lane_id() / kLanes; }

  // Combines what the lanes hold of a row.
  template <typename Combine>
  static __device__ float reduce(float x, Combine combine) {
#pragma unroll
    for (int lanes = 16; lanes >= kLanes; lanes /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, lanes));
#pragma unroll
    for (int lanes = kLanesOfRow / 2; lanes > 0; lanes /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
  }
};

// Q·Kᵀ of one step.
template <typename Kernel>
__device__ inline void multiply_query_key(float (&score)[ScoreLayout<Kernel>::kCount], const float *query,
                                          const float *keys) {
  using Layout = ScoreLayout<Kernel>;
  constexpr int kHeadDimension = Kernel::kHeadDimension, kOwnKeys = Layout::kOwnKeys, kPieces = kHeadDimension / 32;
  const int column = lane_id() % Layout::kLanes * 4;
  float4 key[kOwnKeys][kPieces];
#pragma unroll
  for (int k = 0; k < kOwnKeys; ++k) {
#pragma unroll
    for (int c = 0; c < kPieces; ++c) {
      key[k][c] = *reinterpret_cast<const float4 *>(keys + (4 * k + lane_id() / Layout::kLanes) * kHeadDimension +
                                                    32 * c + column);
    }
  }
#pragma unroll
  for (int row = 0; row < Kernel::kRows; ++row) {
#pragma unroll
    for (int k = 0; k < kOwnKeys; ++k) score[row * kOwnKeys + k] = 0.0f;
#pragma unroll
    for (int c = 0; c < kPieces; ++c) {
      const float4 q = *reinterpret_cast<const float4 *>(query + row * kHeadDimension + 32 * c + column);
#pragma unroll
      for (int k = 0; k < kOwnKeys; ++k) {
        float &sum = score[row * kOwnKeys + k];
        sum = fmaf(q.x, key[k][c].x, sum);
        sum = fmaf(q.y, key[k][c].y, sum);
        sum = fmaf(q.z, key[k][c].z, sum);
        sum = fmaf(q.w, key[k][c].w, sum);
      }
    }
  }
}

// How output lies over a warp: of all rows, each lane holds the columns that it reads of a value at once.
template <typename Kernel>
struct OutputLayout {
  static constexpr int kColumns = Kernel::kHeadDimension / 32, kWidth = kColumns < 4 ? kColumns : 4;
  static constexpr int kPieces = kColumns / kWidth;
  static __device__ int column(int c) { return c / kWidth * 32 * kWidth + lane_id() * kWidth + c % kWidth; }
};

// kCount numbers from an address that is aligned to as many, at most four.
template <int kCount>
__device__ inline void load_numbers(float *to, const float *from) {
  static_assert(kCount == 2 || kCount == 4);
  if constexpr (kCount == 4) {
    const float4 four = *reinterpret_cast<const float4 *>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    const float2 two = *reinterpret_cast<const float2 *>(from);
    to[0] = two.x, to[1] = two.y;
  }
}

// P·V of one step, with weights (keys, rows).
template <typename Kernel>
__device__ inline void multiply_weight_value(float (&output)[Kernel::kRows][OutputLayout<Kernel>::kColumns],
                                             const float *weights, const float *values) {
  using Layout = OutputLayout<Kernel>;
  constexpr int kRows = Kernel::kRows, kAtOnce = kRows < 4 ? 4 / kRows : 1;
#pragma unroll
  for (int key = 0; key < Kernel::kKeys; key += kAtOnce) {
    float weight[kAtOnce * kRows];
#pragma unroll
    for (int n = 0; n < kAtOnce * kRows; n += 4) load_numbers<4>(weight + n, weights + key * kRows + n);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      float value[Layout::kColumns];
#pragma unroll
      for (int c = 0; c < Layout::kColumns; c += Layout::kWidth) {
        load_numbers<Layout::kWidth>(value + c, values + (key + k) * Kernel::kHeadDimension + Layout::column(c));
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
#pragma unroll
        for (int c = 0; c < Layout::kColumns; ++c)
          output[row][c] = fmaf(weight[k * kRows + row], value[c], output[row][c]);
      }
    }
  }
}

// Running maximum and sum of the rows of which the lane holds scores; the sum is of the lane's own scores.
template <typename Kernel>
struct SplitSoftmax {
  using Layout = ScoreLayout<Kernel>;
  float maximum[Layout::kHeldRows], sum[Layout::kHeldRows];

  __device__ SplitSoftmax() {
#pragma unroll
    for (int r = 0; r < Layout::kHeldRows; ++r) {
      maximum[r] = kMinusInfinity;
      sum[r] = 0.0f;
    }
  }

  // Scores → weights, written as (keys, rows). What outputs must be multiplied with follows them; whether some must be is
  // what it returns, to all lanes alike.
  __device__ bool update(const float (&score)[Layout::kHeld], float *weights) {
    bool rises = false;
#pragma unroll
    for (int r = 0; r < Layout::kHeldRows; ++r) {
      const float *own = score + r * Layout::kHeldKeys;
      float highest = own[0];
#pragma unroll
      for (int k = 1; k < Layout::kHeldKeys; ++k) highest = fmaxf(highest, own[k]);
      highest = fmaxf(maximum[r], Layout::reduce(highest, [](float a, float b) { return fmaxf(a, b); }));
      const float origin = highest == kMinusInfinity ? 0.0f : highest;
      const float rescale = weight_of(maximum[r] - origin);
      rises = rises || highest > maximum[r];
      maximum[r] = highest;
      sum[r] *= rescale;
#pragma unroll
      for (int k = 0; k < Layout::kHeldKeys; ++k) {
        const float weight = weight_of(own[k] - origin);
        sum[r] += weight;
        weights[Layout::key(k) * Kernel::kRows + Layout::row(r)] = weight;
      }
      weights[Kernel::kKeys * Kernel::kRows + Layout::row(r)] = rescale;
    }
    return __any_sync(0xffffffffu, rises);
  }

  // To where a warp's results wait for merge_warps().
  __device__ void write(float *results) const {
#pragma unroll
    for (int r = 0; r < Layout::kHeldRows; ++r) {
      const float total = Layout::reduce(sum[r], [](float a, float b) { return a + b; });
      float *row = results + Layout::row(r) * Kernel::kRowFloats;
      row[Kernel::kPitch] = maximum[r];
      row[Kernel::kPitch + 1] = total * (1.0f / Layout::kCopies);
    }
  }
};

// The block's rows of Q, zeros outside.
template <typename Kernel>
__device__ inline void load_queries(float *tile, const AttentionParams &p, int batch, int key_head, int first_row) {
  for (int row = threadIdx.x / 32; row < Kernel::kRows; row += Kernel::kWarps) {
    const auto [i, h] = packed_row(p, key_head, first_row + row);
    const float *source =
        static_cast<float *>(p.query.data) + batch * p.query.batch + h * p.query.head + i * p.query.sequence;
#pragma unroll
    for (int column = lane_id(); column < Kernel::kHeadDimension; column += 32) {
      const bool take = i < p.queries && column < p.head_dimension;
      tile[row * Kernel::kHeadDimension + column] = take ? source[column * p.query.dimension] : 0.0f;
    }
  }
}

template <typename Kernel>
__device__ inline void decode_split_of_float32(const AttentionParams &p) {
  using Scores = ScoreLayout<Kernel>;
  using Outputs = OutputLayout<Kernel>;
  constexpr int kRows = Kernel::kRows, kKeys = Kernel::kKeys, kStages = Kernel::kStages;
  extern __shared__ __align__(128) unsigned char shared[];
  float *const memory = reinterpret_cast<float *>(shared);
  if constexpr (Kernel::Tiles::kStartsEarly) ptx::wait_for_prerequisites();
  int row_tile = 0, split = blockIdx.x;
  if (p.queries * p.heads_per_key > kRows) {
    row_tile = blockIdx.x / p.splits;
    split = blockIdx.x % p.splits;
  }
  const int first_row = kRows * row_tile, key_head = blockIdx.y, batch = blockIdx.z, warp = threadIdx.x / 32;
  const Visibility visibility(p, batch);
  const int last_query = min(packed_row(p, key_head, first_row + kRows - 1).query, p.queries - 1);
  const KeyRange visit = visibility.to_visit(p, packed_row(p, key_head, first_row).query, last_query);
  const int readable = visibility.readable_values(p);
  const KeyRange own_keys = keys_of_split<Kernel>(p, visit, split);
  const int begin = own_keys.begin, end = own_keys.end;

  const auto base = [&](const OrtFlashTensor &t) {
    return static_cast<float *>(t.data) + batch * t.batch + key_head * t.head;
  };
  const RowStream<kKeys, Kernel::kHeadDimension> keys(base(p.key), p.key, p.head_dimension);
  const RowStream<kKeys, Kernel::kHeadDimension> values(base(p.value), p.value, p.value_dimension);
  float *const tiles = memory + warp * kStages * 2 * Kernel::kTileFloats;
  float *const query = memory + Kernel::kWarps * kStages * 2 * Kernel::kTileFloats;
  float *const weights = query + Kernel::kQueryFloats + warp * Kernel::kWeightFloats;
  const auto fetch = [&](int stage, int first) {
    float *tile = tiles + stage * 2 * Kernel::kTileFloats;
    if (first < end) {
      keys.load(tile, first, p.keys, p.wide_loads);
      values.load(tile + Kernel::kTileFloats, first, readable, p.wide_loads);
    }
    ptx::copy_async_commit();
  };
  constexpr int kStride = kKeys * Kernel::kWarps;
  const int first = begin + kKeys * warp;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) fetch(s, first + s * kStride);
  if constexpr (Kernel::kCombining == Combining::kWorkspace) {
    if (p.tally && threadIdx.x == 0) open_tally(p, tally_index<Kernel>(p, row_tile));
  }
  load_queries<Kernel>(query, p, batch, key_head, first_row);

  KeyRange visible[Scores::kHeldRows];
  int64_t mask_row[Scores::kHeldRows];
#pragma unroll
  for (int r = 0; r < Scores::kHeldRows; ++r) {
    const auto [i, h] = packed_row(p, key_head, first_row + Scores::row(r));
    visible[r] = visibility.of(min(i, p.queries - 1));
    mask_row[r] = mask_row_of(p, batch, min(h, p.query_heads - 1), min(i, p.queries - 1));
  }
  SplitSoftmax<Kernel> softmax;
  float output[kRows][Outputs::kColumns] = {};
  __syncthreads();  // the queries are there
  int stage = 0;
  for (int first_key = first; first_key < end; first_key += kStride) {
    fetch((stage + kStages - 1) % kStages, first_key + (kStages - 1) * kStride);
    float mask[Scores::kHeld];  // on its way while the warp waits for the keys
#pragma unroll
    for (int n = 0; n < Scores::kHeld; ++n) {
      const int r = n / Scores::kHeldKeys, key = first_key + Scores::key(n % Scores::kHeldKeys);
      mask[n] = mask_at<float>(p, visible[r], mask_row[r], key);
    }
    ptx::copy_async_wait<kStages - 1>();
    __syncwarp();
    const float *tile = tiles + stage * 2 * Kernel::kTileFloats;
    float raw[Scores::kCount], score[Scores::kHeld];
    multiply_query_key<Kernel>(raw, query, tile);
    add_lanes<Scores::kCount, Scores::kLanes>(raw);
#pragma unroll
    for (int n = 0; n < Scores::kHeld; ++n) {
      const int r = n / Scores::kHeldKeys, key = first_key + Scores::key(n % Scores::kHeldKeys);
      score[n] = key < p.keys ? score_with_mask(p, visible[r], key, raw[n], mask[n]) : kMinusInfinity;
    }
    const bool rescale = softmax.update(score, weights);
    __syncwarp();  // the weights are there
    if (rescale) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
#pragma unroll
        for (int c = 0; c < Outputs::kColumns; ++c) output[row][c] *= weights[kKeys * kRows + row];
      }
    }
    multiply_weight_value<Kernel>(output, weights, tile + Kernel::kTileFloats);
    __syncwarp();  // the stage is free for the copies of the next step, and so are the weights
    stage = (stage + 1) % kStages;
  }

  ptx::copy_async_wait<0>();
  __syncthreads();  // results take the place of the stages
  float *own = memory + warp * kRows * Kernel::kRowFloats;
  softmax.write(own);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
#pragma unroll
    for (int c = 0; c < Outputs::kColumns; ++c) own[row * Kernel::kRowFloats + Outputs::column(c)] = output[row][c];
  }
  __syncthreads();
  merge_warps<Kernel>(p, memory, batch, key_head, first_row, split);
  if constexpr (Kernel::kCombining == Combining::kCluster) {
    if (p.splits > 1) combine_cluster<Kernel>(p, memory, batch, key_head, first_row, split);
  } else if (p.tally) {
    combine_in_last_block<Kernel>(p, memory, row_tile, batch, key_head);
  }
}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 8 / Kernel::kWarps)
    decode_float32(const __grid_constant__ AttentionParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  // Never started there.
  if constexpr (!Kernel::Tiles::kStartsEarly)
#endif
    decode_split_of_float32<Kernel>(p);
}

}  // namespace ortflash
