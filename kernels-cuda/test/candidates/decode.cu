// Other ways to put the decode kernel's splits together. Compiled once for each ORTFLASH_ELEMENT and
// ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/decode_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

template <int kStreamWarps, int kBlocks, int kLeastKeys, bool kEarly = false>
struct LastBlock : DecodeDefaults {
  static constexpr int kWarps = kStreamWarps, kStages = 3;
  static constexpr Combining kCombining = Combining::kLastBlock;
  static constexpr SplitRule kSplits{kBlocks, kLeastKeys, kMostSplitsOfLastBlock, false, true};
  static constexpr bool kStartsEarly = kEarly;
};

template <bool kEarly>
struct Cluster : DecodeDefaults {
  static constexpr int kStages = 3;
  static constexpr Combining kCombining = Combining::kCluster;
  static constexpr SplitRule kSplits{2, 64, 16, true};
  static constexpr bool kStartsEarly = kEarly;
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
  all.push_back(decode<LastBlock<4, 2, 128>>("last block"));
  all.push_back(decode<LastBlock<4, 2, 64>>("last block, 64 keys"));
  all.push_back(decode<LastBlock<8, 1, 128>>("last block, 8 warps"));
  all.push_back(decode<LastBlock<8, 1, 128, true>>("last block, 8 warps, early"));
  all.push_back(decode<Cluster<false>>("cluster of 16"));
  all.push_back(decode<Cluster<true>>("cluster of 16, early"));
}

}  // namespace ortflash
