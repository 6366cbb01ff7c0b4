// FlashAttention-2 (Dao 2023, section 3) for float32 on the tensor cores: operands of both products are rounded to tf32, which
// keeps 10 bits of the fraction; scores, softmax and sums are float32. Only for callers that allow it. A block takes 64
// queries of one head, each of its four warps 16 of them.
#pragma once
#include "softmax.cuh"

namespace ortflash {

template <int kHeadDimension_, bool kRules_>
struct Tf32Kernel {
  static constexpr int kHeadDimension = kHeadDimension_;
  static constexpr bool kRules = kRules_;
  static constexpr int kThreads = 128, kRows = 64, kKeys = kHeadDimension == 64 && !kRules ? 64 : 32;
  // Of a row in shared memory. Rows begin 4 banks apart: neither ldmatrix, which reads 16 bytes of eight rows, nor the reads
  // of values, of two rows at a time, meet in a bank.
  static constexpr int kPitch = kHeadDimension + 4;
  struct Shared {
    float query[kRows][kPitch], key[kKeys][kPitch], value[kKeys][kPitch];
  };
};

// Rows of a strided matrix → shared memory, zeros outside; 16 bytes at a time in the background where rows allow it.
template <typename Kernel, int kRows>
__device__ inline void fetch_rows(float (&tile)[kRows][Kernel::kPitch], const float *matrix, const OrtFlashTensor &t,
                                  int first_row, int row_limit, int column_limit, bool wide) {
  if (!wide) {
    const bool along_rows = t.sequence == 1 && t.dimension != 1;
    for (int i = threadIdx.x; i < kRows * Kernel::kHeadDimension; i += Kernel::kThreads) {
      const int row = along_rows ? i % kRows : i / Kernel::kHeadDimension;
      const int column = along_rows ? i / kRows : i % Kernel::kHeadDimension;
      const bool take = first_row + row < row_limit && column < column_limit;
      tile[row][column] = take ? matrix[(first_row + row) * t.sequence + column * t.dimension] : 0.0f;
    }
    return;
  }
  constexpr int kPieces = Kernel::kHeadDimension / 4;
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kPieces; i += Kernel::kThreads) {
    const int row = i / kPieces, column = i % kPieces * 4;
    const bool take = first_row + row < row_limit && column < column_limit;
    const float *source = take ? matrix + (first_row + row) * t.sequence + column : matrix;
    ptx::copy_async_16(ptx::shared_address(&tile[row][column]), source, take);
  }
}

// Four 8×4 blocks of float32 as operands: each lane's number of each, rounded.
__device__ inline void load_tf32_x4(uint32_t (&r)[4], const float *row) {
  ptx::load_matrix_x4(r, ptx::shared_address(row));
#pragma unroll
  for (int n = 0; n < 4; ++n) r[n] = ptx::to_tf32(__uint_as_float(r[n]));
}

// S = Q·Kᵀ for the warp's rows.
template <typename Kernel>
__device__ inline void multiply_query_key(ScoreFragment<Kernel::kKeys> &scores, const typename Kernel::Shared &shared,
                                          int first_row) {
  const int lane = lane_id();
#pragma unroll 4
  for (int d = 0; d < Kernel::kHeadDimension; d += 8) {
    uint32_t a[4];
    load_tf32_x4(a, &shared.query[first_row + lane % 16][d + lane / 16 * 4]);
#pragma unroll
    for (int j = 0; j < Kernel::kKeys / 8; j += 2) {
      uint32_t b[4];
      load_tf32_x4(b, &shared.key[8 * j + lane % 8 + lane / 16 * 8][d + lane / 8 % 2 * 4]);
      ptx::multiply_tf32(scores.value[j], a, b[0], b[1]);
      ptx::multiply_tf32(scores.value[j + 1], a, b[2], b[3]);
    }
  }
}

// O += P·V for the warp's rows. A product's sum over eight keys may take them in any order: lane t holds weights of keys 2t
// and 2t + 1 where an operand has its columns t and t + 4, so the values' rows are taken in that order, too.
template <typename Kernel>
__device__ inline void multiply_weight_value(float (&output)[Kernel::kHeadDimension / 8][4],
                                             const ScoreFragment<Kernel::kKeys> &weights,
                                             const typename Kernel::Shared &shared) {
  const int column = lane_id() / 4;
#pragma unroll
  for (int k = 0; k < Kernel::kKeys / 8; ++k) {
    const float(&w)[4] = weights.value[k];
    const uint32_t a[4] = {ptx::to_tf32(w[0]), ptx::to_tf32(w[2]), ptx::to_tf32(w[1]), ptx::to_tf32(w[3])};
    const float *first = &shared.value[8 * k + lane_column()][column], *second = first + Kernel::kPitch;
#pragma unroll
    for (int n = 0; n < Kernel::kHeadDimension / 8; ++n)
      ptx::multiply_tf32(output[n], a, ptx::to_tf32(first[8 * n]), ptx::to_tf32(second[8 * n]));
  }
}

// Raw scores of the lane's two rows → scores as the softmax takes them.
template <typename Kernel>
__device__ inline void apply_rules(ScoreFragment<Kernel::kKeys> &scores, const AttentionParams &p, int batch,
                                   const FragmentRows &rows, const KeyRange (&range)[2], int first_key) {
  if constexpr (!Kernel::kRules) {
    if (range[1].begin > first_key || range[0].end < first_key + Kernel::kKeys)
      hide_outside(scores, range, first_key, kMinusInfinity);
    return;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t mask_row = mask_row_of(p, batch, rows.head[r], min(rows.query[r], p.queries - 1));
#pragma unroll
    for (int n = 0; n < Kernel::kKeys / 4; ++n) {
      const int key = first_key + n / 2 * 8 + lane_column() + n % 2;
      float &score = scores.value[n / 2][2 * r + n % 2];
      score = key < p.keys ? ruled_score<float>(p, range[r], mask_row, key, score) : kMinusInfinity;
    }
  }
}

// The lane's part of its two rows of the output.
template <typename Kernel>
__device__ inline void write_rows(const AttentionParams &p, int batch, const FragmentRows &rows,
                                  const RowSoftmax<Kernel::kRules> &softmax,
                                  const float (&output)[Kernel::kHeadDimension / 8][4]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = rows.query[r], head = rows.head[r];
    float lse;
    const float factor = softmax.finish(r, p.scale, sink_logit<float>(p, head), lse);
    if (i >= p.queries) continue;
    if (p.log_sum_exp && lane_column() == 0)
      p.log_sum_exp[(static_cast<int64_t>(batch) * p.query_heads + head) * p.queries + i] = lse;
    float *row = static_cast<float *>(p.output.data) + batch * p.output.batch + head * p.output.head + i * p.output.sequence;
#pragma unroll
    for (int n = 0; n < Kernel::kHeadDimension / 4; ++n) {
      const int column = n / 2 * 8 + lane_column() + n % 2;
      if (column < p.value_dimension) row[column * p.output.dimension] = output[n / 2][2 * r + n % 2] * factor;
    }
  }
}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) tf32_attention(const __grid_constant__ AttentionParams p) {
  constexpr int kHeadDimension = Kernel::kHeadDimension, kKeys = Kernel::kKeys, kRows = Kernel::kRows;
  extern __shared__ __align__(16) unsigned char memory[];
  auto &shared = *reinterpret_cast<typename Kernel::Shared *>(memory);
  const BlockTile<kRows> tile(p);
  const int first_query = tile.first_query, head = tile.head, batch = tile.batch;
  const int key_head = head / p.heads_per_key, first_row = threadIdx.x / 32 * 16;
  auto base = [&](const OrtFlashTensor &t, int h) { return static_cast<float *>(t.data) + batch * t.batch + h * t.head; };
  const float *keys = base(p.key, key_head), *values = base(p.value, key_head);
  const Visibility visibility(p, batch);
  const KeyRange visit = visibility.to_visit(p, first_query, min(first_query + kRows, p.queries) - 1);
  const int readable = visibility.readable_values(p);
  auto fetch_keys = [&](int first) {
    fetch_rows<Kernel>(shared.key, keys, p.key, first, p.keys, p.head_dimension, p.wide_loads);
    ptx::copy_async_commit();
  };

  FragmentRows rows;
  KeyRange range[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    rows.query[r] = first_query + first_row + lane_id() / 4 + 8 * r;
    rows.head[r] = head;
    range[r] = visibility.of(rows.query[r]);
  }
  RowSoftmax<Kernel::kRules> softmax;
  float output[kHeadDimension / 8][4] = {};
  const int begin = visit.begin / kKeys * kKeys;
  if (begin < visit.end) {
    fetch_rows<Kernel>(shared.query, base(p.query, head), p.query, first_query, p.queries, p.head_dimension, p.wide_loads);
    fetch_keys(begin);
  }
  for (int first_key = begin; first_key < visit.end; first_key += kKeys) {
    ScoreFragment<kKeys> scores = {};
    ptx::copy_async_wait<0>();
    __syncthreads();  // the keys are there, and no warp reads the last values any more
    fetch_rows<Kernel>(shared.value, values, p.value, first_key, readable, p.value_dimension, p.wide_loads);
    ptx::copy_async_commit();
    multiply_query_key<Kernel>(scores, shared, first_row);
    ptx::copy_async_wait<0>();
    __syncthreads();  // the values are there, and no warp reads these keys any more
    if (first_key + kKeys < visit.end) fetch_keys(first_key + kKeys);
    apply_rules<Kernel>(scores, p, batch, rows, range, first_key);
    float rescale[2];
    softmax.update(scores, p.scale, rescale);
#pragma unroll
    for (int n = 0; n < kHeadDimension / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[n][e] *= rescale[e / 2];
    }
    multiply_weight_value<Kernel>(output, scores, shared);
  }
  write_rows<Kernel>(p, batch, rows, softmax, output);
}

}  // namespace ortflash
