// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "ampere_launch.cuh"

namespace ortflash {

template <>
cudaError_t launch_ampere<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules,
                                                                     cudaStream_t stream) {
  using Kernel = AmpereKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>;
  return rules ? launch_ampere_kernel<Kernel, true>(p, stream) : launch_ampere_kernel<Kernel, false>(p, stream);
}

}  // namespace ortflash
