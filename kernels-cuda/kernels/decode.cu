// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "decode_launch.cuh"

namespace ortflash {
namespace {

template <template <int> typename Tiles>
using Kernel = DecodeKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, Tiles<ORTFLASH_HEAD_DIMENSION>>;

template <typename Own>
cudaError_t launch(const AttentionParams &p, bool rules, cudaStream_t stream) {
  return rules ? launch_decode_kernel<Own, true>(p, stream) : launch_decode_kernel<Own, false>(p, stream);
}

}  // namespace

template <>
SplitRule decode_splits<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(DecodeForm form) {
  switch (form) {
    case DecodeForm::kWide:
      return Kernel<DecodeWideTiles>::Tiles::kSplits;
    case DecodeForm::kCluster:
      return Kernel<DecodeClusterTiles>::Tiles::kSplits;
    default:
      return Kernel<DecodeTiles>::Tiles::kSplits;
  }
}

template <>
bool has_decode_cluster<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>() {
  return can_launch_cluster<Kernel<DecodeClusterTiles>>();
}

template <>
cudaError_t launch_decode<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules,
                                                                     DecodeForm form, cudaStream_t stream) {
  if (form == DecodeForm::kWide) return launch<Kernel<DecodeWideTiles>>(p, rules, stream);
  if (form == DecodeForm::kCluster) return launch<Kernel<DecodeClusterTiles>>(p, rules, stream);
  return launch<Kernel<DecodeTiles>>(p, rules, stream);
}

}  // namespace ortflash
