// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "decode_launch.cuh"

namespace ortflash {

template <>
SplitRule decode_splits<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(bool hopper) {
  using Hopper = HopperDecodeTiles<ORTFLASH_HEAD_DIMENSION>;
  return hopper && Hopper::kUsed ? Hopper::kSplits : DecodeTiles<ORTFLASH_HEAD_DIMENSION>::kSplits;
}

template <>
cudaError_t launch_decode<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules, bool hopper,
                                                                     cudaStream_t stream) {
  using Hopper = HopperDecodeTiles<ORTFLASH_HEAD_DIMENSION>;
  if constexpr (Hopper::kUsed) {
    using Kernel = DecodeKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, Hopper>;
    if (hopper)
      return rules ? launch_decode_kernel<Kernel, true>(p, stream) : launch_decode_kernel<Kernel, false>(p, stream);
  }
  using Kernel = DecodeKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>;
  return rules ? launch_decode_kernel<Kernel, true>(p, stream) : launch_decode_kernel<Kernel, false>(p, stream);
}

}  // namespace ortflash
