// How the Hopper kernel is started: tensor maps, grid, and the counter of its work.
#pragma once
#include <cudaTypedefs.h>

#include <type_traits>

#include "hopper.cuh"
#include "launch.h"

namespace ortflash {

// The driver's tensor-map encoder, found at run time so that the library needs no libcuda to link or load.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess
               ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function)
               : nullptr;
  }();
  return encoder;
}

// Rows of `columns` elements in boxes of 64 columns by `box_rows` rows, 128-byte swizzle, zeros outside.
template <typename Element>
bool make_map(CUtensorMap &map, const OrtFlashTensor &t, int columns, int rows, int heads, int batch, int box_rows) {
  const auto encode = tensor_map_encoder();
  if (!encode) return false;
  const cuuint64_t size[4] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(batch)};
  const int64_t strides[3] = {t.sequence, t.head, t.batch};
  cuuint64_t bytes[3];
  for (int axis = 0; axis < 3; ++axis) {
    // The stride of an axis of size 1 is never used, but has to be a valid one.
    bytes[axis] = size[axis + 1] == 1 ? 16 * divide_up(columns, 8) : 2 * static_cast<cuuint64_t>(strides[axis]);
  }
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  const auto type = std::is_same_v<Element, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                          : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return encode(&map, type, 4, t.data, size, bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// An additive mask that add_bias() can take: every row its own, 16-byte strides, nothing else between product and softmax.
inline bool can_stage_bias(const AttentionParams &p) {
  const auto fits = [](int64_t stride) { return stride >= 0 && stride < (int64_t{1} << 38); };
  return p.mask.kind == ORTFLASH_MASK_ADDITIVE && p.wide_mask && p.mask.query > 0 && fits(p.mask.query) &&
         fits(p.mask.head) && fits(p.mask.batch) && p.softcap == 0.0f && !p.visit_all_keys && p.scale > 1e-30f;
}

template <typename Kernel>
bool make_bias_map(HopperBiasMaps &maps, const AttentionParams &p) {
  const OrtFlashMask &m = p.mask;
  const OrtFlashTensor tensor{const_cast<void *>(m.data), m.batch, m.head, m.query, 1};
  return make_map<typename Kernel::Element>(maps.mask, tensor, static_cast<int>(m.keys), p.queries,
                                            m.head ? p.query_heads : 1, m.batch ? m.batches : 1, 64);
}

// Of the heads whose keys the L2 cache holds, short ones are taken together only as many as keep every multiprocessor busy:
// what others read and write between two items of a head drives its keys out.
template <typename Kernel>
AttentionParams plan_groups(const AttentionParams &p, int multiprocessors) {
  AttentionParams planned = p;
  const int64_t heads = divide_up(multiprocessors, divide_up(p.queries, Kernel::kRows));
  if (p.keys <= Kernel::Tiles::kGroupedKeys && heads < p.heads_at_once) planned.heads_at_once = static_cast<int>(heads);
  return planned;
}

template <typename Kernel>
cudaError_t launch_hopper_kernel(const AttentionParams &p, int multiprocessors, cudaStream_t stream) {
  typename Kernel::Maps maps;
  using Element = typename Kernel::Element;
  if (!make_map<Element>(maps.query, p.query, p.head_dimension, p.queries, p.query_heads, p.batch, 64) ||
      !make_map<Element>(maps.key, p.key, p.head_dimension, p.keys, p.key_heads, p.batch, Kernel::kKeys) ||
      !make_map<Element>(maps.value, p.value, p.value_dimension, p.keys, p.key_heads, p.batch, Kernel::kKeys)) {
    return cudaErrorInvalidValue;
  }
  if constexpr (Kernel::kBias) {
    if (!make_bias_map<Kernel>(maps, p)) return cudaErrorInvalidValue;
  }
  const int64_t items = divide_up(p.queries, Kernel::kRows) * p.batch * p.query_heads;
  const int64_t blocks = items < multiprocessors ? items : multiprocessors;
  if (p.work_counter) {
    const cudaError_t error = cudaMemsetAsync(p.work_counter, 0, sizeof(int), stream);
    if (error != cudaSuccess) return error;
  }
  const AttentionParams planned = plan_groups<Kernel>(p, multiprocessors);
  return start(hopper_attention<Kernel>, blocks, Kernel::kThreads, Kernel::kSharedBytes, stream, planned, maps);
}

}  // namespace ortflash
