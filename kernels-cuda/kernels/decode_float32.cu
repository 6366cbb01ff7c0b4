// Compiled once for each ORTFLASH_HEAD_DIMENSION.
#include "decode_float32_launch.cuh"

namespace ortflash {

template <>
SplitRule decode_splits<float, ORTFLASH_HEAD_DIMENSION>(DecodeForm) {
  return DecodeFloat32Tiles<ORTFLASH_HEAD_DIMENSION>::kSplits;
}

template <>
cudaError_t launch_decode<float, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool, DecodeForm,
                                                          cudaStream_t stream) {
  return launch_decode_float32<ORTFLASH_HEAD_DIMENSION, DecodeFloat32Tiles<ORTFLASH_HEAD_DIMENSION>>(p, stream);
}

}  // namespace ortflash
