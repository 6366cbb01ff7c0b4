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
  const LaunchOptions options{Kernel::kCombining == Combining::kCluster ? p.splits : 1, Kernel::Tiles::kStartsEarly};
  const cudaError_t error =
      options.cluster > 1 || options.early
          ? start_with(options, kernel, blocks, Kernel::kThreads, Kernel::kSharedBytes, stream, p)
          : start(kernel, blocks, Kernel::kThreads, Kernel::kSharedBytes, stream, p);
  if (error != cudaSuccess || p.splits == 1 || Kernel::kCombining != Combining::kLaunch) return error;
  return launch_combine<typename Kernel::Element>(p, stream);
}

}  // namespace ortflash
