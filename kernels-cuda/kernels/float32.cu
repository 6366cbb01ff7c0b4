#include "float32.cuh"
#include "launch.h"

namespace ortflash {

template <int kHeadDimension>
cudaError_t launch_float32(const AttentionParams &p, cudaStream_t stream) {
  using Kernel = Float32Kernel<kHeadDimension>;
  const int64_t blocks = divide_up(p.queries, Kernel::kRows) * p.batch * p.query_heads;
  return start(float32_attention<kHeadDimension>, blocks, Kernel::kThreads, sizeof(typename Kernel::Shared), stream, p);
}

template cudaError_t launch_float32<64>(const AttentionParams &, cudaStream_t);
template cudaError_t launch_float32<128>(const AttentionParams &, cudaStream_t);
template cudaError_t launch_float32<256>(const AttentionParams &, cudaStream_t);

}  // namespace ortflash
