#include "launch.h"
#include "tf32.cuh"

namespace ortflash {
namespace {

template <typename Kernel>
cudaError_t launch(const AttentionParams &p, cudaStream_t stream) {
  return start_tiles<Kernel>(tf32_attention<Kernel>, p, stream);
}

}  // namespace

template <int kHeadDimension>
cudaError_t launch_tf32(const AttentionParams &p, bool rules, cudaStream_t stream) {
  return rules ? launch<Tf32Kernel<kHeadDimension, true>>(p, stream) : launch<Tf32Kernel<kHeadDimension, false>>(p, stream);
}

template cudaError_t launch_tf32<64>(const AttentionParams &, bool, cudaStream_t);
template cudaError_t launch_tf32<128>(const AttentionParams &, bool, cudaStream_t);
template cudaError_t launch_tf32<256>(const AttentionParams &, bool, cudaStream_t);

}  // namespace ortflash
