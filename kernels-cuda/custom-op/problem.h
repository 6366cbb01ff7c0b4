// From a node's attributes and its inputs' types and shapes to one call of the kernels, checked against the operator's
// definition (graph-rewrite/op/definition.ts and problem.ts).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../include/ortflash_attention.h"
#include "layout.h"

namespace ortflash {

// The node's attributes with defaults filled in.
struct Attributes {
  float scale = 0.0f;  // 0: 1/√(head dimension)
  float softcap = 0.0f;
  float masked_value = -__builtin_inff();
  int64_t is_causal = 0, query_heads = 0, key_heads = 0;
  int64_t left_window = -1, right_window = -1;
  int64_t align_end = 0, mask_period = 0, softmax_precision = 0;
  Layout query_layout, key_layout, value_layout, output_layout;
};

// Inputs by position.
enum Input { kQuery, kKey, kValue, kMask, kPastKey, kPastValue, kKeyLengths, kSink, kInputs };
extern const char *const kInputNames[kInputs];

struct TensorDescription {
  std::vector<int64_t> shape;
  bool is_boolean = false;  // only a mask can be
};

// Shapes of the call's outputs; sizes and strides of the call itself. `call` has no pointers yet: data of Q, K, V and Y
// belongs `offset` elements into their tensors.
struct Problem {
  OrtFlashAttention call{};
  int64_t query_offset = 0, key_offset = 0, value_offset = 0;
  std::vector<int64_t> output_shape, present_key_shape, present_value_shape;
};

// Throws std::invalid_argument with the input's name, where something does not fit.
Problem resolve_problem(const Attributes &attributes, const std::optional<TensorDescription> (&inputs)[kInputs]);

// What a model tells of its outputs' shapes; of the present ones only where there is a past.
struct OutputExtents {
  std::vector<Extent> output, present_key, present_value;
};

// From what it tells of the inputs' shapes: nothing that the call's check would not hold it to. Q, K and V are there.
OutputExtents infer_outputs(const Attributes &attributes, const std::optional<std::vector<Extent>> (&inputs)[kInputs]);

}  // namespace ortflash
