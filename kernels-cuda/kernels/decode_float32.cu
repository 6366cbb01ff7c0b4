// Compiled once for each ORTFLASH_HEAD_DIMENSION.
#include "decode_float32_launch.cuh"

namespace ortflash {
namespace {

using Tiles = DecodeFloat32Tiles<ORTFLASH_HEAD_DIMENSION>;
using WideTiles = DecodeFloat32WideTiles<ORTFLASH_HEAD_DIMENSION>;
using ClusterTiles = DecodeFloat32ClusterTiles<ORTFLASH_HEAD_DIMENSION>;

}  // namespace

template <>
SplitRule decode_splits<float, ORTFLASH_HEAD_DIMENSION>(DecodeForm form) {
  return form == DecodeForm::kWide      ? WideTiles::kSplits
         : form == DecodeForm::kCluster ? ClusterTiles::kSplits
                                        : Tiles::kSplits;
}

template <>
bool has_decode_cluster<float, ORTFLASH_HEAD_DIMENSION>() {
  using Largest = DecodeFloat32Kernel<ORTFLASH_HEAD_DIMENSION, 16, ClusterTiles>;
  return can_launch_cluster<Largest>(decode_float32<Largest>);
}

template <>
cudaError_t launch_decode<float, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool, DecodeForm form,
                                                          cudaStream_t stream) {
  if (form == DecodeForm::kWide) return launch_decode_float32<ORTFLASH_HEAD_DIMENSION, WideTiles>(p, stream);
  if (form == DecodeForm::kCluster) return launch_decode_float32<ORTFLASH_HEAD_DIMENSION, ClusterTiles>(p, stream);
  return launch_decode_float32<ORTFLASH_HEAD_DIMENSION, Tiles>(p, stream);
}

}  // namespace ortflash
