#include "problem.h"

#include <cmath>
#include <limits>
#include <stdexcept>

namespace ortflash {

const char *const kInputNames[kInputs] = {"Q",        "K",          "V",                "attn_mask",
                                          "past_key", "past_value", "nonpad_kv_seqlen", "sink"};

namespace {

void require(bool condition, Input input, const std::string &what) {
  if (!condition) throw std::invalid_argument(std::string("FlashAttention: ") + kInputNames[input] + " " + what);
}

int32_t narrow(int64_t size) {
  if (size < 0 || size > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("FlashAttention: a size of " + std::to_string(size) + " is not supported");
  return static_cast<int32_t>(size);
}

StridedTensor see(Input input, const TensorDescription &tensor, const Layout &layout, int64_t heads,
                  std::optional<int64_t> dimension) {
  KnownSizes known;
  if (heads > 0) known[kHeads] = heads;
  known[kDimension] = dimension;
  try {
    return resolve_layout(layout, tensor.shape, known);
  } catch (const std::invalid_argument &error) {
    throw std::invalid_argument(std::string("FlashAttention: ") + kInputNames[input] + ": " + error.what());
  }
}

OrtFlashTensor strided(const StridedTensor &tensor) {
  return {nullptr, tensor.stride[kBatch], tensor.stride[kHeads], tensor.stride[kSequence], tensor.stride[kDimension]};
}

int64_t check_past(const std::optional<TensorDescription> (&inputs)[kInputs], int64_t batch, const StridedTensor &key,
                   const StridedTensor &value) {
  const auto &past_key = inputs[kPastKey], &past_value = inputs[kPastValue];
  if (!past_key && !past_value) return 0;
  require(past_key.has_value() && past_value.has_value(), past_key ? kPastKey : kPastValue, "is given without the other");
  const int64_t past = past_key->shape.size() == 4 ? past_key->shape[2] : -1;
  const auto check = [&](Input input, int64_t dimension) {
    const std::vector<int64_t> expected{batch, key.size[kHeads], past, dimension};
    require(inputs[input]->shape == expected, input, "must have shape (batch, key heads, past keys, head dimension)");
  };
  check(kPastKey, key.size[kDimension]);
  check(kPastValue, value.size[kDimension]);
  return past;
}

// Element (b, h, i, j) of a mask of rank 4 at most, any dimension broadcast.
OrtFlashMask describe_mask(const TensorDescription &tensor, int64_t period, const OrtFlashAttention &call) {
  require(tensor.shape.size() <= 4, kMask, "must have rank 4 at most");
  int64_t size[4] = {1, 1, 1, 1};
  std::copy(tensor.shape.begin(), tensor.shape.end(), size + 4 - tensor.shape.size());
  const int64_t keys = int64_t{call.past_keys} + call.new_keys;
  const bool batch_fits = period > 0 ? size[0] == period && call.batch % period == 0
                                     : size[0] == 1 || size[0] == call.batch;
  require(batch_fits && (size[1] == 1 || size[1] == call.query_heads) && (size[2] == 1 || size[2] == call.queries) &&
              (size[3] == 1 || size[3] <= keys),
          kMask, "must broadcast to (batch, query heads, queries, keys)");
  const bool broadcast_keys = size[3] == 1 && keys != 1;
  OrtFlashMask mask{};
  mask.kind = tensor.is_boolean ? ORTFLASH_MASK_BOOLEAN : ORTFLASH_MASK_ADDITIVE;
  mask.batches = narrow(size[0]);
  mask.keys = broadcast_keys ? keys : size[3];
  mask.key = broadcast_keys ? 0 : 1;
  mask.query = size[2] == 1 ? 0 : size[3];
  mask.head = size[1] == 1 ? 0 : size[2] * size[3];
  mask.batch = size[0] == 1 ? 0 : size[1] * size[2] * size[3];
  return mask;
}

}  // namespace

Problem resolve_problem(const Attributes &a, const std::optional<TensorDescription> (&inputs)[kInputs]) {
  const auto seen = [&](Input input, const Layout &layout, int64_t heads) -> std::optional<StridedTensor> {
    if (slices_head_dimension(layout)) return std::nullopt;
    return see(input, *inputs[input], layout, heads, std::nullopt);
  };
  // A sliced dimension tells nothing of the head dimension; another input does.
  auto query_first = seen(kQuery, a.query_layout, a.query_heads);
  auto key_first = seen(kKey, a.key_layout, a.key_heads);
  auto value_first = seen(kValue, a.value_layout, a.key_heads);
  const auto past_dimension = [&](Input input) -> std::optional<int64_t> {
    if (!inputs[input] || inputs[input]->shape.size() != 4) return std::nullopt;
    return inputs[input]->shape[3];
  };
  std::optional<int64_t> dimension = past_dimension(kPastKey);
  if (query_first) dimension = query_first->size[kDimension];
  else if (key_first) dimension = key_first->size[kDimension];
  else if (!dimension && value_first) dimension = value_first->size[kDimension];
  const auto value_dimension = past_dimension(kPastValue) ? past_dimension(kPastValue) : dimension;
  const StridedTensor query =
      query_first ? *query_first : see(kQuery, *inputs[kQuery], a.query_layout, a.query_heads, dimension);
  const StridedTensor key = key_first ? *key_first : see(kKey, *inputs[kKey], a.key_layout, a.key_heads, dimension);
  const StridedTensor value =
      value_first ? *value_first : see(kValue, *inputs[kValue], a.value_layout, a.key_heads, value_dimension);

  const int64_t batch = query.size[kBatch], query_heads = query.size[kHeads], key_heads = key.size[kHeads];
  require(key.size[kBatch] == batch, kKey, "must have the batch of Q");
  require(value.size[kBatch] == batch, kValue, "must have the batch of Q");
  require(value.size[kHeads] == key_heads, kValue, "must have the heads of K");
  require(value.size[kSequence] == key.size[kSequence], kValue, "must have the positions of K");
  require(key.size[kDimension] == query.size[kDimension], kKey, "must have the head dimension of Q");
  require(key_heads > 0 && query_heads % key_heads == 0, kKey, "must have a number of heads that divides those of Q");

  Problem problem;
  OrtFlashAttention &call = problem.call;
  call.batch = narrow(batch);
  call.query_heads = narrow(query_heads);
  call.key_heads = narrow(key_heads);
  call.queries = narrow(query.size[kSequence]);
  call.new_keys = narrow(key.size[kSequence]);
  call.past_keys = narrow(check_past(inputs, batch, key, value));
  call.head_dimension = narrow(query.size[kDimension]);
  call.value_dimension = narrow(value.size[kDimension]);
  call.query = strided(query);
  call.key = strided(key);
  call.value = strided(value);
  problem.query_offset = query.offset;
  problem.key_offset = key.offset;
  problem.value_offset = value.offset;

  const Sizes output{batch, query_heads, query.size[kSequence], value.size[kDimension]};
  problem.output_shape = layout_shape(a.output_layout, output);
  call.output = strided(resolve_layout(a.output_layout, problem.output_shape,
                                       {output[kBatch], output[kHeads], output[kSequence], output[kDimension]}));
  if (inputs[kPastKey]) {
    const int64_t keys = int64_t{call.past_keys} + call.new_keys;
    problem.present_key_shape = {batch, key_heads, keys, call.head_dimension};
    problem.present_value_shape = {batch, key_heads, keys, call.value_dimension};
  }
  if (inputs[kMask]) call.mask = describe_mask(*inputs[kMask], a.mask_period, call);
  if (inputs[kKeyLengths])
    require(inputs[kKeyLengths]->shape == std::vector<int64_t>{batch}, kKeyLengths, "must have shape (batch)");
  if (inputs[kSink])
    require(inputs[kSink]->shape == std::vector<int64_t>{query_heads}, kSink, "must have shape (query heads)");
  call.scale = a.scale == 0.0f ? 1.0f / std::sqrt(static_cast<float>(call.head_dimension)) : a.scale;
  call.softcap = a.softcap;
  call.is_causal = a.is_causal != 0;
  call.left_window = static_cast<int32_t>(std::min<int64_t>(a.left_window, 0x3fffffff));
  call.right_window = static_cast<int32_t>(std::min<int64_t>(a.right_window, 0x3fffffff));
  call.align_end = a.align_end != 0;
  call.masked_value = a.masked_value;
  return problem;
}

OutputExtents infer_outputs(const Attributes &a, const std::optional<std::vector<Extent>> (&inputs)[kInputs]) {
  const auto seen = [&](Input input, const Layout &layout, int64_t heads) {
    return layout_extents(layout, *inputs[input], {std::nullopt, heads > 0 ? std::optional(heads) : std::nullopt});
  };
  const auto seen_past = [&](Input input) {
    return inputs[input] ? layout_extents(parse_layout("BHSD"), *inputs[input], {}) : Extents{};
  };
  const Extents query = seen(kQuery, a.query_layout, a.query_heads), key = seen(kKey, a.key_layout, a.key_heads),
                value = seen(kValue, a.value_layout, a.key_heads), past_key = seen_past(kPastKey),
                past_value = seen_past(kPastValue);
  // Of extents that have to be equal: a number, or else a name.
  const auto any = [](std::initializer_list<const Extents *> tensors, Axis axis) {
    Extent found;
    for (const Extents *tensor : tensors) {
      const Extent &extent = (*tensor)[axis];
      if (extent.size) return extent;
      if (found.name.empty()) found = extent;
    }
    return found;
  };
  const Extent batch = any({&query, &key, &value, &past_key, &past_value}, kBatch);
  const Extent key_heads = any({&key, &value, &past_key, &past_value}, kHeads);
  const Extent dimension = any({&query, &key, &past_key}, kDimension);
  Extent value_dimension = any({&value, &past_value}, kDimension);
  // A slice of a dimension says nothing of its width: a value head is then as wide as a key head.
  if (slices_head_dimension(a.value_layout) && !inputs[kPastValue]) value_dimension = dimension;

  OutputExtents outputs;
  outputs.output = layout_shape(a.output_layout, {batch, query[kHeads], query[kSequence], value_dimension});
  if (inputs[kPastKey]) {
    outputs.present_key = {batch, key_heads, {}, dimension};
    outputs.present_value = {batch, key_heads, {}, value_dimension};
  }
  return outputs;
}

}  // namespace ortflash
