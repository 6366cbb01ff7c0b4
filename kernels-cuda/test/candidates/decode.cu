// Other shapes of the decode kernel's blocks. Compiled once for each ORTFLASH_ELEMENT and
// ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/decode_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

// One block of 8 warps a multiprocessor: half the splits.
struct Wide : DecodeDefaults {
  static constexpr int kWarps = 8, kStages = 3;
  static constexpr SplitRule kSplits{1, 128, 0x7fffffff, false};
};

// A cluster whose blocks have a multiprocessor each, with twice the bytes under way: by more warps, or more stages.
struct WideCluster : DecodeClusterTiles<ORTFLASH_HEAD_DIMENSION> {
  static constexpr int kWarps = 8;
  static constexpr SplitRule kSplits{1, 128, 16, true};
};
struct DeepCluster : DecodeClusterTiles<ORTFLASH_HEAD_DIMENSION> {
  static constexpr int kStages = 6;
  static constexpr SplitRule kSplits{1, 64, 16, true};
};

template <typename Tiles>
Candidate decode(const char *name) {
  using Kernel = DecodeKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, Tiles>;
  const auto serves = [](const AttentionParams &p, bool rules) { return !rules && p.keys > 0; };
  const auto launch = [](const AttentionParams &p, int, cudaStream_t stream) {
    return launch_decode_kernel<Kernel, false>(p, stream);
  };
  return {name,   ORTFLASH_DECODE, candidate_element<ORTFLASH_ELEMENT>(), ORTFLASH_HEAD_DIMENSION, serves,
          launch, Tiles::kSplits};
}

}  // namespace

template <>
void add_decode_candidates<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(std::vector<Candidate> &all) {
  all.push_back(decode<Wide>("8 warps"));
  all.push_back(decode<WideCluster>("cluster, 8 warps"));
  all.push_back(decode<DeepCluster>("cluster, 6 stages"));
}

}  // namespace ortflash
