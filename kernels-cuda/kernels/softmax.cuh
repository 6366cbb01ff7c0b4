// Online softmax over 16-row fragments (FlashAttention, algorithm 1; FlashAttention-2, section 3.1: divide once, at the
// end), and the way of a finished output fragment to memory.
#pragma once
#include "scores.cuh"

namespace ortflash {

template <typename Combine>
__device__ inline float reduce_quad(float x, Combine combine) {
  x = combine(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return combine(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// e^x for the difference of two scores.
__device__ inline float weight_of(float difference) { return ptx::exp2(difference * kLog2E); }

// What a row's output must be multiplied with, and the logarithm of its denominator, from its largest score and its sum of
// weights. `sink` is one more logit, −∞ for none. A row without any key gives 0 and −∞.
__device__ inline float finish_row(float maximum, float sum, float sink, float &lse) {
  const float highest = fmaxf(maximum, sink);
  lse = kMinusInfinity;
  if (highest == kMinusInfinity) return 0.0f;
  const float shrink = weight_of(maximum - highest);
  const float denominator = sum * shrink + weight_of(sink - highest);
  lse = highest + logf(denominator);
  return shrink / denominator;
}

// Running maximum and sum of the lane's two rows; the sum is the lane's own part. Raw scores are scaled inside the
// exponential, by one multiply-add (kRules false, scale > 0). Ruled scores are subtracted first: they reach −3.4e38, which
// exporters write for −∞, and times log2(e) that would overflow.
template <bool kRules>
struct RowSoftmax {
  float maximum[2] = {kMinusInfinity, kMinusInfinity};
  float sum[2] = {0.0f, 0.0f};

  // Scores → weights exp(scale·(score − maximum)); returns in `rescale` what earlier weights must be multiplied with.
  template <int kColumns>
  __device__ void update(ScoreFragment<kColumns> &scores, float scale, float (&rescale)[2]) {
    const float factor = kRules ? kLog2E : scale * kLog2E;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = scores.value[0][2 * r];
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        highest = fmaxf(highest, fmaxf(scores.value[j][2 * r], scores.value[j][2 * r + 1]));
      }
      highest = fmaxf(maximum[r], reduce_quad(highest, [](float a, float b) { return fmaxf(a, b); }));
      const float origin = highest == kMinusInfinity ? 0.0f : highest, base = origin * factor;
      rescale[r] = ptx::exp2((maximum[r] - origin) * factor);
      maximum[r] = highest;
      float total = 0.0f;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float &score = scores.value[j][2 * r + c];
          score = ptx::exp2(kRules ? (score - origin) * factor : fmaf(score, factor, -base));
          total += score;
        }
      }
      sum[r] = sum[r] * rescale[r] + total;
    }
  }

  // Of the lane's row r; `scale` as in update().
  __device__ float finish(int r, float scale, float sink, float &lse) const {
    const float total = reduce_quad(sum[r], [](float a, float b) { return a + b; });
    const bool natural = kRules || maximum[r] == kMinusInfinity;
    return finish_row(natural ? maximum[r] : maximum[r] * scale, total, sink, lse);
  }
};

template <typename Element>
__device__ inline float sink_logit(const AttentionParams &p, int head) {
  return p.sink ? ElementOps<Element>::widen(static_cast<const Element *>(p.sink)[head]) : kMinusInfinity;
}

// Weights → the A operand of the next matrix product, 16 columns at a time: fragments of mma and wgmma accumulators have
// the operand's layout already.
template <typename Element, int kColumns>
__device__ inline void to_operand(const ScoreFragment<kColumns> &scores, uint32_t (&operand)[kColumns / 16][4]) {
#pragma unroll
  for (int k = 0; k < kColumns / 16; ++k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float(&s)[4] = scores.value[2 * k + half];
      operand[k][2 * half] = ElementOps<Element>::pack(s[0], s[1]);
      operand[k][2 * half + 1] = ElementOps<Element>::pack(s[2], s[3]);
    }
  }
}

// Writes the lane's two rows of an output fragment, each multiplied with its factor. `row[r]` points at column 0 of the
// row, null where the row does not exist. All lanes of the warp take part.
template <typename Element, int kColumns>
__device__ inline void store_rows(const float (&output)[kColumns / 8][4], const float (&factor)[2],
                                  Element *const (&row)[2], const AttentionParams &p) {
  const int columns = p.value_dimension;
  const int64_t stride = p.output.dimension;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (p.wide_stores) {
#pragma unroll
      for (int j = 0; j < kColumns / 8; j += 4) {
        uint32_t word[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float(&o)[4] = output[j + k];
          word[k] = ElementOps<Element>::pack(o[2 * r] * factor[r], o[2 * r + 1] * factor[r]);
        }
        transpose_quad(word);
        const int column = 8 * (j + (threadIdx.x & 3));
        if (row[r] != nullptr && column < columns)
          *reinterpret_cast<uint4 *>(row[r] + column) = make_uint4(word[0], word[1], word[2], word[3]);
      }
    } else if (row[r] != nullptr) {
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = 8 * j + lane_column() + c;
          if (column < columns) row[r][column * stride] = ElementOps<Element>::narrow(output[j][2 * r + c] * factor[r]);
        }
      }
    }
  }
}

}  // namespace ortflash
