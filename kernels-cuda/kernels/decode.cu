// Compiled once for each ORTFLASH_ELEMENT and ORTFLASH_HEAD_DIMENSION.
#include "decode.cuh"
#include "launch.h"

namespace ortflash {

template <>
cudaError_t launch_decode<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>(const AttentionParams &p, bool rules,
                                                                     cudaStream_t stream) {
  using Kernel = DecodeKernel<ORTFLASH_ELEMENT, ORTFLASH_HEAD_DIMENSION>;
  const int64_t row_tiles = divide_up(int64_t{p.queries} * p.heads_per_key, Kernel::kRows);
  const int64_t blocks = row_tiles * p.splits * p.batch * p.key_heads;
  const cudaError_t error = start(rules ? decode_attention<Kernel, true> : decode_attention<Kernel, false>, blocks,
                                  Kernel::kThreads, Kernel::kSharedBytes, stream, p);
  if (error != cudaSuccess || p.splits == 1) return error;
  return launch_combine<ORTFLASH_ELEMENT>(p, stream);
}

}  // namespace ortflash
