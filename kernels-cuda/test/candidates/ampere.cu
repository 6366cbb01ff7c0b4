// Other tiles for the Ampere kernel. Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/ampere_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

template <int kBlockWarps, int kTiles, int kStepKeys, int kStepStages, bool kHoldQuery = false, int kLeastBlocks = 0>
struct Lean : AmpereDefaults {
  static constexpr int kWarps = kBlockWarps, kRowTiles = kTiles, kKeys = kStepKeys, kStages = kStepStages;
  static constexpr int kBlocks = kLeastBlocks;
  static constexpr bool kQueryInRegisters = kHoldQuery, kLean = true;
};

template <typename Tiles>
Candidate ampere(const char *name) {
  using Kernel = AmpereKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, Tiles>;
  const auto serves = [](const AttentionParams &, bool rules) { return !rules; };
  const auto launch = [](const AttentionParams &p, int, cudaStream_t stream) {
    return launch_ampere_kernel<Kernel, false>(p, stream);
  };
  return {name, ORTFLASH_AMPERE, candidate_element<ORTFLASH_ELEMENT>(), ORTFLASH_HEAD_DIMENSION, serves, launch, {}};
}

}  // namespace

template <>
void add_ampere_candidates<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(std::vector<Candidate> &all) {
  constexpr int kHeadDimension = ORTFLASH_HEAD_DIMENSION;
  if constexpr (kHeadDimension == 64) {
    all.push_back(ampere<Lean<4, 2, 64, 1>>("lean"));
    all.push_back(ampere<Lean<4, 2, 64, 2>>("lean, 2 stages"));
    all.push_back(ampere<Lean<4, 2, 64, 2, true>>("lean, 2 stages, Q held"));
    all.push_back(ampere<Lean<4, 2, 64, 2, false, 3>>("lean, 2 stages, 3 blocks"));
    all.push_back(ampere<Lean<4, 2, 128, 1>>("lean, 128 keys"));
    all.push_back(ampere<Lean<8, 1, 64, 2, true, 2>>("lean, 8 warps, Q held"));
  } else if constexpr (kHeadDimension == 128) {
    all.push_back(ampere<Lean<4, 2, 64, 1>>("lean"));
    all.push_back(ampere<Lean<4, 2, 64, 2>>("lean, 2 stages"));
    all.push_back(ampere<Lean<4, 2, 32, 2>>("lean, 2 stages of 32"));
    all.push_back(ampere<Lean<8, 1, 64, 2, false, 2>>("lean, 8 warps, 2 blocks"));
  } else {
    all.push_back(ampere<AmpereSmallTiles>("small, for 99 KiB"));
    all.push_back(ampere<Lean<8, 1, 32, 1>>("lean, small"));
    all.push_back(ampere<Lean<8, 1, 64, 1>>("lean"));
    all.push_back(ampere<Lean<8, 1, 64, 2>>("lean, 2 stages"));
    all.push_back(ampere<Lean<8, 1, 32, 2>>("lean, 2 stages of 32"));
  }
}

}  // namespace ortflash
