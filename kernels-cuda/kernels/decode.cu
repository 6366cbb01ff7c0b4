// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "decode_launch.cuh"

namespace ortflash {

using Cluster =
    DecodeKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, DecodeClusterTiles<ORTFLASH_HEAD_DIMENSION>>;
using Workspace = DecodeKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>;

template <>
SplitRule decode_splits<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(bool cluster) {
  return cluster ? Cluster::Tiles::kSplits : Workspace::Tiles::kSplits;
}

template <>
bool has_decode_cluster<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>() {
  if constexpr (Cluster::Tiles::kUsed) return can_launch_cluster<Cluster>();
  return false;
}

template <>
cudaError_t launch_decode<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules, bool cluster,
                                                                     cudaStream_t stream) {
  if constexpr (Cluster::Tiles::kUsed) {
    if (cluster)
      return rules ? launch_decode_kernel<Cluster, true>(p, stream) : launch_decode_kernel<Cluster, false>(p, stream);
  }
  return rules ? launch_decode_kernel<Workspace, true>(p, stream) : launch_decode_kernel<Workspace, false>(p, stream);
}

}  // namespace ortflash
