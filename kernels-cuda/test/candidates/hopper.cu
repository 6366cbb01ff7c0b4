// Other tiles for the Hopper kernel. Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/hopper_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

// Steps that only other warpgroups see are passed over, and only the crossing side of a diagonal is compared.
template <int kWarpgroups, int kStepKeys, int kStepStages, bool kInTurns = true, bool kCounter = true>
struct Skipping : HopperDefaults {
  static constexpr int kConsumers = kWarpgroups, kKeys = kStepKeys, kStages = kStepStages;
  static constexpr bool kSkipsHidden = true, kSeparateEdges = true, kTurns = kInTurns, kCountsWork = kCounter;
};

// The table's own tiles.
struct Lazy : HopperTiles<ORTFLASH_HEAD_DIMENSION, false> {
  static constexpr bool kLazyRescale = true, kSeparateEdges = true;
};

template <int kWarpgroups, int kStepKeys>
struct Bias : HopperDefaults {
  static constexpr int kConsumers = kWarpgroups, kKeys = kStepKeys, kStages = 2;
  static constexpr bool kBias = true, kSeparateEdges = true;
};

template <typename Tiles>
Candidate hopper(const char *name) {
  using Kernel = HopperKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, false, Tiles>;
  const auto serves = [](const AttentionParams &p, bool rules) { return Tiles::kBias ? can_stage_bias(p) : !rules; };
  return {name, ORTFLASH_HOPPER, candidate_element<ORTFLASH_ELEMENT>(), ORTFLASH_HEAD_DIMENSION, serves,
          launch_hopper_kernel<Kernel>, {}};
}

}  // namespace

template <>
void add_hopper_candidates<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(std::vector<Candidate> &all) {
  constexpr int kHeadDimension = ORTFLASH_HEAD_DIMENSION;
  constexpr bool kHalf = std::is_same_v<ORTFLASH_ELEMENT, __half>;
  if constexpr (kHalf) all.push_back(hopper<Lazy>("lazy rescale"));
  if constexpr (kHeadDimension == 64) {
    all.push_back(hopper<Bias<3, 128>>("bias, 3 warpgroups"));
    all.push_back(hopper<Bias<2, 128>>("bias, 2 warpgroups"));
    if constexpr (kHalf) {
      all.push_back(hopper<Skipping<3, 128, 2>>("skip, 3 x 128"));
      all.push_back(hopper<Skipping<3, 128, 2, true, false>>("skip, 3 x 128, no counter"));
      all.push_back(hopper<Skipping<3, 128, 2, false>>("skip, 3 x 128, no turns"));
      all.push_back(hopper<Skipping<2, 128, 2>>("skip, 2 x 128"));
      all.push_back(hopper<Skipping<3, 64, 4>>("skip, 3 x 64"));
    }
  } else if constexpr (kHeadDimension == 128) {
    all.push_back(hopper<Bias<2, 128>>("bias"));
    if constexpr (kHalf) {
      all.push_back(hopper<Skipping<2, 128, 2>>("skip, 2 x 128"));
      all.push_back(hopper<Skipping<2, 176, 2>>("skip, 2 x 176"));
    }
  } else {
    all.push_back(hopper<Bias<2, 64>>("bias"));
    if constexpr (kHalf) {
      all.push_back(hopper<Skipping<2, 64, 2>>("skip, 2 x 64"));
      all.push_back(hopper<Skipping<2, 80, 2>>("skip, 2 x 80"));
      all.push_back(hopper<Skipping<2, 80, 2, false>>("skip, 2 x 80, no turns"));
    }
  }
}

}  // namespace ortflash
