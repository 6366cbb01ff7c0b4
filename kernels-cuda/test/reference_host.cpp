// The kernels' C interface on host memory, in double precision, as the operator's formula says it
// (graph-rewrite/op/definition.ts): with it the custom op's own part (attributes, layouts, shapes, optional inputs and
// outputs) is tested through ONNX Runtime on a machine without a GPU.
#include <cmath>
#include <cstring>
#include <vector>

#include "../include/ortflash_attention.h"

namespace {

double half_to_double(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 0    ? std::ldexp(fraction, -24)
                           : exponent == 31 ? (fraction ? NAN : INFINITY)
                                            : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

double load(const void *data, int element, int64_t index) {
  if (element == ORTFLASH_FLOAT32) return static_cast<const float *>(data)[index];
  const uint16_t bits = static_cast<const uint16_t *>(data)[index];
  if (element == ORTFLASH_FLOAT16) return half_to_double(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

// Nearest half: by search over its ordered bit patterns, which needs no rounding rules.
uint16_t to_half(double x) {
  const double magnitude = std::fabs(x);
  uint16_t low = 0, high = 0x7c00;
  while (high - low > 1) {
    const uint16_t middle = (low + high) / 2;
    (half_to_double(middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - half_to_double(low), above = high == 0x7c00 ? 65536 - magnitude
                                                                               : half_to_double(high) - magnitude;
  const uint16_t nearest = below < above || (below == above && low % 2 == 0) ? low : high;
  return std::signbit(x) ? nearest | 0x8000 : nearest;
}

void store(void *data, int element, int64_t index, double x) {
  if (element == ORTFLASH_FLOAT32) {
    static_cast<float *>(data)[index] = static_cast<float>(x);
  } else if (element == ORTFLASH_FLOAT16) {
    static_cast<uint16_t *>(data)[index] = to_half(x);
  } else {
    const float narrow = static_cast<float>(x);
    uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    static_cast<uint16_t *>(data)[index] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
}

// What a product takes of x: all of it, or, where a call of float32 allows tf32, 10 bits behind the point.
double operand(const OrtFlashAttention &c, double x) {
  if (!c.allow_tf32 || c.element != ORTFLASH_FLOAT32) return x;
  int exponent;
  const double fraction = std::frexp(x, &exponent);
  return std::ldexp(std::round(std::ldexp(fraction, 11)), exponent - 11);
}

// Rows (b, h, j) of keys or values, past ones first.
struct Cache {
  const OrtFlashAttention &call;
  const void *past;
  const OrtFlashTensor &added;
  int dimension;

  double operator()(int64_t b, int64_t h, int64_t j, int64_t d) const {
    if (j < call.past_keys)
      return load(past, call.element, ((b * call.key_heads + h) * call.past_keys + j) * dimension + d);
    return load(added.data, call.element,
                b * added.batch + h * added.head + (j - call.past_keys) * added.sequence + d * added.dimension);
  }

  void write_present(void *present) const {
    if (!present) return;
    int64_t n = 0;
    for (int b = 0; b < call.batch; ++b)
      for (int h = 0; h < call.key_heads; ++h)
        for (int j = 0; j < call.past_keys + call.new_keys; ++j)
          for (int d = 0; d < dimension; ++d) store(present, call.element, n++, (*this)(b, h, j, d));
  }
};

double score(const OrtFlashAttention &c, const Cache &key, int b, int h, int i, int j) {
  const int keys = c.past_keys + c.new_keys;
  const int64_t length = c.key_lengths ? c.key_lengths[b] : keys;
  const int64_t offset = c.align_end ? keys - c.queries : c.key_lengths ? length - c.queries : c.past_keys;
  const int64_t position = i + offset;
  bool out = j >= length || (c.is_causal && j > position) || (c.left_window >= 0 && j < position - c.left_window) ||
             (c.right_window >= 0 && j > position + c.right_window);
  double bias = 0;
  if (c.mask.kind != ORTFLASH_MASK_NONE) {
    out = out || j >= c.mask.keys;
    const int64_t at = b % c.mask.batches * c.mask.batch + h * c.mask.head + i * c.mask.query + j * c.mask.key;
    if (!out && c.mask.kind == ORTFLASH_MASK_BOOLEAN) out = !static_cast<const uint8_t *>(c.mask.data)[at];
    else if (!out) bias = load(c.mask.data, c.element, at);
  }
  if (out) return c.masked_value;
  double dot = 0;
  for (int d = 0; d < c.head_dimension; ++d) {
    const double query = load(c.query.data, c.element,
                              b * c.query.batch + h * c.query.head + i * c.query.sequence + d * c.query.dimension);
    dot += operand(c, query) * operand(c, key(b, h / (c.query_heads / c.key_heads), j, d));
  }
  dot *= c.scale;
  return (c.softcap > 0 ? c.softcap * std::tanh(dot / c.softcap) : dot) + bias;
}

void attend_row(const OrtFlashAttention &c, const Cache &key, const Cache &value, int b, int h, int i) {
  const int keys = c.past_keys + c.new_keys;
  std::vector<double> weights(keys), output(c.value_dimension);
  const double sink = c.sink ? load(c.sink, c.element, h) : -INFINITY;
  double highest = sink;
  for (int j = 0; j < keys; ++j) highest = std::fmax(highest, weights[j] = score(c, key, b, h, i, j));
  double sum = highest == -INFINITY ? 1 : std::exp(sink - highest);
  for (double &weight : weights) sum += weight = highest == -INFINITY ? 0 : std::exp(weight - highest);
  for (int j = 0; j < keys; ++j) {
    if (weights[j] == 0) continue;
    for (int d = 0; d < c.value_dimension; ++d)
      output[d] += operand(c, weights[j]) / sum * operand(c, value(b, h / (c.query_heads / c.key_heads), j, d));
  }
  for (int d = 0; d < c.value_dimension; ++d) {
    store(c.output.data, c.element,
          b * c.output.batch + h * c.output.head + i * c.output.sequence + d * c.output.dimension, output[d]);
  }
}

}  // namespace

extern "C" const char *ortflash_device_check(void) { return nullptr; }

extern "C" const char *ortflash_attention_workspace(const OrtFlashAttention *, size_t *bytes) {
  *bytes = 0;
  return nullptr;
}

extern "C" const char *ortflash_attention_kernel_name(const OrtFlashAttention *) { return "reference"; }

extern "C" const char *ortflash_attention_run(const OrtFlashAttention *call, void *, void *) {
  const OrtFlashAttention &c = *call;
  const Cache key{c, c.past_key, c.key, c.head_dimension}, value{c, c.past_value, c.value, c.value_dimension};
  for (int b = 0; b < c.batch; ++b)
    for (int h = 0; h < c.query_heads; ++h)
      for (int i = 0; i < c.queries; ++i) attend_row(c, key, value, b, h, i);
  key.write_present(c.present_key);
  value.write_present(c.present_value);
  return nullptr;
}
