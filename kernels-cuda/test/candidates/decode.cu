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
struct Wide : DecodeWideTiles<ORTFLASH_HEAD_DIMENSION> {};
// The same, launched while the kernel before them ends.
template <typename Tiles>
struct Early : Tiles {
  static constexpr bool kStartsEarly = true;
};
// The kernel that the wide cluster was chosen over for few keys.
struct Cluster : DecodeClusterTiles<ORTFLASH_HEAD_DIMENSION> {};

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
  all.push_back(decode<Wide>("8 warps"));
  all.push_back(decode<Early<Plain>>("workspace, started early"));
  all.push_back(decode<Early<Fine>>("splits by the tile, started early"));
  all.push_back(decode<Early<Wide>>("8 warps, started early"));
  all.push_back(decode<Cluster>("cluster"));
}

}  // namespace ortflash
