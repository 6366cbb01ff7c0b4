// The Ampere kernel's tiles for devices with little shared memory, so that they are tried on one that has more. Compiled for
// ORTFLASH_ELEMENT at ORTFLASH_HEAD_DIMENSION 256.
#include "../../kernels/ampere_launch.cuh"
#include "candidates.h"

namespace ortflash {

template <>
void add_ampere_candidates<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(std::vector<Candidate> &all) {
  using Kernel = AmpereKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, false, AmpereSmallTiles>;
  const auto serves = [](const AttentionParams &, bool rules) { return !rules; };
  const auto launch = [](const AttentionParams &p, int, cudaStream_t stream) {
    return launch_ampere_kernel<Kernel>(p, stream);
  };
  all.push_back({"small, for 99 KiB", ORTFLASH_AMPERE, candidate_element<ORTFLASH_ELEMENT>(), ORTFLASH_HEAD_DIMENSION,
                 serves, launch, {}});
}

}  // namespace ortflash
