// What the host hands every kernel: the call, with what follows from it computed once.
#pragma once
#include <vector_types.h>

#include <cstdint>

#include "../include/ortflash_attention.h"

namespace ortflash {

constexpr float kLog2E = 1.4426950408889634f;

struct AttentionParams {
  int batch, query_heads, key_heads;
  int heads_per_key;  // query heads that share a key head
  int queries, keys, past_keys;
  int head_dimension, value_dimension;
  OrtFlashTensor query, key, value, output;
  OrtFlashMask mask;
  const int64_t *key_lengths;
  const void *sink;
  float *log_sum_exp;
  float scale, softcap;
  int left_window, right_window;  // -1: none
  bool is_causal, align_end;
  float masked_score;   // of a masked key: masked_value, or −∞ where that comes to the same
  bool visit_all_keys;  // a masked key may have weight (finite masked_value), so no key is skipped
  bool wide_mask;       // eight neighbouring mask elements can be read at once
  // 16-byte accesses are aligned: rows of Q, K, V (loads) and of Y (stores).
  bool wide_loads, wide_stores;
  // Hopper: heads whose blocks are taken together, longest first.
  int heads_at_once;
  int *work_counter;  // null where the blocks are of one length
  // Decode: the keys are cut into `splits` parts, whose results wait in workspace for the combine step.
  int splits, keys_per_split;
  float *partial_output;    // (splits, B·query heads·queries, Dv), not yet divided by the sum
  float2 *partial_softmax;  // (splits, B·query heads·queries): maximum and sum
  // Where the last block combines, else null: a count for each tile of rows, and this call's tag in the upper 48 bits.
  unsigned long long *tally;
  unsigned long long tally_tag;
};

// How the decode kernel cuts the keys.
struct SplitRule {
  int blocks_per_multiprocessor;  // to aim for
  int least_keys, most_splits;
  bool power_of_two;
  int step = 64;  // splits are multiples of this many keys, itself one of 16
};

}  // namespace ortflash
