// How the decode kernel is started, and what puts its splits together.
#pragma once
#include "decode.cuh"
#include "launch.h"

namespace ortflash {

template <typename Kernel, bool kRules>
cudaError_t launch_decode_kernel(const AttentionParams &p, cudaStream_t stream) {
  const int64_t across = divide_up(int64_t{p.queries} * p.heads_per_key, Kernel::kRows) * p.splits;
  if (across > 0x7fffffff || p.key_heads > kMostDecodeHeads || p.batch > kMostDecodeHeads)
    return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(across), p.key_heads, p.batch);
  const LaunchOptions options{Kernel::kCombining == Combining::kCluster ? p.splits : 1, Kernel::Tiles::kStartsEarly};
  const cudaError_t error =
      start_with(options, decode_attention<Kernel, kRules>, grid, Kernel::kThreads, Kernel::kSharedBytes, stream, p);
  if (error != cudaSuccess || p.splits == 1 || Kernel::kCombining != Combining::kLaunch) return error;
  return launch_combine<typename Kernel::Element>(p, stream);
}

}  // namespace ortflash
