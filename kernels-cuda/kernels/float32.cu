#include "float32.cuh"
#include "launch.h"

namespace ortflash {
namespace {

template <typename Kernel>
cudaError_t launch(const AttentionParams &p, cudaStream_t stream) {
  return start_tiles<Kernel>(float32_attention<Kernel>, p, stream);
}

}  // namespace

template <int kHeadDimension>
cudaError_t launch_float32(const AttentionParams &p, bool rules, bool small, cudaStream_t stream) {
  if (small) {
    return rules ? launch<Float32Kernel<kHeadDimension, 4, 8, true>>(p, stream)
                 : launch<Float32Kernel<kHeadDimension, 4, 8, false>>(p, stream);
  }
  return rules ? launch<Float32Kernel<kHeadDimension, 8, 8, true>>(p, stream)
               : launch<Float32Kernel<kHeadDimension, 8, 8, false>>(p, stream);
}

template cudaError_t launch_float32<64>(const AttentionParams &, bool, bool, cudaStream_t);
template cudaError_t launch_float32<128>(const AttentionParams &, bool, bool, cudaStream_t);
template cudaError_t launch_float32<256>(const AttentionParams &, bool, bool, cudaStream_t);

}  // namespace ortflash
