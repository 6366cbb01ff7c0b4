// Which keys a query sees, and the rules between Q·Kᵀ and the softmax: scale, softcap, mask, causality, windows, lengths
// (graph-rewrite/op/definition.ts). A 16-row fragment lies over a warp as mma.sync and wgmma leave it: lane l holds rows
// l/4 and l/4 + 8, and of every 8 columns the two at 2·(l mod 4).
#pragma once
#include <cmath>

#include "element.cuh"
#include "params.cuh"
#include "ptx.cuh"

namespace ortflash {

constexpr float kMinusInfinity = -INFINITY;

// Half-open range of keys.
struct KeyRange {
  int begin, end;
};

// What causality, windows and lengths leave visible, for one batch entry.
struct Visibility {
  int offset;  // position of query 0 among the keys
  int limit;   // keys from here on are masked (length, or the end of a short mask)
  int left, right;

  __device__ Visibility(const AttentionParams &p, int batch) {
    const int length = p.key_lengths ? static_cast<int>(p.key_lengths[batch]) : p.keys;
    offset = p.align_end ? p.keys - p.queries : p.key_lengths ? length - p.queries : p.past_keys;
    limit = max(0, min(length, p.keys));
    if (p.mask.kind != ORTFLASH_MASK_NONE) limit = min(limit, static_cast<int>(p.mask.keys));
    left = p.left_window;
    right = p.is_causal ? 0 : p.right_window;
  }

  __device__ KeyRange of(int query) const {
    const int position = query + offset;
    return {left >= 0 ? max(0, position - left) : 0, right >= 0 ? min(limit, position + right + 1) : limit};
  }

  // Keys that some query of first..last must visit; empty where begin >= end.
  __device__ KeyRange to_visit(const AttentionParams &p, int first, int last) const {
    if (p.visit_all_keys) return {0, p.keys};
    return {of(first).begin, of(last).end};
  }

  // Rows of V that may be read: what lies past a length is not the call's to read.
  __device__ int readable_values(const AttentionParams &p) const { return p.visit_all_keys ? p.keys : limit; }
};

template <int kColumns>
struct ScoreFragment {
  float value[kColumns / 8][4];  // of column group j: row l/4 columns 0, 1; row l/4 + 8 columns 0, 1
};

// The queries that a block has where it takes kRows of one head; the last of a head first, which are the longest where causal.
template <int kRows>
struct BlockTile {
  int first_query, head, batch;

  __device__ explicit BlockTile(const AttentionParams &p) {
    const int tiles = (p.queries + kRows - 1) / kRows;
    first_query = (tiles - 1 - static_cast<int>(blockIdx.x % tiles)) * kRows;
    head = blockIdx.x / tiles % p.query_heads;
    batch = blockIdx.x / tiles / p.query_heads;
  }
};

// Which query and head the lane's two rows belong to.
struct FragmentRows {
  int query[2];
  int head[2];
};

__device__ inline int lane_id() { return threadIdx.x & 31; }
__device__ inline int lane_column() { return (threadIdx.x & 3) * 2; }

// Keys outside each row's range get the score `hidden`. `first_key` is the fragment's first column.
template <int kColumns>
__device__ inline void hide_outside(ScoreFragment<kColumns> &scores, const KeyRange (&range)[2], int first_key,
                                    float hidden) {
  const int origin = first_key + lane_column();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int begin = range[r].begin - origin, end = range[r].end - origin;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = 8 * j + c;
        float &score = scores.value[j][2 * r + c];
        if (column < begin || column >= end) score = hidden;
      }
    }
  }
}

// The same by sides, with −∞: before and after each row's range. Half the comparisons where only one side matters.
template <int kColumns>
__device__ inline void hide_before(ScoreFragment<kColumns> &scores, const KeyRange (&range)[2], int first_key) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int begin = range[r].begin - first_key - lane_column();
#pragma unroll
    for (int n = 0; n < kColumns / 4; ++n) {
      if (n / 2 * 8 + n % 2 < begin) scores.value[n / 2][2 * r + n % 2] = kMinusInfinity;
    }
  }
}

template <int kColumns>
__device__ inline void hide_after(ScoreFragment<kColumns> &scores, const KeyRange (&range)[2], int first_key) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int end = range[r].end - first_key - lane_column();
#pragma unroll
    for (int n = 0; n < kColumns / 4; ++n) {
      if (n / 2 * 8 + n % 2 >= end) scores.value[n / 2][2 * r + n % 2] = kMinusInfinity;
    }
  }
}

// Where the mask of one row of scores begins.
__device__ inline int64_t mask_row_of(const AttentionParams &p, int batch, int head, int query) {
  if (p.mask.kind == ORTFLASH_MASK_NONE) return 0;
  return static_cast<int64_t>(batch % p.mask.batches) * p.mask.batch + head * p.mask.head + query * p.mask.query;
}

// Exchanges words within each quad of lanes, so that lane t holds word t of lanes 0..3.
__device__ inline void transpose_quad(uint32_t (&word)[4]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? word[k] : word[k + 1], 1);
    word[k] = odd ? other : word[k];
    word[k + 1] = odd ? word[k + 1] : other;
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? word[k] : word[k + 2], 2);
    word[k] = upper ? other : word[k];
    word[k + 2] = upper ? word[k + 2] : other;
  }
}

// One fragment's part of the mask, two neighbouring keys in a word: additive elements as they are, booleans as bytes.
// load() starts the reads; settle() puts what came in place.
template <int kColumns>
struct MaskFragment {
  uint32_t pair[kColumns / 8][2];
  bool wide;

  // Each lane reads eight neighbouring keys at once, of every fourth group of eight; settle() swaps them into place.
  __device__ void load_wide(const AttentionParams &p, const int64_t (&row)[2], int first_key) {
    static_assert(kColumns % 32 == 0 || kColumns < 32);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int j = 0; j + 4 <= kColumns / 8; j += 4) {
        const int64_t index = row[r] + first_key + 8 * (j + (threadIdx.x & 3));
        if (p.mask.kind == ORTFLASH_MASK_BOOLEAN) {
          const uint2 eight = *reinterpret_cast<const uint2 *>(static_cast<const uint8_t *>(p.mask.data) + index);
          pair[j][r] = eight.x;
          pair[j + 1][r] = eight.y;
        } else {
          const uint4 eight = *reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(p.mask.data) + index);
          pair[j][r] = eight.x;
          pair[j + 1][r] = eight.y;
          pair[j + 2][r] = eight.z;
          pair[j + 3][r] = eight.w;
        }
      }
    }
  }

  __device__ void settle(const AttentionParams &p) {
    if (!wide) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int j = 0; j + 4 <= kColumns / 8; j += 4) {
        uint32_t word[4] = {pair[j][r], pair[j + 1][r], pair[j + 2][r], pair[j + 3][r]};
        if (p.mask.kind == ORTFLASH_MASK_BOOLEAN) {
          word[3] = word[1] >> 16;
          word[2] = word[1] & 0xffff;
          word[1] = word[0] >> 16;
          word[0] &= 0xffff;
        }
        transpose_quad(word);
#pragma unroll
        for (int k = 0; k < 4; ++k) pair[j + k][r] = word[k];
      }
    }
  }

  // One element at a time. Past the end it reads the last element instead: no branch keeps the loads apart.
  template <typename Word, int kShift>
  __device__ void load_elements(const AttentionParams &p, const int64_t (&row)[2], int first_key, int limit) {
    const auto *data = static_cast<const Word *>(p.mask.data);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        const int key = first_key + 8 * j + lane_column();
        const uint32_t low = data[row[r] + min(key, limit - 1) * p.mask.key];
        const uint32_t high = data[row[r] + min(key + 1, limit - 1) * p.mask.key];
        pair[j][r] = low | high << kShift;
      }
    }
  }

  __device__ void load(const AttentionParams &p, int batch, const FragmentRows &rows, int first_key) {
    const int limit = static_cast<int>(min(p.mask.keys, static_cast<int64_t>(p.keys)));
    int64_t row[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = mask_row_of(p, batch, min(rows.head[r], p.query_heads - 1), min(rows.query[r], p.queries - 1));
    }
    wide = kColumns % 32 == 0 && p.wide_mask && first_key + kColumns <= limit;
    if (wide) {
      load_wide(p, row, first_key);
    } else if (p.mask.kind == ORTFLASH_MASK_BOOLEAN) {
      load_elements<uint8_t, 8>(p, row, first_key, limit);
    } else {
      load_elements<uint16_t, 16>(p, row, first_key, limit);
    }
  }
};

// tanh through two special-function instructions; absolute error below 1e-6.
__device__ inline float fast_tanh(float x) {
  const float e = ptx::exp2(2.0f * kLog2E * x);
  return 1.0f - 2.0f * ptx::reciprocal(e + 1.0f);
}

// The rules, applied to raw scores.
template <typename Element, int kColumns>
__device__ inline void apply_rules(ScoreFragment<kColumns> &scores, const AttentionParams &p,
                                   const KeyRange (&range)[2], const MaskFragment<kColumns> &mask, int first_key) {
  auto each = [&](auto &&rule) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) rule(scores.value[j][2 * r], scores.value[j][2 * r + 1], mask.pair[j][r]);
    }
  };
  if (p.softcap > 0.0f) {
    const float inner = p.scale / p.softcap;
    each([&](float &a, float &b, uint32_t) {
      a = p.softcap * fast_tanh(a * inner);
      b = p.softcap * fast_tanh(b * inner);
    });
  }
  const float scale = p.softcap > 0.0f ? 1.0f : p.scale;
  if (p.mask.kind == ORTFLASH_MASK_ADDITIVE) {
    each([&](float &a, float &b, uint32_t pair) {
      const float2 bias = ElementOps<Element>::unpack(pair);
      a = fmaf(a, scale, bias.x);
      b = fmaf(b, scale, bias.y);
    });
  } else if (p.mask.kind == ORTFLASH_MASK_BOOLEAN) {
    each([&](float &a, float &b, uint32_t pair) {
      a = pair & 0xff ? a * scale : p.masked_score;
      b = pair & 0xff00 ? b * scale : p.masked_score;
    });
  } else {
    each([&](float &a, float &b, uint32_t) {
      a *= scale;
      b *= scale;
    });
  }
  if (range[1].begin > first_key || range[0].end < first_key + kColumns)
    hide_outside(scores, range, first_key, p.masked_score);
  if (p.keys < first_key + kColumns) {
    const KeyRange all[2] = {{0, p.keys}, {0, p.keys}};
    hide_outside(scores, all, first_key, kMinusInfinity);
  }
}

// The mask at one key that is visible by position, else 0: what an additive one adds; of booleans 1 or 0. `mask_row` is the
// row's first element in the mask.
template <typename Element>
__device__ inline float mask_at(const AttentionParams &p, KeyRange visible, int64_t mask_row, int key) {
  if (p.mask.kind == ORTFLASH_MASK_NONE || key < visible.begin || key >= visible.end) return 0.0f;
  const int64_t index = mask_row + key * p.mask.key;
  return p.mask.kind == ORTFLASH_MASK_BOOLEAN
             ? static_cast<float>(static_cast<const uint8_t *>(p.mask.data)[index] != 0)
             : ElementOps<Element>::widen(static_cast<const Element *>(p.mask.data)[index]);
}

// The rules for one score, where a thread holds it alone; `mask` is what mask_at() has found.
__device__ inline float score_with_mask(const AttentionParams &p, KeyRange visible, int key, float raw, float mask) {
  bool taken_out = key < visible.begin || key >= visible.end;
  float score = raw * p.scale;
  if (p.softcap > 0.0f) score = p.softcap * tanhf(score / p.softcap);
  if (p.mask.kind == ORTFLASH_MASK_BOOLEAN) taken_out = taken_out || mask == 0.0f;
  else score += mask;
  return taken_out ? p.masked_score : score;
}

template <typename Element>
__device__ inline float ruled_score(const AttentionParams &p, KeyRange visible, int64_t mask_row, int key, float raw) {
  return score_with_mask(p, visible, key, raw, mask_at<Element>(p, visible, mask_row, key));
}

}  // namespace ortflash
