// How the Ampere kernel is started.
#pragma once
#include "ampere.cuh"
#include "launch.h"

namespace ortflash {

template <typename Kernel>
cudaError_t launch_ampere_kernel(const AttentionParams &p, cudaStream_t stream) {
  const int64_t blocks = divide_up(p.queries, Kernel::kRows) * p.batch * p.query_heads;
  return start(ampere_attention<Kernel>, blocks, Kernel::kThreads, Kernel::kSharedBytes, stream, p);
}

}  // namespace ortflash
