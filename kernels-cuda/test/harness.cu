// Standalone test of the CUDA attention kernels against a double-precision reference on the GPU.
//
//   harness [--cases N] [--seed N] [--kernel K] [--element E] [--scores N]
//                                                 random calls through every kernel that serves them, or through one
//                                                 (OrtFlashKernel in ortflash_attention.h), of every element type or of
//                                                 one (OrtFlashElement), of at most N scores each
//   harness --time [--kernel K]                   forward and decode speed of the kernels, as a table
//   harness --candidates                          checks every candidate kernel, then times it beside the table's own
//
// An output element may differ by a few roundings of the element type, weighed with Σ p·|v|; NaN never passes; output
// memory is poisoned before, and what lies between and beyond its elements has to stay poison.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>

#include "candidates/candidates.h"
#include "case.h"
#include "reference.cuh"
#include "timing.h"

namespace harness {

struct Case {
  OrtFlashAttention call{};
  Buffer query, key, value, past_key, past_value, mask, lengths, sink, output, present_key, present_value, lse;
  std::unique_ptr<Strided> output_layout;
  std::string description;
};

const char *kKernelNames[] = {"automatic", "scalar", "float32", "ampere", "hopper", "decode", "tf32"};

void fill(Random &random, Buffer &buffer, const Strided &layout, int element, int b, int h, int s, int d,
          const std::vector<int64_t> &limits) {
  std::normal_distribution<float> normal;
  buffer.reserve(layout.elements * element_bytes(element));
  for (int ib = 0; ib < b; ++ib) {
    for (int ih = 0; ih < h; ++ih) {
      for (int is = 0; is < s; ++is) {
        if (is >= limits[ib]) continue;  // stays NaN
        for (int id = 0; id < d; ++id) buffer.put(element, layout.at(ib, ih, is, id), normal(random));
      }
    }
  }
  buffer.upload();
}

void add_mask(Random &random, Case &made, const Wish *wish) {
  OrtFlashAttention &c = made.call;
  const int keys = c.past_keys + c.new_keys;
  c.mask.kind = chance(random, 0.5) && !wish ? ORTFLASH_MASK_BOOLEAN : ORTFLASH_MASK_ADDITIVE;
  const int element = c.mask.kind == ORTFLASH_MASK_BOOLEAN ? -1 : c.element;
  const int period = c.batch % 2 == 0 && chance(random, 0.3) ? 2 : c.batch;
  int sizes[4] = {chance(random, 0.5) ? 1 : period, chance(random, 0.5) ? 1 : c.query_heads,
                        chance(random, 0.3) ? 1 : c.queries,
                        chance(random, 0.1)   ? 1
                        : chance(random, 0.2) ? between(random, 1, keys)
                                              : keys};
  if (wish) {
    sizes[2] = c.queries;
    sizes[3] = chance(random, 0.8) ? keys : 8 * between(random, 1, keys / 8);
  }
  const bool broadcast_keys = sizes[3] == 1 && keys != 1;
  c.mask.batches = sizes[0];
  c.mask.keys = broadcast_keys ? keys : sizes[3];
  c.mask.key = broadcast_keys ? 0 : 1;
  c.mask.query = sizes[2] == 1 ? 0 : sizes[3];
  c.mask.head = sizes[1] == 1 ? 0 : int64_t{sizes[2]} * sizes[3];
  c.mask.batch = sizes[0] == 1 ? 0 : int64_t{sizes[1]} * sizes[2] * sizes[3];
  const int64_t elements = int64_t{sizes[0]} * sizes[1] * sizes[2] * sizes[3];
  made.mask.reserve(elements * (element < 0 ? 1 : element_bytes(element)));
  std::normal_distribution<float> normal;
  const float hidden = pick(random, {-INFINITY, element == ORTFLASH_FLOAT16 ? -65504.0f : -3.3895314e38f, -1e4f});
  const double visible = pick(random, {0.0, 0.5, 0.9, 0.9});
  for (int64_t n = 0; n < elements; ++n) {
    const bool see = chance(random, visible);
    if (element < 0) made.mask.host[n] = see;
    else made.mask.put(element, n, see ? normal(random) : hidden);
  }
  made.mask.upload();
  c.mask.data = made.mask.data;
}

// Sizes and options as wished.
void apply(const Wish &wish, Random &random, OrtFlashAttention &c) {
  c.element = wish.element;
  const auto dimension = [&] { return chance(random, 0.7) ? wish.dimension : wish.dimension - 8 * between(random, 0, 3); };
  c.head_dimension = dimension();
  c.value_dimension = dimension();
  c.past_keys = 0;
  if (!wish.few_queries && chance(random, 0.25)) {  // several work items for each block of a persistent kernel
    c.batch = c.key_heads = 3;
    c.query_heads = 24;
  }
  if (wish.few_queries) {
    c.queries = between(random, 1, 16 * c.key_heads / c.query_heads + 1);
    c.new_keys = pick(random, {between(random, 1, 200), between(random, 200, 4000)});
  } else {
    c.queries = pick(random, {between(random, 33, 200), between(random, 200, 420)});
    c.new_keys = chance(random, 0.6) ? c.queries : between(random, 1, 900);
  }
  c.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dimension));
  c.softcap = 0.0f;
  c.masked_value = -INFINITY;
  c.is_causal = chance(random, 0.6);
}

// The most scores that a random call has, over all heads: --scores.
int64_t most_scores = INT64_MAX;
// The element type that they have, -1 for any: --element.
int only_element = -1;

// Takes away batch entries, heads, and at last queries and keys, until there are no more scores than that.
void shrink(OrtFlashAttention &c) {
  const auto scores = [&] { return int64_t{c.batch} * c.query_heads * c.queries * (c.past_keys + c.new_keys); };
  while (scores() > most_scores) {
    const int group = c.query_heads / c.key_heads;
    if (c.batch > 1) {
      --c.batch;
    } else if (c.key_heads > 1) {
      c.query_heads = --c.key_heads * group;
    } else if (group > 1 && c.queries > 1) {
      c.query_heads = (group + 1) / 2;
    } else {
      c.queries = (c.queries * 3 + 3) / 4;
      c.new_keys = (c.new_keys * 3 + 3) / 4;
      c.past_keys = c.past_keys * 3 / 4;
    }
  }
}

// Options, sizes and data of one random call. `tidy` ones suit the copy engine and the wide loads.
std::unique_ptr<Case> make_case(Random &random, const Wish *wish = nullptr) {
  auto made = std::make_unique<Case>();
  OrtFlashAttention &c = made->call;
  const bool tidy = chance(random, 0.6) || wish;
  c.element = between(random, 0, 2);
  if (only_element >= 0) c.element = only_element;
  c.batch = between(random, 1, 3);
  c.key_heads = between(random, 1, 3);
  c.query_heads = c.key_heads * pick(random, {1, 1, 2, 3, 4, 8});
  c.queries = pick(random, {1, between(random, 1, 8), between(random, 1, 70), between(random, 100, 420)});
  const bool has_past = chance(random, 0.25) && !wish;
  c.past_keys = has_past ? between(random, 0, 300) : 0;
  c.new_keys = pick(random, {c.queries, c.queries, between(random, 1, 40), between(random, 1, 700)});
  const int largest = chance(random, 0.04) ? 320 : 256;
  const auto dimension = [&] { return tidy ? 8 * between(random, 1, largest / 8) : between(random, 1, largest); };
  c.head_dimension = chance(random, 0.5) ? pick(random, {64, 128, 256}) : dimension();
  c.value_dimension = chance(random, 0.6) ? c.head_dimension : dimension();

  c.scale = chance(random, 0.9) ? 1.0f / std::sqrt(static_cast<float>(c.head_dimension)) : -0.05f;
  c.softcap = chance(random, 0.15) ? 5.0f : 0.0f;
  c.is_causal = chance(random, 0.4);
  c.left_window = chance(random, 0.2) ? between(random, 0, 200) : -1;
  c.right_window = chance(random, 0.15) ? between(random, 0, 100) : -1;
  c.align_end = chance(random, 0.2);
  c.masked_value = chance(random, 0.75) ? -INFINITY : pick(random, {-65504.0f, -3.4028235e38f, -1e4f, -5.0f});

  if (wish) apply(*wish, random, c);
  shrink(c);
  if (wish && wish->bias) c.new_keys = (c.new_keys + 7) / 8 * 8;
  const int keys = c.past_keys + c.new_keys;

  std::vector<int64_t> lengths(c.batch, keys);
  if (chance(random, 0.2)) {
    for (auto &length : lengths) length = between(random, 0, keys);
    made->lengths.reserve(8 * c.batch);
    std::memcpy(made->lengths.host.data(), lengths.data(), 8 * c.batch);
    made->lengths.upload();
    c.key_lengths = static_cast<int64_t *>(made->lengths.data);
  }
  // What lies past a length is not to be read where masked keys weigh nothing.
  std::vector<int64_t> readable = std::isfinite(c.masked_value) ? std::vector<int64_t>(c.batch, keys) : lengths;
  std::vector<int64_t> readable_new = readable, everything(c.batch, INT64_MAX);
  for (auto &length : readable_new) length -= c.past_keys;

  const auto strided = [&](Buffer &buffer, OrtFlashTensor &tensor, int heads, int length, int d,
                           const std::vector<int64_t> &limits) {
    const Strided layout(random, c.batch, heads, length, d, tidy);
    fill(random, buffer, layout, c.element, c.batch, heads, length, d, limits);
    tensor = layout.view;
    tensor.data = static_cast<char *>(buffer.data) + layout.offset * element_bytes(c.element);
  };
  strided(made->query, c.query, c.query_heads, c.queries, c.head_dimension, everything);
  strided(made->key, c.key, c.key_heads, c.new_keys, c.head_dimension, readable_new);
  strided(made->value, c.value, c.key_heads, c.new_keys, c.value_dimension, readable_new);
  made->output_layout =
      std::make_unique<Strided>(random, c.batch, c.query_heads, c.queries, c.value_dimension, tidy);
  made->output.reserve(made->output_layout->elements * element_bytes(c.element));
  c.output = made->output_layout->view;
  c.output.data = static_cast<char *>(made->output.data) + made->output_layout->offset * element_bytes(c.element);

  if (has_past) {
    const auto past = [&](Buffer &buffer, Buffer &present, const void *&given, void *&target, int d) {
      const int64_t rows = int64_t{c.batch} * c.key_heads * c.past_keys;
      buffer.reserve(rows * d * element_bytes(c.element));
      std::normal_distribution<float> normal;
      for (int64_t n = 0; n < rows * d; ++n) {
        const int64_t row = n / d;
        if (row % c.past_keys < readable[row / c.past_keys / c.key_heads]) buffer.put(c.element, n, normal(random));
      }
      buffer.upload();
      given = buffer.data;
      present.reserve(int64_t{c.batch} * c.key_heads * keys * d * element_bytes(c.element));
      if (chance(random, 0.8)) target = present.data;
    };
    past(made->past_key, made->present_key, c.past_key, c.present_key, c.head_dimension);
    past(made->past_value, made->present_value, c.past_value, c.present_value, c.value_dimension);
  }
  if (wish ? wish->bias : chance(random, 0.4)) add_mask(random, *made, wish);
  if (chance(random, 0.2)) {
    std::normal_distribution<float> normal;
    made->sink.reserve(c.query_heads * element_bytes(c.element));
    for (int h = 0; h < c.query_heads; ++h) made->sink.put(c.element, h, normal(random));
    made->sink.upload();
    c.sink = made->sink.data;
  }
  if (chance(random, 0.5)) {
    made->lse.reserve(int64_t{c.batch} * c.query_heads * c.queries * 4);
    c.log_sum_exp = static_cast<float *>(made->lse.data);
  }
  char text[512];
  std::snprintf(text, sizeof text,
                "element %d B %d H %d/%d queries %d keys %d+%d D %d/%d%s causal %d window %d,%d align_end %d softcap %g "
                "mask %d lengths %d sink %d masked %g scale %g",
                c.element, c.batch, c.query_heads, c.key_heads, c.queries, c.past_keys, c.new_keys, c.head_dimension,
                c.value_dimension, tidy ? " tidy" : "", c.is_causal, c.left_window, c.right_window, c.align_end,
                c.softcap, c.mask.kind, c.key_lengths != nullptr, c.sink != nullptr, c.masked_value, c.scale);
  made->description = text;
  return made;
}

double decode_element(int element, const uint8_t *bytes) {
  if (element == ORTFLASH_FLOAT32) {
    float x;
    std::memcpy(&x, bytes, 4);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, bytes, 2);
  if (element == ORTFLASH_FLOAT16) return __half2float(__half(__half_raw{bits}));
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

struct Expected {
  std::vector<double> output, magnitude, lse;
};

Expected run_reference(const OrtFlashAttention &c) {
  const int64_t rows = int64_t{c.batch} * c.query_heads * c.queries, elements = rows * c.value_dimension;
  double *device;
  CHECK_CUDA(cudaMalloc(&device, (2 * elements + rows) * sizeof(double)));
  CHECK_CUDA(ortflash::start(reference::attention, rows, reference::kLanes, 0, nullptr, c, device, device + elements,
                             device + 2 * elements));
  Expected expected;
  const auto read = [&](std::vector<double> &to, int64_t offset, int64_t count) {
    to.resize(count);
    CHECK_CUDA(cudaMemcpy(to.data(), device + offset, count * sizeof(double), cudaMemcpyDeviceToHost));
  };
  read(expected.output, 0, elements);
  read(expected.magnitude, elements, elements);
  read(expected.lse, 2 * elements, rows);
  CHECK_CUDA(cudaFree(device));
  return expected;
}

// Of queries and keys rounded to tf32, scores of the harness's random numbers are off by a few of its units.
constexpr double kTf32Unit = 0x1p-10;

// Null where the case holds; what does not, otherwise. `worst`: error over allowance.
std::string compare(const Case &made, const Expected &expected, int kernel, double &worst) {
  const OrtFlashAttention &c = made.call;
  const int bytes = element_bytes(c.element);
  std::vector<uint8_t> got(made.output.bytes);
  CHECK_CUDA(cudaMemcpy(got.data(), made.output.data, got.size(), cudaMemcpyDeviceToHost));
  // Roundings of a weight and of the result to the element type, 2^-11 or 2^-8 each at most.
  const double unit = kernel == ORTFLASH_TF32 ? kTf32Unit : c.element == ORTFLASH_FLOAT32 ? 2e-6 : c.element == ORTFLASH_FLOAT16 ? 0x1p-11 : 0x1p-8;
  char text[256];
  int64_t row = 0;
  for (int b = 0; b < c.batch; ++b) {
    for (int h = 0; h < c.query_heads; ++h) {
      for (int i = 0; i < c.queries; ++i, ++row) {
        // Sums in float32 lose a rounding a term at most. Scores are such sums, too: where an additive mask makes them
        // large, their roundings show in the weights.
        const double level = std::fabs(expected.lse[row]);
        const double relative = 2.2 * unit + 0x1p-24 * (c.past_keys + c.new_keys) + (level < 1e30 ? 0x1p-22 * level : 0);
        for (int d = 0; d < c.value_dimension; ++d) {
          const int64_t at = made.output_layout->at(b, h, i, d), n = row * c.value_dimension + d;
          const double value = decode_element(c.element, got.data() + at * bytes);
          const double allowed = relative * expected.magnitude[n] + 2e-6;
          const double error = std::fabs(value - expected.output[n]);
          worst = std::max(worst, error / allowed);
          if (!(error <= allowed)) {
            std::snprintf(text, sizeof text, "Y[%d,%d,%d,%d] is %g, expected %g, allowed error %g", b, h, i, d, value,
                          expected.output[n], allowed);
            return text;
          }
          std::memset(got.data() + at * bytes, 0xff, bytes);
        }
        if (!c.log_sum_exp) continue;
        float lse;
        CHECK_CUDA(cudaMemcpy(&lse, c.log_sum_exp + row, 4, cudaMemcpyDeviceToHost));
        const double wanted = expected.lse[row];
        const bool same = std::isinf(wanted) ? lse == wanted
                                             : std::fabs(wanted) > 1e30 ||
                                                   std::fabs(lse - wanted) <=
                                                       (kernel == ORTFLASH_TF32 ? kTf32Unit : 2e-5) * (1 + std::fabs(wanted));
        if (!same) {
          std::snprintf(text, sizeof text, "LSE[%d,%d,%d] is %g, expected %g", b, h, i, lse, wanted);
          return text;
        }
      }
    }
  }
  for (size_t n = 0; n < got.size(); ++n) {
    if (got[n] != 0xff) return "wrote outside its elements, at byte " + std::to_string(n);
  }
  return "";
}

// present = past, then new, bit for bit; nothing behind it.
std::string compare_present(const OrtFlashAttention &c, const Buffer &past, const Buffer &added, const OrtFlashTensor &t,
                            const Buffer &present, int dimension) {
  const int bytes = element_bytes(c.element), keys = c.past_keys + c.new_keys;
  std::vector<uint8_t> got(present.bytes);
  CHECK_CUDA(cudaMemcpy(got.data(), present.data, got.size(), cudaMemcpyDeviceToHost));
  const int64_t offset = static_cast<const char *>(t.data) - static_cast<const char *>(added.data);
  int64_t n = 0;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.key_heads; ++h) {
      for (int64_t j = 0; j < keys; ++j) {
        for (int64_t d = 0; d < dimension; ++d, ++n) {
          const int64_t old = ((b * c.key_heads + h) * c.past_keys + j) * dimension + d;
          const int64_t fresh = b * t.batch + h * t.head + (j - c.past_keys) * t.sequence + d * t.dimension;
          const uint8_t *source =
              j < c.past_keys ? past.host.data() + old * bytes : added.host.data() + offset + fresh * bytes;
          if (std::memcmp(got.data() + n * bytes, source, bytes) != 0) return "present differs from past and new";
        }
      }
    }
  }
  for (size_t at = n * bytes; at < got.size(); ++at) {
    if (got[at] != 0xff) return "wrote behind present";
  }
  return "";
}

std::string run_case(Case &made, const Expected &expected, int kernel, double &worst, bool &refused) {
  OrtFlashAttention call = made.call;
  call.kernel = kernel;
  call.allow_tf32 = kernel == ORTFLASH_TF32;
  size_t bytes;
  refused = false;
  if (const char *wrong = ortflash_attention_workspace(&call, &bytes)) {
    refused = kernel != ORTFLASH_AUTOMATIC;
    return refused ? "" : wrong;
  }
  CHECK_CUDA(cudaMemset(made.output.data, 0xff, made.output.bytes));
  if (call.log_sum_exp) CHECK_CUDA(cudaMemset(made.lse.data, 0xff, made.lse.bytes));
  for (Buffer *present : {&made.present_key, &made.present_value}) {
    if (present->data) CHECK_CUDA(cudaMemset(present->data, 0xff, present->bytes));
  }
  void *workspace;
  CHECK_CUDA(cudaMalloc(&workspace, bytes + 256));
  CHECK_CUDA(cudaMemset(workspace, 0xff, bytes + 256));
  const char *wrong = ortflash_attention_run(&call, workspace, nullptr);
  if (wrong) return wrong;
  CHECK_CUDA(cudaDeviceSynchronize());
  CHECK_CUDA(cudaFree(workspace));
  std::string result = compare(made, expected, kernel, worst);
  if (result.empty() && call.present_key)
    result = compare_present(call, made.past_key, made.key, call.key, made.present_key, call.head_dimension);
  if (result.empty() && call.present_value)
    result = compare_present(call, made.past_value, made.value, call.value, made.present_value, call.value_dimension);
  return result;
}

// `only`: the kernel to run, −1 for all.
int run_cases(int cases, uint64_t seed, int only) {
  std::map<int, int> served, failed;
  std::map<int, double> worst;
  for (int n = 0; n < cases; ++n) {
    Random random(seed * 1000003 + n);
    const auto made = make_case(random);
    const Expected expected = run_reference(made->call);
    for (int kernel = ORTFLASH_AUTOMATIC; kernel <= ORTFLASH_TF32; ++kernel) {
      if (only >= 0 && kernel != only) continue;
      bool refused;
      const std::string wrong = run_case(*made, expected, kernel, worst[kernel], refused);
      served[kernel] += !refused;
      if (wrong.empty()) continue;
      if (++failed[kernel] <= 6) {
        std::printf("case %d, %s (%s): %s\n  %s\n", n, kKernelNames[kernel],
                    ortflash_attention_kernel_name(&made->call), wrong.c_str(), made->description.c_str());
      }
    }
  }
  int failures = 0;
  for (int kernel = ORTFLASH_AUTOMATIC; kernel <= ORTFLASH_TF32; ++kernel) {
    if (only >= 0 && kernel != only) continue;
    std::printf("%-10s %5d calls, %d failed, largest error %.2f of what is allowed\n", kKernelNames[kernel],
                served[kernel], failed[kernel], worst[kernel]);
    failures += failed[kernel] + (served[kernel] == 0 && cases >= 100);
  }
  return failures != 0;
}

// One candidate kernel over random calls of its kind; a line to say how it went. Null where all were right.
int check_candidate(int number, int cases, uint64_t seed) {
  if (static_cast<size_t>(number) >= ortflash::candidates().size()) {
    std::fprintf(stderr, "no such candidate\n");
    return 2;
  }
  const ortflash::Candidate &candidate = ortflash::candidates()[number];
  int served = 0, failed = 0;
  double worst = 0;
  std::string first_wrong;
  for (int n = 0; n < cases; ++n) {
    Random random(seed * 1000003 + n);
    const Wish wish{candidate.element, candidate.head_dimension, is_for_bias(candidate),
                    candidate.kernel == ORTFLASH_DECODE};
    const auto made = make_case(random, &wish);
    bool refused;
    const std::string wrong =
        run_case(*made, run_reference(made->call), ortflash::kFirstCandidate + number, worst, refused);
    served += !refused;
    if (!wrong.empty() && ++failed == 1) first_wrong = wrong + "\n    " + made->description;
  }
  const bool right = failed == 0 && served > 0;
  std::printf("%s %2d of %2d calls wrong, error %.2f of what is allowed  %s\n", right ? "right" : "WRONG", failed, served,
              worst, candidate_name(number).c_str());
  if (!first_wrong.empty()) std::printf("    %s\n", first_wrong.c_str());
  return !right;
}

}  // namespace harness

int time_kernels(int only);  // timing.cu

int main(int count, char **arguments) {
  int cases = 300, only = -1, check = -1, time_one = -1;
  uint64_t seed = 1;
  bool time = false;
  for (int n = 1; n < count; ++n) {
    const std::string option = arguments[n];
    if (option == "--time") {
      time = true;
      continue;
    }
    if (option == "--candidates") return harness::compare_candidates(arguments[0]);
    if (n + 1 == count) continue;
    if (option == "--cases") cases = std::atoi(arguments[++n]);
    else if (option == "--seed") seed = std::strtoull(arguments[++n], nullptr, 10);
    else if (option == "--kernel") only = std::atoi(arguments[++n]);
    else if (option == "--element") harness::only_element = std::atoi(arguments[++n]);
    else if (option == "--scores") harness::most_scores = std::max(1000, std::atoi(arguments[++n]));
    else if (option == "--check-candidate") check = std::atoi(arguments[++n]);
    else if (option == "--time-candidate") time_one = std::atoi(arguments[++n]);
  }
  if (check >= 0) return harness::check_candidate(check, cases, seed);
  if (time_one >= 0) return harness::time_candidate(time_one);
  return time ? time_kernels(only) : harness::run_cases(cases, seed, only);
}
