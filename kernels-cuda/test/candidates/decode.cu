// Other ways to put the decode kernel's splits together. Compiled once for each ORTFLASH_ELEMENT and
// ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/decode_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

struct Overlapped : DecodeTiles<ORTFLASH_HEAD_DIMENSION> {
  static constexpr Combining kCombining = Combining::kOverlapped;
};

// Splits of 64 keys, so that each warp has one step where keys are few.
struct OverlappedShort : Overlapped {
  static constexpr SplitRule kSplits{2, 64, 0x7fffffff, false};
};

template <int kMostSplits, int kStreamWarps, int kStreamStages>
struct Cluster : DecodeDefaults {
  static constexpr int kWarps = kStreamWarps, kStages = kStreamStages;
  static constexpr Combining kCombining = Combining::kCluster;
  static constexpr SplitRule kSplits{2, 64, kMostSplits, true};
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
  all.push_back(decode<Overlapped>("overlapped combine"));
  all.push_back(decode<OverlappedShort>("overlapped, 64 keys"));
  all.push_back(decode<Cluster<8, 4, 3>>("cluster of 8"));
  all.push_back(decode<Cluster<16, 4, 3>>("cluster of 16"));
  all.push_back(decode<Cluster<16, 4, 6>>("cluster of 16, 6 stages"));
  all.push_back(decode<Cluster<16, 8, 3>>("cluster of 16, 8 warps"));
}

}  // namespace ortflash
