// The C interface: checks a call, plans it (which kernel, which splits, what workspace) and starts the kernels.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>

#include "ampere.cuh"
#include "decode.cuh"
#include "decode_float32.cuh"
#include "device.h"
#include "float32.cuh"
#include "launch.h"
#include "scalar.cuh"
#include "tf32.cuh"

namespace ortflash {

// The harness defines another.
__attribute__((weak)) const Candidate *find_candidate(int) { return nullptr; }

namespace {

struct Plan {
  int kernel;
  const Candidate *candidate;  // in the kernel's place, or null
  int tile;  // head dimension the kernel is built for: 64, 128 or 256
  bool rules;
  bool counts_work;  // blocks draw their work from a counter
  bool hopper;       // the device is of compute capability 9.0
  DecodeForm form;   // decode
  bool tallied;      // decode: the last of a row's blocks puts its splits together
  bool small;        // tiles of fewer queries, see is_small()
  int multiprocessors;
  AttentionParams params;
  // Byte offsets into workspace.
  size_t present_key, present_value, partial_output, partial_softmax, tally, work_counter, workspace;
};

const char *check(const OrtFlashAttention &c) {
  if (c.element < ORTFLASH_FLOAT32 || c.element > ORTFLASH_BFLOAT16) return "unknown element type";
  if (c.batch < 0 || c.queries < 0 || c.new_keys < 0 || c.past_keys < 0) return "a size is negative";
  if (c.key_heads <= 0 || c.query_heads <= 0 || c.query_heads % c.key_heads != 0)
    return "key heads must divide query heads";
  if (c.head_dimension <= 0 || c.value_dimension <= 0) return "head dimensions must be positive";
  if (int64_t{c.past_keys} + c.new_keys > 0x7fffffff) return "more than 2^31 keys";
  if ((c.past_keys > 0) && (!c.past_key || !c.past_value)) return "past keys without their data";
  if (c.mask.kind != ORTFLASH_MASK_NONE && (!c.mask.data || c.mask.batches <= 0)) return "a mask without its data";
  if (c.mask.kind != ORTFLASH_MASK_NONE && c.mask.keys < 1 && c.past_keys + c.new_keys > 0)
    return "a mask that covers no key";
  if (std::isnan(c.scale) || std::isnan(c.softcap) || std::isnan(c.masked_value)) return "an attribute is NaN";
  if (c.value_dimension > 12000) return "value dimension over 12,000";
  return nullptr;
}

// Whether every query sees some key by position alone. Ranges move with the query, so the ends tell.
bool every_query_sees_a_key(const OrtFlashAttention &c, int keys) {
  if (c.mask.kind != ORTFLASH_MASK_NONE || c.key_lengths) return false;
  const int64_t offset = c.align_end ? int64_t{keys} - c.queries : c.past_keys;
  for (const int64_t position : {offset, offset + c.queries - 1}) {
    const int64_t begin = c.left_window >= 0 ? std::max<int64_t>(0, position - c.left_window) : 0;
    const int64_t right = c.is_causal ? 0 : c.right_window;
    const int64_t end = right >= 0 ? std::min<int64_t>(keys, position + right + 1) : keys;
    if (begin >= end) return false;
  }
  return true;
}

bool is_wide(const OrtFlashTensor &t, int dimension, int element_bytes, const OrtFlashAttention &c, int heads,
             int rows) {
  const auto aligned = [&](int64_t stride, int size) { return size <= 1 || stride * element_bytes % 16 == 0; };
  return (t.dimension == 1 || dimension == 1) && dimension * element_bytes % 16 == 0 && aligned(t.batch, c.batch) &&
         aligned(t.head, heads) && aligned(t.sequence, rows) && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

// Whether the copy engine can read the tensor: strides positive and below 2^40 bytes, on top of 16-byte alignment.
bool is_box_readable(const OrtFlashTensor &t, const OrtFlashAttention &c, int heads, int rows) {
  const auto fits = [](int64_t stride, int size) {
    return size <= 1 || (stride > 0 && stride < (int64_t{1} << 38) && stride * 2 % 16 == 0);
  };
  return t.dimension == 1 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && fits(t.batch, c.batch) &&
         fits(t.head, heads) && fits(t.sequence, rows);
}

int tile_of(const AttentionParams &p) {
  const int widest = std::max(p.head_dimension, p.value_dimension);
  return widest <= 64 ? 64 : widest <= 128 ? 128 : 256;
}

// What a block has at least on the devices that these serve; at 256 others take their place there.
constexpr int kLeastShared = 99 * 1024;
static_assert(AmpereKernel<__half, 64>::kSharedBytes <= kLeastShared);
static_assert(AmpereKernel<__half, 128>::kSharedBytes <= kLeastShared);
static_assert(AmpereKernel<__half, 256, false, AmpereSmallTiles>::kSharedBytes <= kLeastShared);
static_assert(DecodeKernel<__half, 64>::kSharedBytes <= kLeastShared);
static_assert(DecodeKernel<__half, 128>::kSharedBytes <= kLeastShared);
static_assert(DecodeFloat32Kernel<64, 16>::kSharedBytes <= kLeastShared);
static_assert(DecodeFloat32Kernel<128, 16>::kSharedBytes <= kLeastShared);
static_assert(DecodeFloat32Kernel<256, 16>::kSharedBytes <= kLeastShared);
static_assert(sizeof(Float32Kernel<64, 4, 8, true>::Shared) <= kLeastShared);
static_assert(sizeof(Float32Kernel<128, 4, 8, true>::Shared) <= kLeastShared);
static_assert(sizeof(Float32Kernel<256, 4, 8, true>::Shared) <= kLeastShared);
static_assert(sizeof(Tf32Kernel<128, false>::Shared) <= kLeastShared);

// Shared memory of one of the kernel's blocks; Hopper's fits every device that it is for.
int shared_bytes(int kernel, const OrtFlashAttention &c, const AttentionParams &p, bool small) {
  const auto by_tile = [&](int narrow, int middle, int wide) {
    return tile_of(p) == 64 ? narrow : tile_of(p) == 128 ? middle : wide;
  };
  switch (kernel) {
    case ORTFLASH_SCALAR:
      return kScalarWarps * p.value_dimension * static_cast<int>(sizeof(float));
    case ORTFLASH_FLOAT32_TILED:
      return small ? by_tile(sizeof(Float32Kernel<64, 4, 8, true>::Shared), sizeof(Float32Kernel<128, 4, 8, true>::Shared),
                             sizeof(Float32Kernel<256, 4, 8, true>::Shared))
                   : by_tile(sizeof(Float32Kernel<64, 8, 8, true>::Shared), sizeof(Float32Kernel<128, 8, 8, true>::Shared),
                             sizeof(Float32Kernel<256, 8, 8, true>::Shared));
    case ORTFLASH_TF32:
      return by_tile(sizeof(Tf32Kernel<64, false>::Shared), sizeof(Tf32Kernel<128, false>::Shared),
                     sizeof(Tf32Kernel<256, false>::Shared));
    case ORTFLASH_AMPERE:
      return by_tile(AmpereKernel<__half, 64>::kSharedBytes, AmpereKernel<__half, 128>::kSharedBytes,
                     small ? AmpereKernel<__half, 256, false, AmpereSmallTiles>::kSharedBytes
                           : AmpereKernel<__half, 256>::kSharedBytes);
    case ORTFLASH_DECODE:
      if (c.element == ORTFLASH_FLOAT32)
        return by_tile(DecodeFloat32Kernel<64, 16>::kSharedBytes, DecodeFloat32Kernel<128, 16>::kSharedBytes,
                       DecodeFloat32Kernel<256, 16>::kSharedBytes);
      return by_tile(DecodeKernel<__half, 64>::kSharedBytes, DecodeKernel<__half, 128>::kSharedBytes,
                     DecodeKernel<__half, 256>::kSharedBytes);
    default:
      return 0;
  }
}

bool fits(int kernel, const OrtFlashAttention &c, const AttentionParams &p, const Device &device) {
  return shared_bytes(kernel, c, p, true) <= device.shared_bytes;
}

bool has_decode_grid(const AttentionParams &p) {
  return p.key_heads <= kMostDecodeHeads && p.batch <= kMostDecodeHeads;
}

int choose_kernel(const OrtFlashAttention &c, const AttentionParams &p, const Device &device) {
  const int widest = std::max(p.head_dimension, p.value_dimension);
  if (widest > 256) return ORTFLASH_SCALAR;
  const bool few_rows = p.keys > 0 && int64_t{p.queries} * p.heads_per_key <= 32 && has_decode_grid(p);
  if (few_rows && fits(ORTFLASH_DECODE, c, p, device)) return ORTFLASH_DECODE;
  if (c.element == ORTFLASH_FLOAT32) {
    if (c.allow_tf32 && fits(ORTFLASH_TF32, c, p, device)) return ORTFLASH_TF32;
    return fits(ORTFLASH_FLOAT32_TILED, c, p, device) ? ORTFLASH_FLOAT32_TILED : ORTFLASH_SCALAR;
  }
  const bool hopper = device.major == 9 && p.keys > 0 && is_box_readable(p.query, c, p.query_heads, p.queries) &&
                      is_box_readable(p.key, c, p.key_heads, p.keys) &&
                      is_box_readable(p.value, c, p.key_heads, p.keys);
  return hopper ? ORTFLASH_HOPPER : ORTFLASH_AMPERE;
}

// A kernel asked for by name has to be able to serve the call.
const char *check_choice(const OrtFlashAttention &c, const AttentionParams &p, const Device &device, int kernel) {
  if (kernel == ORTFLASH_SCALAR) return nullptr;
  if (std::max(p.head_dimension, p.value_dimension) > 256) return "this kernel serves head dimensions up to 256";
  const bool for_float32 = kernel == ORTFLASH_FLOAT32_TILED || kernel == ORTFLASH_TF32;
  if (kernel != ORTFLASH_DECODE && for_float32 != (c.element == ORTFLASH_FLOAT32)) return "wrong element type for this kernel";
  if (kernel == ORTFLASH_TF32 && !c.allow_tf32) return "the call does not allow tf32";
  if (kernel == ORTFLASH_HOPPER) {
    if (device.major != 9) return "this kernel needs compute capability 9.0";
    if (p.keys == 0 || !is_box_readable(p.query, c, p.query_heads, p.queries) ||
        !is_box_readable(p.key, c, p.key_heads, p.keys) || !is_box_readable(p.value, c, p.key_heads, p.keys))
      return "the copy engine cannot read these strides";
  }
  if (kernel == ORTFLASH_DECODE && !has_decode_grid(p)) return "this kernel serves up to 65,535 heads and batch entries";
  return kernel < ORTFLASH_SCALAR || kernel > ORTFLASH_TF32 ? "no such kernel" : nullptr;
}

size_t take(size_t &end, size_t bytes) {
  const size_t offset = end;
  end += (bytes + 255) / 256 * 256;
  return offset;
}

int element_bytes(const OrtFlashAttention &c) { return c.element == ORTFLASH_FLOAT32 ? 4 : 2; }

// What the kernels take from the call as it is.
AttentionParams params_of(const OrtFlashAttention &c) {
  AttentionParams p{};
  p.batch = c.batch;
  p.query_heads = c.query_heads;
  p.key_heads = c.key_heads;
  p.heads_per_key = c.query_heads / c.key_heads;
  p.queries = c.queries;
  p.keys = c.past_keys + c.new_keys;
  p.past_keys = c.past_keys;
  p.head_dimension = c.head_dimension;
  p.value_dimension = c.value_dimension;
  p.query = c.query;
  p.key = c.key;
  p.value = c.value;
  p.output = c.output;
  p.mask = c.mask;
  p.key_lengths = c.key_lengths;
  p.sink = c.sink;
  p.log_sum_exp = c.log_sum_exp;
  p.scale = c.scale;
  p.softcap = c.softcap;
  p.left_window = c.left_window;
  p.right_window = c.right_window;
  p.is_causal = c.is_causal != 0;
  p.align_end = c.align_end != 0;
  return p;
}

// With a past, kernels read present keys and values, which the append step has put together, where the caller wants them
// or else in workspace.
void plan_present(const OrtFlashAttention &c, Plan &plan) {
  if (!c.past_key && !c.present_key) return;
  const int64_t keys = plan.params.keys;
  const auto present = [&](int dimension, void *given, OrtFlashTensor &tensor, size_t &offset) {
    const int64_t head = keys * dimension;
    if (!given) offset = take(plan.workspace, size_t(head) * c.batch * c.key_heads * element_bytes(c));
    tensor = {given, head * c.key_heads, head, dimension, 1};
  };
  present(c.head_dimension, c.present_key, plan.params.key, plan.present_key);
  present(c.value_dimension, c.present_value, plan.params.value, plan.present_value);
}

// Whether masked keys can be left out, and whether scores need more than a scale, which goes into the exponential.
void plan_rules(const OrtFlashAttention &c, Plan &plan) {
  AttentionParams &p = plan.params;
  // No score of a visible key lies below this, the type's own lowest number: such a masked key weighs nothing beside one.
  const float lowest = c.element == ORTFLASH_FLOAT16 ? -65504.0f : -1e30f;
  const bool no_weight =
      !std::isfinite(c.masked_value) || (c.masked_value <= lowest && every_query_sees_a_key(c, p.keys));
  p.visit_all_keys = !no_weight;
  p.masked_score = no_weight ? -INFINITY : c.masked_value;
  plan.rules = c.mask.kind != ORTFLASH_MASK_NONE || c.softcap > 0.0f || p.visit_all_keys || !(c.scale > 0.0f);
}

// Which tensors can be read and written 16 bytes at a time. Workspace is aligned.
void plan_access(const OrtFlashAttention &c, AttentionParams &p) {
  const int bytes = element_bytes(c), mask_bytes = c.mask.kind == ORTFLASH_MASK_BOOLEAN ? 1 : bytes;
  p.wide_mask = c.mask.key == 1 && (c.mask.batch | c.mask.head | c.mask.query) % 8 == 0 &&
                reinterpret_cast<uintptr_t>(c.mask.data) % (8 * mask_bytes) == 0;
  p.wide_loads = is_wide(p.query, p.head_dimension, bytes, c, p.query_heads, p.queries) &&
                 is_wide(p.key, p.head_dimension, bytes, c, p.key_heads, p.keys) &&
                 is_wide(p.value, p.value_dimension, bytes, c, p.key_heads, p.keys);
  p.wide_stores = is_wide(p.output, p.value_dimension, bytes, c, p.query_heads, p.queries);
}

// Hopper: in which order blocks take heads, and whether by turns or, where rows differ in length, from a counter.
void plan_order(const OrtFlashAttention &c, const Device &device, Plan &plan) {
  AttentionParams &p = plan.params;
  const bool unequal = p.is_causal || p.right_window >= 0 || p.left_window >= 0;
  // Heads whose keys and values stay in half of the L2 cache together.
  const int64_t head_bytes = int64_t{p.keys} * (p.head_dimension + p.value_dimension) * element_bytes(c);
  const int64_t fitting = unequal ? device.l2_bytes / 2 / std::max<int64_t>(head_bytes, 1) * p.heads_per_key : 1;
  p.heads_at_once = static_cast<int>(std::clamp<int64_t>(fitting, 1, std::max(1, p.batch * p.query_heads)));
  plan.counts_work = plan.kernel == ORTFLASH_HOPPER && unequal;
  if (plan.counts_work) plan.work_counter = take(plan.workspace, sizeof(int));
}

template <typename Element>
SplitRule split_rule_of(const Plan &plan) {
  return plan.tile == 64    ? decode_splits<Element, 64>(plan.form)
         : plan.tile == 128 ? decode_splits<Element, 128>(plan.form)
                            : decode_splits<Element, 256>(plan.form);
}

SplitRule split_rule(const OrtFlashAttention &c, const Plan &plan) {
  return c.element == ORTFLASH_FLOAT32   ? split_rule_of<float>(plan)
         : c.element == ORTFLASH_FLOAT16 ? split_rule_of<__half>(plan)
                                         : split_rule_of<__nv_bfloat16>(plan);
}

template <typename Element>
bool has_cluster_16_bit(const Plan &plan) {
  return plan.tile == 64    ? has_decode_cluster<Element, 64>()
         : plan.tile == 128 ? has_decode_cluster<Element, 128>()
                            : has_decode_cluster<Element, 256>();
}

// One block a multiprocessor reads fastest, as long as there is a multiprocessor for each; a cluster of them spares the way
// through memory, 3 µs, but has eight splits alone: enough where so half of the multiprocessors read, which is all that memory
// gives, or where the cache is short. Measured: log 19, 20 and 23 of NOTES.md.
DecodeForm choose_decode_form(const OrtFlashAttention &c, const Device &device, const Plan &plan, int64_t blocks) {
  const bool one_form = plan.candidate || c.element == ORTFLASH_FLOAT32 || !plan.hopper;
  if (one_form || blocks > device.multiprocessors) return DecodeForm::kWorkspace;
  const bool reads_enough = 20 * kMostClusterSplits * blocks >= 9 * int64_t{device.multiprocessors};
  if (!reads_enough && plan.params.keys > 4096) return DecodeForm::kWide;
  const bool has_cluster =
      c.element == ORTFLASH_FLOAT16 ? has_cluster_16_bit<__half>(plan) : has_cluster_16_bit<__nv_bfloat16>(plan);
  return has_cluster ? DecodeForm::kCluster : DecodeForm::kWide;
}

// A number for each call that no other has, and that memory not ours holds by chance once in 2^48: low 16 bits zero, others not.
uint64_t next_tag() {
  static const uint64_t origin = [] {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
  }();
  static std::atomic<uint64_t> calls{0};
  uint64_t x = origin + 0x9e3779b97f4a7c15u * ++calls;  // splitmix64 (Steele, Lea and Flood 2014)
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  x = (x ^ x >> 31) & ~uint64_t{0xffff};
  return x ? x : next_tag();
}

// Decode: splits of the keys, enough to fill the device.
void plan_splits(const OrtFlashAttention &c, const Device &device, Plan &plan) {
  AttentionParams &p = plan.params;
  p.splits = 1;
  p.keys_per_split = std::max(p.keys, 1);
  if (plan.kernel != ORTFLASH_DECODE) return;
  const int64_t rows_of_head = int64_t{p.queries} * p.heads_per_key;
  const int64_t blocks = divide_up(rows_of_head, 16) * p.batch * p.key_heads;
  plan.form = choose_decode_form(c, device, plan, blocks);
  const SplitRule rule = plan.candidate ? plan.candidate->splits : split_rule(c, plan);
  // Rounded down: a few blocks more than the device holds would run alone, after all others.
  const int64_t filling =
      rule.blocks_per_multiprocessor * int64_t{device.multiprocessors} / std::max<int64_t>(blocks, 1);
  int64_t wanted = std::clamp<int64_t>(filling, 1, rule.most_splits);
  const int64_t steps = divide_up(p.keys, rule.step);
  if (rule.power_of_two) {
    const int64_t most = std::min(wanted, divide_up(p.keys, rule.least_keys));
    for (wanted = 1; 2 * wanted <= most;) wanted *= 2;
  }
  const int64_t least_steps = rule.least_keys / rule.step;
  p.keys_per_split = static_cast<int>(rule.step * std::max<int64_t>(least_steps, divide_up(steps, wanted)));
  p.splits = static_cast<int>(std::max<int64_t>(1, divide_up(p.keys, p.keys_per_split)));
  if (rule.power_of_two) p.splits = static_cast<int>(wanted);  // the last may be empty
  if (p.splits == 1 || plan.form == DecodeForm::kCluster) return;
  const size_t rows = size_t(p.splits) * p.batch * p.query_heads * p.queries;
  plan.partial_output = take(plan.workspace, rows * p.value_dimension * sizeof(float));
  plan.partial_softmax = take(plan.workspace, rows * sizeof(float2));
  // So many rows of splits one block reads in the time that a second kernel takes to start.
  constexpr int kMostTalliedRows = 512;
  plan.tallied = p.splits * std::min<int64_t>(rows_of_head, 16) <= kMostTalliedRows;
  if (!plan.tallied) return;
  plan.tally = take(plan.workspace, blocks * sizeof(*p.tally));
  p.tally_tag = next_tag();
}

// Whether the kernel's tiles have half their queries: where the device has no memory for more, or, in float32, whose blocks
// are long, where more would leave multiprocessors with one block in place of two.
bool is_small(const OrtFlashAttention &c, const Plan &plan, const Device &device) {
  const AttentionParams &p = plan.params;
  if (shared_bytes(plan.kernel, c, p, false) > device.shared_bytes) return true;
  const int rows = plan.tile == 64    ? Float32Kernel<64, 8, 8, true>::kRows
                   : plan.tile == 128 ? Float32Kernel<128, 8, 8, true>::kRows
                                      : Float32Kernel<256, 8, 8, true>::kRows;
  return plan.kernel == ORTFLASH_FLOAT32_TILED &&
         divide_up(p.queries, rows) * p.batch * p.query_heads < 2 * int64_t{device.multiprocessors};
}

bool serves(const Candidate &candidate, const OrtFlashAttention &c, const Plan &plan) {
  return candidate.element == c.element && candidate.head_dimension == plan.tile &&
         candidate.serves(plan.params, plan.rules);
}

const char *make_plan(const OrtFlashAttention &c, Plan &plan) {
  if (const char *wrong = check(c)) return wrong;
  Device device;
  if (const cudaError_t error = read_device(device); error != cudaSuccess) return cudaGetErrorString(error);
  plan = {};
  plan.params = params_of(c);
  plan.multiprocessors = device.multiprocessors;
  plan.hopper = device.major == 9;
  plan_present(c, plan);
  plan_rules(c, plan);
  plan_access(c, plan.params);
  plan.candidate = find_candidate(c.kernel);
  plan.kernel = plan.candidate                    ? plan.candidate->kernel
                : c.kernel == ORTFLASH_AUTOMATIC ? choose_kernel(c, plan.params, device)
                                                 : c.kernel;
  if (const char *wrong = check_choice(c, plan.params, device, plan.kernel)) return wrong;
  if (!fits(plan.kernel, c, plan.params, device)) return "the device's blocks have too little shared memory";
  plan.tile = tile_of(plan.params);
  plan.small = is_small(c, plan, device);
  if (plan.candidate && !serves(*plan.candidate, c, plan)) return "this candidate does not serve the call";
  plan_order(c, device, plan);
  plan_splits(c, device, plan);
  return nullptr;
}

template <typename Element>
cudaError_t launch_16_bit(const Plan &plan, cudaStream_t stream) {
  const auto by_tile = [&](auto &&narrow, auto &&middle, auto &&wide) {
    return plan.tile == 64 ? narrow() : plan.tile == 128 ? middle() : wide();
  };
  const AttentionParams &p = plan.params;
  if (plan.candidate) return plan.candidate->launch(p, plan.multiprocessors, stream);
  switch (plan.kernel) {
    case ORTFLASH_AMPERE:
      return by_tile([&] { return launch_ampere<Element, 64>(p, plan.rules, plan.small, stream); },
                     [&] { return launch_ampere<Element, 128>(p, plan.rules, plan.small, stream); },
                     [&] { return launch_ampere<Element, 256>(p, plan.rules, plan.small, stream); });
    case ORTFLASH_HOPPER:
      return by_tile([&] { return launch_hopper<Element, 64>(p, plan.rules, plan.multiprocessors, stream); },
                     [&] { return launch_hopper<Element, 128>(p, plan.rules, plan.multiprocessors, stream); },
                     [&] { return launch_hopper<Element, 256>(p, plan.rules, plan.multiprocessors, stream); });
    case ORTFLASH_DECODE:
      return by_tile([&] { return launch_decode<Element, 64>(p, plan.rules, plan.form, stream); },
                     [&] { return launch_decode<Element, 128>(p, plan.rules, plan.form, stream); },
                     [&] { return launch_decode<Element, 256>(p, plan.rules, plan.form, stream); });
    default:
      return launch_scalar<Element>(p, stream);
  }
}

cudaError_t launch_float(const Plan &plan, cudaStream_t stream) {
  const AttentionParams &p = plan.params;
  if (plan.kernel == ORTFLASH_SCALAR) return launch_scalar<float>(p, stream);
  if (plan.kernel == ORTFLASH_DECODE) {
    return plan.tile == 64    ? launch_decode<float, 64>(p, plan.rules, plan.form, stream)
           : plan.tile == 128 ? launch_decode<float, 128>(p, plan.rules, plan.form, stream)
                              : launch_decode<float, 256>(p, plan.rules, plan.form, stream);
  }
  if (plan.kernel == ORTFLASH_TF32) {
    return plan.tile == 64    ? launch_tf32<64>(p, plan.rules, stream)
           : plan.tile == 128 ? launch_tf32<128>(p, plan.rules, stream)
                              : launch_tf32<256>(p, plan.rules, stream);
  }
  return plan.tile == 64    ? launch_float32<64>(p, plan.rules, plan.small, stream)
         : plan.tile == 128 ? launch_float32<128>(p, plan.rules, plan.small, stream)
                            : launch_float32<256>(p, plan.rules, plan.small, stream);
}

}  // namespace
}  // namespace ortflash

using namespace ortflash;

extern "C" const char *ortflash_device_check(void) {
  Device device;
  if (const cudaError_t error = read_device(device); error != cudaSuccess) return cudaGetErrorString(error);
  return device.major < 8 ? "a GPU of compute capability 8.0 or later is needed" : nullptr;
}

extern "C" const char *ortflash_attention_workspace(const OrtFlashAttention *call, size_t *bytes) {
  Plan plan;
  const char *wrong = make_plan(*call, plan);
  *bytes = wrong ? 0 : plan.workspace;
  return wrong;
}

extern "C" const char *ortflash_attention_kernel_name(const OrtFlashAttention *call) {
  static const char *const names[] = {"", "scalar", "float32", "ampere", "hopper", "decode", "tf32"};
  Plan plan;
  const char *wrong = make_plan(*call, plan);
  return wrong ? wrong : names[plan.kernel];
}

extern "C" const char *ortflash_attention_run(const OrtFlashAttention *call, void *workspace, void *stream_pointer) {
  const OrtFlashAttention &c = *call;
  Plan plan;
  if (const char *wrong = make_plan(c, plan)) return wrong;
  if (plan.workspace > 0 && !workspace) return "workspace is missing";
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  AttentionParams &p = plan.params;
  char *memory = static_cast<char *>(workspace);
  if (c.past_key || c.present_key) {
    if (!p.key.data) p.key.data = memory + plan.present_key;
    if (!p.value.data) p.value.data = memory + plan.present_value;
    const auto side = [&](const void *past, const OrtFlashTensor &added, void *present, int dimension) {
      return AppendParams{past,        added,      present,   c.batch, c.key_heads, c.past_keys,
                          c.new_keys, dimension, c.element == ORTFLASH_FLOAT32 ? 4 : 2};
    };
    const cudaError_t error = launch_append(side(c.past_key, c.key, p.key.data, c.head_dimension),
                                            side(c.past_value, c.value, p.value.data, c.value_dimension), stream);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  if (int64_t{c.batch} * c.queries == 0) return nullptr;
  if (plan.counts_work) p.work_counter = reinterpret_cast<int *>(memory + plan.work_counter);
  p.partial_output = reinterpret_cast<float *>(memory + plan.partial_output);
  p.partial_softmax = reinterpret_cast<float2 *>(memory + plan.partial_softmax);
  if (plan.tallied) p.tally = reinterpret_cast<unsigned long long *>(memory + plan.tally);
  const cudaError_t error = c.element == ORTFLASH_FLOAT32   ? launch_float(plan, stream)
                            : c.element == ORTFLASH_FLOAT16 ? launch_16_bit<__half>(plan, stream)
                                                            : launch_16_bit<__nv_bfloat16>(plan, stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
