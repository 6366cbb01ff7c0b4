// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "hopper_launch.cuh"

namespace ortflash {

template <>
cudaError_t launch_hopper<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules,
                                                                     int multiprocessors, cudaStream_t stream) {
  using Element = ORTFLASH_ELEMENT;
  constexpr int kHeadDimension = ORTFLASH_HEAD_DIMENSION;
  using Short = HopperShortTiles<kHeadDimension>;
  using Bias = HopperBiasTiles<kHeadDimension>;
  if (can_stage_bias(p))
    return launch_hopper_kernel<HopperKernel<Element, kHeadDimension, false, Bias>>(p, multiprocessors, stream);
  if (rules) return launch_hopper_kernel<HopperKernel<Element, kHeadDimension, true>>(p, multiprocessors, stream);
  if constexpr (Short::kMostKeys > 0) {
    if (p.work_counter && p.keys <= Short::kMostKeys)
      return launch_hopper_kernel<HopperKernel<Element, kHeadDimension, false, Short>>(p, multiprocessors, stream);
  }
  return launch_hopper_kernel<HopperKernel<Element, kHeadDimension, false>>(p, multiprocessors, stream);
}

}  // namespace ortflash
