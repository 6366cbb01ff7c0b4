// How the Ampere kernel is started.
#pragma once
#include "ampere_lean.cuh"
#include "launch.h"

namespace ortflash {

template <typename Kernel, bool kRules>
cudaError_t launch_ampere_kernel(const AttentionParams &p, cudaStream_t stream) {
  const int64_t blocks = divide_up(p.queries, Kernel::kRows) * p.batch * p.query_heads;
  const auto kernel = [] {
    if constexpr (Kernel::Tiles::kLean) return ampere_lean_attention<Kernel, kRules>;
    else return ampere_attention<Kernel, kRules>;
  }();
  return start(kernel, blocks, Kernel::kThreads, Kernel::kSharedBytes, stream, p);
}

}  // namespace ortflash
