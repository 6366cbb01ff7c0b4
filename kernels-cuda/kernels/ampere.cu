// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "ampere.cuh"
#include "launch.h"

namespace ortflash {

template <>
cudaError_t launch_ampere<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules,
                                                                     cudaStream_t stream) {
  using Kernel = AmpereKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>;
  const int64_t blocks = divide_up(p.queries, Kernel::kRows) * p.batch * p.query_heads;
  return start(rules ? ampere_attention<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, true>
                     : ampere_attention<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION, false>,
               blocks, Kernel::kThreads, Kernel::kSharedBytes, stream, p);
}

}  // namespace ortflash
