// Other shapes of the float32 decode kernel's blocks. Compiled once for each ORTFLASH_HEAD_DIMENSION.
#include "../../kernels/decode_float32_launch.cuh"
#include "candidates.h"

namespace ortflash {
namespace {

// The table's forms, each for all lengths.
struct Workspace : DecodeFloat32Tiles<ORTFLASH_HEAD_DIMENSION> {};
struct Wide : DecodeFloat32WideTiles<ORTFLASH_HEAD_DIMENSION> {};
struct Cluster : DecodeFloat32ClusterTiles<ORTFLASH_HEAD_DIMENSION> {};
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
