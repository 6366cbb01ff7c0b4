// Other shapes of the decode kernel's blocks. Compiled once for each ORTFLASH_ELEMENT and
// ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/decode_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

// Splits of any length by way of workspace, whatever their number.
struct Plain : DecodeTiles<ORTFLASH_HEAD_DIMENSION> {};
// Splits by the tile: 65,536 keys of 8 heads in 264 blocks in place of 256 on 132 multiprocessors.
struct Fine : DecodeTiles<ORTFLASH_HEAD_DIMENSION> {
  static constexpr SplitRule kSplits{2, 128, 0x7fffffff, false, 16};
};
// The kernel of long caches as it was: not before the kernel in front of it has ended.
struct Wide : DecodeWideTiles<ORTFLASH_HEAD_DIMENSION> {
  static constexpr bool kStartsEarly = false;
};
// Launched while the kernel before them ends.
template <typename Tiles>
struct Early : Tiles {
  static constexpr bool kStartsEarly = true;
};
// Those that the table has for few keys, at all lengths.
struct Cluster : DecodeClusterTiles<ORTFLASH_HEAD_DIMENSION> {};
struct WideCluster : DecodeWideClusterTiles<ORTFLASH_HEAD_DIMENSION> {};

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
  all.push_back(decode<Plain>("workspace"));
  all.push_back(decode<Fine>("splits by the tile"));
  all.push_back(decode<Wide>("one block a multiprocessor"));
  all.push_back(decode<Early<Plain>>("workspace, started early"));
  all.push_back(decode<Early<Fine>>("splits by the tile, started early"));
  all.push_back(decode<WideCluster>("wide cluster"));
  if constexpr (Cluster::kUsed) all.push_back(decode<Cluster>("cluster"));
}

}  // namespace ortflash
