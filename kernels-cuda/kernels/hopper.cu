// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include <cudaTypedefs.h>

#include <type_traits>

#include "hopper.cuh"
#include "launch.h"

namespace ortflash {
namespace {

// The driver's tensor-map encoder, found at run time so that the library needs no libcuda to link or load.
PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
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

template <typename Kernel>
cudaError_t launch(const AttentionParams &p, int multiprocessors, cudaStream_t stream) {
  HopperMaps maps;
  using Element = typename Kernel::Element;
  if (!make_map<Element>(maps.query, p.query, p.head_dimension, p.queries, p.query_heads, p.batch, 64) ||
      !make_map<Element>(maps.key, p.key, p.head_dimension, p.keys, p.key_heads, p.batch, Kernel::kKeys) ||
      !make_map<Element>(maps.value, p.value, p.value_dimension, p.keys, p.key_heads, p.batch, Kernel::kKeys)) {
    return cudaErrorInvalidValue;
  }
  const int64_t items = divide_up(p.queries, Kernel::kRows) * p.batch * p.query_heads;
  const int64_t blocks = items < multiprocessors ? items : multiprocessors;
  if (p.work_counter) {
    const cudaError_t error = cudaMemsetAsync(p.work_counter, 0, sizeof(int), stream);
    if (error != cudaSuccess) return error;
  }
  return start(hopper_attention<Kernel>, blocks, Kernel::kThreads, Kernel::kSharedBytes, stream, p, maps);
}

}  // namespace

template <>
cudaError_t launch_hopper<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules,
                                                                     int multiprocessors, cudaStream_t stream) {
  using Element = ORTFLASH_ELEMENT;
  constexpr int kHeadDimension = ORTFLASH_HEAD_DIMENSION;
  if (rules) return launch<HopperKernel<Element, kHeadDimension, true>>(p, multiprocessors, stream);
  if constexpr (kHeadDimension == 128) {
    // Short causal rows end within a wide step, most of which would be masked.
    constexpr int kNarrow = 128, kShort = 1024;
    if (p.work_counter && p.keys <= kShort)
      return launch<HopperKernel<Element, kHeadDimension, false, kNarrow>>(p, multiprocessors, stream);
  }
  return launch<HopperKernel<Element, kHeadDimension, false>>(p, multiprocessors, stream);
}

}  // namespace ortflash
