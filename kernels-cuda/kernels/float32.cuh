// FlashAttention-2 (Dao 2023, section 3) in float32 on the ordinary arithmetic units. What they need is instructions that are
// multiply-adds, and enough of them that wait for nothing: each number that a lane reads from shared memory serves 4 or 8, tiles
// are padded so that addresses cost nothing, operands are read one step ahead. As many warps as a row of the output has times 64
// columns share their queries: of both products each has keys and columns of its own, so that they exchange rows' maxima and, by
// shared memory, weights. Keys and values come in chunks, the next while one is computed with.
#pragma once
#include "softmax.cuh"

namespace ortflash {

// kOwnRows, kOwnKeys: scores that a lane has at a time; of the output kOwnRows × 8.
template <int kHeadDimension_, int kOwnRows_, int kOwnKeys_, bool kRules_>
struct Float32Kernel {
  static constexpr int kHeadDimension = kHeadDimension_, kOwnRows = kOwnRows_, kOwnKeys = kOwnKeys_;
  static constexpr bool kRules = kRules_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kBlocks = kOwnRows == 8 ? 2 : 3;  // that a multiprocessor holds
  // A warp's lanes are 4 × 8: lane (y, x) has queries kOwnRows·y + r, of the warp's keys x + 8·j, of its columns 4x + 32·c.
  static constexpr int kAcross = 8, kDown = 4, kOwnQuads = 2;
  static constexpr int kWarpRows = kDown * kOwnRows, kWarpKeys = kAcross * kOwnKeys;
  // Warps that share queries, and keys of a step.
  static constexpr int kSharing = kHeadDimension / 64, kKeys = kWarpKeys * kSharing, kRows = kWarps / kSharing * kWarpRows;
  // Chunks: all keys of a step and kDepth of their dimensions; kValues of its values.
  static constexpr int kDepth = 64 / kSharing, kValues = kWarpKeys / kSharing;
  static constexpr int kKeyChunks = kHeadDimension / kDepth, kValueChunks = kKeys / kValues, kChunks = kKeyChunks + kValueChunks;
  // Queries and weights lie in shared memory with a row for each dimension or key, so that a lane reads those of its queries at
  // once. Neighbouring rows begin 4 banks apart, for lanes that take four numbers of a row each.
  static constexpr int kQueryPitch = kRows + 4, kKeyPitch = kDepth + 4;
  struct Shared {
    float query[kHeadDimension * kQueryPitch], weights[kKeys * kQueryPitch], chunk[2][kKeys * kKeyPitch];
    float row[kWarps][kWarpRows];  // maxima or sums of each warp's rows
  };
  static_assert(kValues * kHeadDimension <= kKeys * kKeyPitch && kChunks % 2 == 0);
};

__device__ inline float4 load_quad(const float *from) { return *reinterpret_cast<const float4 *>(from); }

// A thread's place.
template <typename Kernel>
struct ThreadPlace {
  int warp, x, y;
  int first_row;  // of the block's queries
  int part;       // which of a step's keys, and of the columns

  __device__ ThreadPlace() {
    warp = threadIdx.x / 32;
    x = threadIdx.x % Kernel::kAcross;
    y = threadIdx.x / Kernel::kAcross % Kernel::kDown;
    first_row = warp / Kernel::kSharing * Kernel::kWarpRows;
    part = warp % Kernel::kSharing;
  }

  __device__ int row(int r) const { return first_row + Kernel::kOwnRows * y + r; }
  __device__ int key(int j) const { return Kernel::kWarpKeys * part + x + Kernel::kAcross * j; }
  __device__ int column(int c) const { return 64 * part + 4 * (x + Kernel::kAcross * c); }
};

// Four numbers of a row of a strided matrix; zeros outside.
__device__ inline float4 read_quad(const float *matrix, const OrtFlashTensor &t, int row, int column, int row_limit,
                                   int column_limit, bool wide) {
  float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (row >= row_limit || column >= column_limit) return four;
  const float *from = matrix + row * t.sequence + column * t.dimension;
  if (wide) return load_quad(from);
  four.x = from[0];
  if (column + 1 < column_limit) four.y = from[t.dimension];
  if (column + 2 < column_limit) four.z = from[2 * t.dimension];
  if (column + 3 < column_limit) four.w = from[3 * t.dimension];
  return four;
}

// kRows rows of kQuads quads of a strided matrix → shared memory, in the background where rows allow it; zeros outside.
template <typename Kernel, int kRows, int kQuads, int kPitch>
__device__ inline void fetch_tile(float *tile, const float *matrix, const OrtFlashTensor &t, int first_row, int first_column,
                                  int row_limit, int column_limit, bool wide) {
  constexpr int kStep = Kernel::kThreads / kQuads;
  static_assert(kRows % kStep == 0);
  const int first = threadIdx.x / kQuads, row = first_row + first;
  const int column = threadIdx.x % kQuads * 4, from_column = first_column + column;
  float *to = tile + first * kPitch + column;
  if (wide) {
    const float *from = matrix + row * t.sequence + from_column;
    const int rows = from_column < column_limit ? row_limit - row : 0;
#pragma unroll
    for (int n = 0; n < kRows; n += kStep)
      ptx::copy_async_16(ptx::shared_address(to + n * kPitch), n < rows ? from + n * t.sequence : matrix, n < rows);
    return;
  }
#pragma unroll 1
  for (int n = 0; n < kRows; n += kStep)
    *reinterpret_cast<float4 *>(to + n * kPitch) = read_quad(matrix, t, row + n, from_column, row_limit, column_limit, false);
}

template <typename Kernel>
using OwnScores = float[Kernel::kOwnRows][Kernel::kOwnKeys];
template <typename Kernel>
using OwnOutputs = float[Kernel::kOwnRows][Kernel::kOwnQuads][4];

// One dimension, or one key's weights, of a lane's queries. Which of them a register holds then follows from the query alone: the
// compiler can keep each product's operands and its sum in different banks of the registers, where a number for each of four
// dimensions would meet its sum in one bank for two of them (log 24 of NOTES.md).
template <typename Kernel>
__device__ inline void load_rows(float (&to)[Kernel::kOwnRows], const float *from) {
#pragma unroll
  for (int r = 0; r < Kernel::kOwnRows; r += 4) {
    const float4 four = load_quad(from + r);
    to[r] = four.x, to[r + 1] = four.y, to[r + 2] = four.z, to[r + 3] = four.w;
  }
}

template <typename Kernel>
__device__ inline void load_four_rows(float (&to)[4][Kernel::kOwnRows], const float *from) {
#pragma unroll
  for (int n = 0; n < 4; ++n) load_rows<Kernel>(to[n], from + n * Kernel::kQueryPitch);
}

// S += Q·Kᵀ over four dimensions, with those of the queries here and the next ones on their way. `keys` begins at the lane's
// first.
template <typename Kernel>
__device__ inline void multiply_query_key(OwnScores<Kernel> &scores, const float (&q)[4][Kernel::kOwnRows],
                                          float (&next)[4][Kernel::kOwnRows], const float *next_query, const float *keys) {
#pragma unroll
  for (int j = 0; j < Kernel::kOwnKeys; ++j) {
    if (j == 2) load_four_rows<Kernel>(next, next_query);
    const float4 k = load_quad(keys + Kernel::kAcross * j * Kernel::kKeyPitch);
#pragma unroll
    for (int r = 0; r < Kernel::kOwnRows; ++r) scores[r][j] = fmaf(q[0][r], k.x, scores[r][j]);
#pragma unroll
    for (int r = 0; r < Kernel::kOwnRows; ++r) scores[r][j] = fmaf(q[1][r], k.y, scores[r][j]);
#pragma unroll
    for (int r = 0; r < Kernel::kOwnRows; ++r) scores[r][j] = fmaf(q[2][r], k.z, scores[r][j]);
#pragma unroll
    for (int r = 0; r < Kernel::kOwnRows; ++r) scores[r][j] = fmaf(q[3][r], k.w, scores[r][j]);
  }
}

// The same over a chunk's dimensions. `query` begins at the lane's first row and the chunk's first dimension.
template <typename Kernel>
__device__ inline void add_query_key(OwnScores<Kernel> &scores, const float *query, const float *keys) {
  float even[4][Kernel::kOwnRows], odd[4][Kernel::kOwnRows];
  load_four_rows<Kernel>(even, query);
#pragma unroll 1
  for (int d = 0; d < Kernel::kDepth; d += 8) {
    const float *after = query + (d + 8 < Kernel::kDepth ? d + 8 : d) * Kernel::kQueryPitch;
    multiply_query_key<Kernel>(scores, even, odd, query + (d + 4) * Kernel::kQueryPitch, keys + d);
    multiply_query_key<Kernel>(scores, odd, even, after, keys + d + 4);
  }
}

// O += P·V over four keys. `values` begins at the lane's first column.
template <typename Kernel>
__device__ inline void multiply_weight_value(OwnOutputs<Kernel> &output, const float (&w)[4][Kernel::kOwnRows],
                                             float (&next)[4][Kernel::kOwnRows], const float *next_weights,
                                             const float *values) {
  load_four_rows<Kernel>(next, next_weights);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
#pragma unroll
    for (int c = 0; c < Kernel::kOwnQuads; ++c) {
      const float4 v = load_quad(values + e * Kernel::kHeadDimension + 4 * Kernel::kAcross * c);
#pragma unroll
      for (int r = 0; r < Kernel::kOwnRows; ++r) output[r][c][0] = fmaf(w[e][r], v.x, output[r][c][0]);
#pragma unroll
      for (int r = 0; r < Kernel::kOwnRows; ++r) output[r][c][1] = fmaf(w[e][r], v.y, output[r][c][1]);
#pragma unroll
      for (int r = 0; r < Kernel::kOwnRows; ++r) output[r][c][2] = fmaf(w[e][r], v.z, output[r][c][2]);
#pragma unroll
      for (int r = 0; r < Kernel::kOwnRows; ++r) output[r][c][3] = fmaf(w[e][r], v.w, output[r][c][3]);
    }
  }
}

// The same over a chunk's keys.
template <typename Kernel>
__device__ inline void add_weight_value(OwnOutputs<Kernel> &output, const float *weights, const float *values) {
  float even[4][Kernel::kOwnRows], odd[4][Kernel::kOwnRows];
  load_four_rows<Kernel>(even, weights);
#pragma unroll 1
  for (int k = 0; k < Kernel::kValues; k += 8) {
    const float *after = weights + (k + 8 < Kernel::kValues ? k + 8 : k) * Kernel::kQueryPitch;
    multiply_weight_value<Kernel>(output, even, odd, weights + (k + 4) * Kernel::kQueryPitch,
                                  values + k * Kernel::kHeadDimension);
    multiply_weight_value<Kernel>(output, odd, even, after, values + (k + 4) * Kernel::kHeadDimension);
  }
}

// Each row's value of all lanes that share its queries, combined: lane x ends up with that of row x mod kOwnRows, at the
// price of kOwnRows − 1 exchanges and not three for each row.
template <typename Kernel, typename Combine>
__device__ inline float reduce_rows(float (&value)[Kernel::kOwnRows], const ThreadPlace<Kernel> &place,
                                    const Combine &combine) {
#pragma unroll
  for (int half = Kernel::kOwnRows / 2; half > 0; half /= 2) {
    const bool upper = place.x & half;
#pragma unroll
    for (int r = 0; r < half; ++r) {
      const float other = __shfl_xor_sync(0xffffffffu, upper ? value[r] : value[r + half], half);
      value[r] = combine(upper ? value[r + half] : value[r], other);
    }
  }
#pragma unroll
  for (int step = Kernel::kOwnRows; step < Kernel::kAcross; step *= 2)
    value[0] = combine(value[0], __shfl_xor_sync(0xffffffffu, value[0], step));
  return value[0];
}

// The number of row r, which lane x = r has.
template <typename Kernel>
__device__ inline float of_row(float value, int r) {
  return __shfl_sync(0xffffffffu, value, (lane_id() & ~(Kernel::kAcross - 1)) + r);
}

// A number of the lane's row, combined over the warps that share it. Every thread of the block takes part.
template <typename Kernel, typename Combine>
__device__ inline float combine_warps(float value, typename Kernel::Shared &shared, const ThreadPlace<Kernel> &place,
                                      const Combine &combine) {
  if constexpr (Kernel::kSharing > 1) {
    const int row = Kernel::kOwnRows * place.y + place.x % Kernel::kOwnRows, first = place.warp - place.part;
    if (place.x < Kernel::kOwnRows) shared.row[place.warp][row] = value;
    __syncthreads();
#pragma unroll
    for (int w = 1; w < Kernel::kSharing; ++w)
      value = combine(value, shared.row[first + (place.part + w) % Kernel::kSharing][row]);
  }
  return value;
}

// Raw scores → scores as the softmax takes them.
template <typename Kernel>
__device__ inline void apply_rules(OwnScores<Kernel> &scores, const AttentionParams &p, const Visibility &visibility, int batch,
                                   int head, int first_query, int first_key, const ThreadPlace<Kernel> &place) {
#pragma unroll
  for (int r = 0; r < Kernel::kOwnRows; ++r) {
    const int query = min(first_query + place.row(r), p.queries - 1);
    const KeyRange visible = visibility.of(query);
    const int64_t mask_row = Kernel::kRules ? mask_row_of(p, batch, head, query) : 0;
#pragma unroll
    for (int j = 0; j < Kernel::kOwnKeys; ++j) {
      const int key = first_key + place.key(j);
      float &score = scores[r][j];
      if constexpr (Kernel::kRules) score = key < p.keys ? ruled_score<float>(p, visible, mask_row, key, score) : kMinusInfinity;
      else if (key < visible.begin || key >= visible.end) score = kMinusInfinity;
    }
  }
}

// The largest score of the lane's row, see reduce_rows().
template <typename Kernel>
__device__ inline float highest_score(const OwnScores<Kernel> &scores, const ThreadPlace<Kernel> &place) {
  float highest[Kernel::kOwnRows];
#pragma unroll
  for (int r = 0; r < Kernel::kOwnRows; ++r) {
    highest[r] = scores[r][0];
#pragma unroll
    for (int j = 1; j < Kernel::kOwnKeys; ++j) highest[r] = fmaxf(highest[r], scores[r][j]);
  }
  return reduce_rows<Kernel>(highest, place, [](float a, float b) { return fmaxf(a, b); });
}

// Maximum of the lane's row, as all warps that share it have it, and sum over this warp's keys.
template <typename Kernel>
struct Softmax {
  float maximum = kMinusInfinity, sum = 0.0f;

  // Scores → weights in shared memory, where `weights` is the lane's first; outputs so far are brought to the new maximum.
  __device__ void update(float highest, OwnScores<Kernel> &scores, OwnOutputs<Kernel> &output, float *weights, float scale,
                         const ThreadPlace<Kernel> &place) {
    const float factor = Kernel::kRules ? kLog2E : scale * kLog2E;
    const float origin = highest == kMinusInfinity ? 0.0f : highest;
    const float rescale = ptx::exp2((maximum - origin) * factor);
    const bool grows = __any_sync(0xffffffffu, highest > maximum);
    maximum = highest;
    float part[Kernel::kOwnRows];
#pragma unroll
    for (int r = 0; r < Kernel::kOwnRows; ++r) {
      const float start = of_row<Kernel>(origin, r), base = start * factor;
      part[r] = 0.0f;
#pragma unroll
      for (int j = 0; j < Kernel::kOwnKeys; ++j) {
        float &score = scores[r][j];
        score = ptx::exp2(Kernel::kRules ? (score - start) * factor : fmaf(score, factor, -base));
        part[r] += score;
      }
      if (!grows) continue;
      const float shrink = of_row<Kernel>(rescale, r);
#pragma unroll
      for (int c = 0; c < Kernel::kOwnQuads; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output[r][c][e] *= shrink;
      }
    }
#pragma unroll
    for (int j = 0; j < Kernel::kOwnKeys; ++j) {
#pragma unroll
      for (int r = 0; r < Kernel::kOwnRows; r += 4) {
        *reinterpret_cast<float4 *>(weights + Kernel::kAcross * j * Kernel::kQueryPitch + r) =
            make_float4(scores[r][j], scores[r + 1][j], scores[r + 2][j], scores[r + 3][j]);
      }
    }
    sum = sum * rescale + reduce_rows<Kernel>(part, place, [](float a, float b) { return a + b; });
  }
};

// Divides the lane's rows by their sums and writes them, with the logarithms of the sums.
template <typename Kernel>
__device__ inline void write_rows(const AttentionParams &p, const OwnOutputs<Kernel> &output, float maximum, float sum,
                                  int batch, int head, int first_query, const ThreadPlace<Kernel> &place) {
  const bool natural = Kernel::kRules || maximum == kMinusInfinity;
  float lse;
  const float own = finish_row(natural ? maximum : maximum * p.scale, sum, sink_logit<float>(p, head), lse);
  const int own_query = first_query + place.row(place.x % Kernel::kOwnRows);
  if (p.log_sum_exp && place.part == 0 && place.x < Kernel::kOwnRows && own_query < p.queries)
    p.log_sum_exp[(static_cast<int64_t>(batch) * p.query_heads + head) * p.queries + own_query] = lse;
  float *matrix = static_cast<float *>(p.output.data) + batch * p.output.batch + head * p.output.head;
#pragma unroll
  for (int r = 0; r < Kernel::kOwnRows; ++r) {
    const float factor = of_row<Kernel>(own, r);
    const int query = first_query + place.row(r);
    if (query >= p.queries) continue;
    float *row = matrix + query * p.output.sequence;
#pragma unroll
    for (int c = 0; c < Kernel::kOwnQuads; ++c) {
      const int column = place.column(c);
      const float(&o)[4] = output[r][c];
      if (p.wide_stores) {
        if (column < p.value_dimension)
          *reinterpret_cast<float4 *>(row + column) =
              make_float4(o[0] * factor, o[1] * factor, o[2] * factor, o[3] * factor);
        continue;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (column + e < p.value_dimension) row[(column + e) * p.output.dimension] = o[e] * factor;
      }
    }
  }
}

// Brings what a block computes with to shared memory.
template <typename Kernel>
struct Fetch {
  const AttentionParams &p;
  const float *keys, *values;
  int readable;  // values from here on are zeros

  __device__ void chunk(float *to, int first_key, int number) const {
    if (number < Kernel::kKeyChunks) {
      fetch_tile<Kernel, Kernel::kKeys, Kernel::kDepth / 4, Kernel::kKeyPitch>(
          to, keys, p.key, first_key, number * Kernel::kDepth, p.keys, p.head_dimension, p.wide_loads);
    } else {
      fetch_tile<Kernel, Kernel::kValues, Kernel::kHeadDimension / 4, Kernel::kHeadDimension>(
          to, values, p.value, first_key + (number - Kernel::kKeyChunks) * Kernel::kValues, 0, readable, p.value_dimension,
          p.wide_loads);
    }
    ptx::copy_async_commit();
  }

  // With a row for each dimension; neighbouring threads take neighbouring queries, so that they write side by side.
  __device__ void queries(float *to, const float *from, int first_query) const {
#pragma unroll 4
    for (int n = threadIdx.x; n < Kernel::kRows * Kernel::kHeadDimension / 4; n += Kernel::kThreads) {
      const int row = n % Kernel::kRows, column = n / Kernel::kRows * 4;
      const float4 four =
          read_quad(from, p.query, first_query + row, column, p.queries, p.head_dimension, p.wide_loads);
      float *at = to + column * Kernel::kQueryPitch + row;
      at[0] = four.x, at[Kernel::kQueryPitch] = four.y;
      at[2 * Kernel::kQueryPitch] = four.z, at[3 * Kernel::kQueryPitch] = four.w;
    }
  }
};

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    float32_attention(const __grid_constant__ AttentionParams p) {
  constexpr int kKeys = Kernel::kKeys, kRows = Kernel::kRows, kKeyChunks = Kernel::kKeyChunks;
  extern __shared__ __align__(16) unsigned char memory[];
  auto &shared = *reinterpret_cast<typename Kernel::Shared *>(memory);
  const BlockTile<kRows> tile(p);
  const int first_query = tile.first_query, head = tile.head, batch = tile.batch;
  const int key_head = head / p.heads_per_key;
  auto base = [&](const OrtFlashTensor &t, int h) {
    return static_cast<const float *>(t.data) + batch * t.batch + h * t.head;
  };
  const Visibility visibility(p, batch);
  const KeyRange visit = visibility.to_visit(p, first_query, min(first_query + kRows, p.queries) - 1);
  const Fetch<Kernel> fetch{p, base(p.key, key_head), base(p.value, key_head), visibility.readable_values(p)};
  const ThreadPlace<Kernel> place;
  // What the warp's first and last query see.
  const int warp_query = first_query + place.first_row;
  const KeyRange top = visibility.of(warp_query);
  const KeyRange bottom = visibility.of(min(warp_query + Kernel::kWarpRows, p.queries) - 1);

  // From the lane's first row on.
  const float *query = shared.query + place.row(0);
  float *weights = shared.weights + place.row(0);
  Softmax<Kernel> softmax;
  OwnOutputs<Kernel> output = {};
  const int begin = visit.begin / kKeys * kKeys;
  if (begin < visit.end) {
    fetch.queries(shared.query, base(p.query, head), first_query);
    fetch.chunk(shared.chunk[0], begin, 0);
  }
  for (int first_key = begin; first_key < visit.end; first_key += kKeys) {
    const bool some = p.visit_all_keys || (top.begin < first_key + kKeys && bottom.end > first_key);
    const bool all = bottom.begin <= first_key && top.end >= first_key + kKeys;
    // The chunk, as soon as it is there and no warp computes with the one before any more; the next is asked for.
    auto next = [&](int n) -> const float * {
      ptx::copy_async_wait<0>();
      __syncthreads();
      const bool last = n + 1 == Kernel::kChunks;
      if (!last || first_key + kKeys < visit.end)
        fetch.chunk(shared.chunk[(n + 1) % 2], last ? first_key + kKeys : first_key, last ? 0 : n + 1);
      return shared.chunk[n % 2];
    };
    OwnScores<Kernel> scores = {};
#pragma unroll 1
    for (int n = 0; n < kKeyChunks; ++n) {
      const float *chunk = next(n);
      if (some) add_query_key<Kernel>(scores, query + n * Kernel::kDepth * Kernel::kQueryPitch, chunk + place.key(0) * Kernel::kKeyPitch);
    }
    float highest = softmax.maximum;
    if (some) {
      if (Kernel::kRules || !all)
        apply_rules<Kernel>(scores, p, visibility, batch, head, first_query, first_key, place);
      highest = fmaxf(highest, highest_score<Kernel>(scores, place));
    }
    highest = combine_warps<Kernel>(highest, shared, place, [](float a, float b) { return fmaxf(a, b); });
    if (some) softmax.update(highest, scores, output, weights + place.key(0) * Kernel::kQueryPitch, p.scale, place);
#pragma unroll 1
    for (int n = 0; n < Kernel::kValueChunks; ++n) {
      const float *chunk = next(kKeyChunks + n);
      if (some) add_weight_value<Kernel>(output, weights + n * Kernel::kValues * Kernel::kQueryPitch, chunk + place.column(0));
    }
  }
  const float sum = combine_warps<Kernel>(softmax.sum, shared, place, [](float a, float b) { return a + b; });
  write_rows<Kernel>(p, output, softmax.maximum, sum, batch, head, first_query, place);
}

}  // namespace ortflash
