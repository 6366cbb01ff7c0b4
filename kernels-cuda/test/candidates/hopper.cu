// Other tiles for the Hopper kernel. Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/hopper_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

// Items' keys, values and queries asked for further ahead; with kSkip, steps that only other warpgroups see are passed over.
template <int kWarpgroups, int kStepKeys, int kStepStages, int kBuffers, bool kSkip = false>
struct Ahead : HopperDefaults {
  static constexpr int kConsumers = kWarpgroups, kKeys = kStepKeys, kStages = kStepStages, kQueryBuffers = kBuffers;
  static constexpr bool kKeysFirst = true, kSeparateEdges = kSkip, kSkipsHidden = kSkip, kTurns = !kSkip;
};

using Table = HopperTiles<ORTFLASH_HEAD_DIMENSION, false>;

template <int kWarpgroups, int kStepKeys>
struct Bias : HopperDefaults {
  static constexpr int kConsumers = kWarpgroups, kKeys = kStepKeys, kStages = 2;
  static constexpr bool kBias = true, kSeparateEdges = true;
};

// kWaves: heads are taken in groups of as many as give each multiprocessor this many items; 0: as the library plans it.
template <typename Tiles, int kWaves = 0>
Candidate hopper(const char *name) {
  using Kernel = HopperKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, false, Tiles>;
  const auto serves = [](const AttentionParams &p, bool rules) { return Tiles::kBias ? can_stage_bias(p) : !rules; };
  const auto launch = [](const AttentionParams &p, int multiprocessors, cudaStream_t stream) {
    AttentionParams grouped = p;
    const int64_t heads = divide_up(kWaves * multiprocessors, divide_up(p.queries, Kernel::kRows));
    if (kWaves > 0 && heads < p.heads_at_once) grouped.heads_at_once = static_cast<int>(heads);
    return launch_hopper_kernel<Kernel>(grouped, multiprocessors, stream);
  };
  return {name,   ORTFLASH_HOPPER, candidate_element<ORTFLASH_ELEMENT>(), ORTFLASH_HEAD_DIMENSION, serves,
          launch, {}};
}

}  // namespace

template <>
void add_hopper_candidates<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(std::vector<Candidate> &all) {
  constexpr int kHeadDimension = ORTFLASH_HEAD_DIMENSION;
  constexpr bool kHalf = std::is_same_v<ORTFLASH_ELEMENT, __half>;
  if constexpr (kHeadDimension == 64) {
    all.push_back(hopper<Bias<3, 128>>("bias, 3 warpgroups"));
    all.push_back(hopper<Bias<2, 128>>("bias, 2 warpgroups"));
    if constexpr (kHalf) {
      all.push_back(hopper<Table, 1>("1 wave"));
      all.push_back(hopper<Table, 2>("2 waves"));
      all.push_back(hopper<Ahead<3, 128, 4, 2>>("4 stages, 2 items"));
      all.push_back(hopper<Ahead<3, 128, 4, 2>, 1>("4 stages, 2 items, 1 wave"));
      all.push_back(hopper<Ahead<3, 128, 4, 2, true>, 1>("4 stages, 2 items, skip, 1 wave"));
      all.push_back(hopper<Ahead<2, 128, 4, 2>, 1>("2 x 128, 4 stages, 2 items, 1 wave"));
    }
  } else if constexpr (kHeadDimension == 128) {
    all.push_back(hopper<Bias<2, 128>>("bias"));
    if constexpr (kHalf) {
      all.push_back(hopper<Table, 1>("1 wave"));
      all.push_back(hopper<Table, 2>("2 waves"));
      all.push_back(hopper<Ahead<2, 176, 2, 1>, 1>("keys first, 1 wave"));
      all.push_back(hopper<Ahead<2, 128, 2, 2>, 1>("2 x 128, 2 items, 1 wave"));
    }
  } else {
    all.push_back(hopper<Bias<2, 64>>("bias"));
    if constexpr (kHalf) {
      all.push_back(hopper<Table, 1>("1 wave"));
      all.push_back(hopper<Ahead<2, 80, 2, 1>, 1>("keys first, 1 wave"));
      all.push_back(hopper<Ahead<2, 64, 2, 1>, 1>("2 x 64, keys first, 1 wave"));
      all.push_back(hopper<Ahead<2, 48, 2, 2>, 1>("2 x 48, 2 items, 1 wave"));
    }
  }
}

}  // namespace ortflash
