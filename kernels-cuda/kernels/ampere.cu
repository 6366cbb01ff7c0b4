// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "ampere_launch.cuh"

namespace ortflash {

template <>
cudaError_t launch_ampere<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules, bool small,
                                                                     cudaStream_t stream) {
  using Element = ORTFLASH_ELEMENT;
  constexpr int kHeadDimension = ORTFLASH_HEAD_DIMENSION;
  if constexpr (kHeadDimension == 256) {
    if (small && rules)
      return launch_ampere_kernel<AmpereKernel<Element, kHeadDimension, true, AmpereSmallTiles>>(p, stream);
    if (small) return launch_ampere_kernel<AmpereKernel<Element, kHeadDimension, false, AmpereSmallTiles>>(p, stream);
  }
  return rules ? launch_ampere_kernel<AmpereKernel<Element, kHeadDimension, true>>(p, stream)
               : launch_ampere_kernel<AmpereKernel<Element, kHeadDimension, false>>(p, stream);
}

}  // namespace ortflash
