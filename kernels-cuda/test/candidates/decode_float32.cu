// Other shapes of the float32 decode kernel's blocks. Compiled once for each ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/decode_float32_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

using Base = DecodeFloat32Tiles<ORTFLASH_HEAD_DIMENSION>;
// The table's.
struct Workspace : Base {};
// The other forms of 16-bit decode (compute capability 9.0).
struct Wide : Base {
  static constexpr int kWarps = 8, kStages = 3;
  static constexpr bool kStartsEarly = true;
  static constexpr SplitRule kSplits{1, kLeastKeys, 0x7fffffff, false, kStep};
};
struct Cluster : Wide {
  static constexpr Combining kCombining = Combining::kCluster;
  static constexpr SplitRule kSplits{1, kLeastKeys, kMostClusterSplits, true, kStep};
};
// More bytes on their way, in more memory than a block has on 8.6 and 8.9.
struct Deep : Workspace {
  static constexpr int kStages = 3;
};

template <typename Tiles>
Candidate decode(const char *name) {
  const auto serves = [](const AttentionParams &p, bool) { return p.keys > 0; };
  const auto launch = [](const AttentionParams &p, int, cudaStream_t stream) {
    return launch_decode_float32<ORTFLASH_HEAD_DIMENSION, Tiles>(p, stream);
  };
  return {name, ORTFLASH_DECODE, ORTFLASH_FLOAT32, ORTFLASH_HEAD_DIMENSION, serves, launch, Tiles::kSplits};
}

}  // namespace

template <>
void add_decode_candidates<float, ORTFLASH_HEAD_DIMENSION>(std::vector<Candidate> &all) {
  all.push_back(decode<Workspace>("workspace"));
  all.push_back(decode<Deep>("workspace, three stages"));
  all.push_back(decode<Wide>("one block a multiprocessor"));
  all.push_back(decode<Cluster>("cluster"));
}

}  // namespace ortflash
