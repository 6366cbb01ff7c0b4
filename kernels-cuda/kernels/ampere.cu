// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "ampere_launch.cuh"

namespace ortflash {

template <>
cudaError_t launch_ampere<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules, bool small,
                                                                     cudaStream_t stream) {
  if constexpr (ORTFLASH_HEAD_DIMENSION == 256) {
    using Small = AmpereKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, AmpereSmallTiles>;
    if (small) return rules ? launch_ampere_kernel<Small, true>(p, stream) : launch_ampere_kernel<Small, false>(p, stream);
  }
  using Kernel = AmpereKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>;
  return rules ? launch_ampere_kernel<Kernel, true>(p, stream) : launch_ampere_kernel<Kernel, false>(p, stream);
}

}  // namespace ortflash
