// How the decode kernel is started, and what puts its splits together.
#pragma once
#include "decode.cuh"
#include "launch.h"

namespace ortflash {

// `function`: the one of Kernel.
template <typename Kernel>
cudaError_t start_decode(void (*function)(AttentionParams), const AttentionParams &p, cudaStream_t stream) {
  const int64_t across = divide_up(int64_t{p.queries} * p.heads_per_key, Kernel::kRows) * p.splits;
  if (across > 0x7fffffff || p.key_heads > kMostDecodeHeads || p.batch > kMostDecodeHeads)
    return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(across), p.key_heads, p.batch);
  const LaunchOptions options{Kernel::kCombining == Combining::kCluster ? p.splits : 1, Kernel::Tiles::kStartsEarly};
  const cudaError_t error = start_with(options, function, grid, Kernel::kThreads, Kernel::kSharedBytes, stream, p);
  if (error != cudaSuccess || p.splits == 1 || p.tally || Kernel::kCombining == Combining::kCluster) return error;
  return launch_combine<typename Kernel::Element>(p, stream);
}

template <typename Kernel, bool kRules>
cudaError_t launch_decode_kernel(const AttentionParams &p, cudaStream_t stream) {
  return start_decode<Kernel>(decode_attention<Kernel, kRules>, p, stream);
}

// Whether the device can hold a cluster of the kernel's most splits, with the memory that each takes. Asked once.
template <typename Kernel>
bool can_launch_cluster() {
  static const bool can = [] {
    const auto kernel = decode_attention<Kernel, false>;
    const auto *function = reinterpret_cast<const void *>(kernel);
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = Kernel::Tiles::kSplits.most_splits;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(Kernel::Tiles::kSplits.most_splits);
    config.blockDim = dim3(Kernel::kThreads);
    config.dynamicSmemBytes = Kernel::kSharedBytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    if (allow_launch(function, Kernel::kSharedBytes) == cudaSuccess &&
        cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess)
      return clusters > 0;
    cudaGetLastError();  // the answer is no; it is not an error of the call
    return false;
  }();
  return can;
}

}  // namespace ortflash
