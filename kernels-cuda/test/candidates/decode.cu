// Other shapes of the decode kernel's blocks. Compiled once for each ORTFLASH_ELEMENT and
// ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/decode_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

// The table's forms, each for all lengths.
struct Workspace : DecodeTiles<ORTFLASH_HEAD_DIMENSION> {};
struct Wide : DecodeWideTiles<ORTFLASH_HEAD_DIMENSION> {};
struct Cluster : DecodeClusterTiles<ORTFLASH_HEAD_DIMENSION> {};
// Launched while the kernel before it ends.
struct EarlyWorkspace : Workspace {
  static constexpr bool kStartsEarly = true;
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
  all.push_back(decode<Workspace>("workspace"));
  all.push_back(decode<EarlyWorkspace>("workspace, started early"));
  all.push_back(decode<Wide>("one block a multiprocessor"));
  all.push_back(decode<Cluster>("cluster"));
}

}  // namespace ortflash
