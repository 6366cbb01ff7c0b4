// How the float32 decode kernel is started.
#pragma once
#include "decode_float32.cuh"
#include "decode_launch.cuh"

namespace ortflash {

template <typename Kernel>
cudaError_t launch_decode_float32_kernel(const AttentionParams &p, cudaStream_t stream) {
  return start_decode<Kernel>(decode_float32<Kernel>, p, stream);
}

// With the least rows that hold the call's, or 16.
template <int kHeadDimension, typename Tiles>
cudaError_t launch_decode_float32(const AttentionParams &p, cudaStream_t stream) {
  const int64_t rows = int64_t{p.queries} * p.heads_per_key;
  return rows <= 1   ? launch_decode_float32_kernel<DecodeFloat32Kernel<kHeadDimension, 1, Tiles>>(p, stream)
         : rows <= 4 ? launch_decode_float32_kernel<DecodeFloat32Kernel<kHeadDimension, 4, Tiles>>(p, stream)
         : rows <= 8 ? launch_decode_float32_kernel<DecodeFloat32Kernel<kHeadDimension, 8, Tiles>>(p, stream)
                     : launch_decode_float32_kernel<DecodeFloat32Kernel<kHeadDimension, 16, Tiles>>(p, stream);
}

}  // namespace ortflash
