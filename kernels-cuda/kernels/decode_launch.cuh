// How the decode kernel is started, and what puts its splits together.
#pragma once
#include "decode.cuh"
#include "launch.h"

namespace ortflash {

template <typename Kernel, bool kRules>
cudaError_t launch_decode_kernel(const AttentionParams &p, cudaStream_t stream) {
  const int64_t row_tiles = divide_up(int64_t{p.queries} * p.heads_per_key, Kernel::kRows);
  const int64_t blocks = row_tiles * p.splits * p.batch * p.key_heads;
  const auto kernel = decode_attention<Kernel, kRules>;
  if (Kernel::kCombining == Combining::kCluster && p.splits > 1)
    return start_with({p.splits, false}, kernel, blocks, Kernel::kThreads, Kernel::kSharedBytes, stream, p);
  const cudaError_t error = start(kernel, blocks, Kernel::kThreads, Kernel::kSharedBytes, stream, p);
  if (error != cudaSuccess || p.splits == 1) return error;
  return launch_combine<typename Kernel::Element>(p, Kernel::kCombining == Combining::kOverlapped, stream);
}

}  // namespace ortflash
