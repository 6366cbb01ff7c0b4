// The two 16-bit element types and what the kernels need of them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ptx.cuh"

namespace ortflash {

template <typename Element>
struct ElementOps;

template <>
struct ElementOps<__half> {
  static __device__ uint32_t pack(float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<uint32_t &>(pair);
  }
  static __device__ float2 unpack(uint32_t pair) { return __half22float2(reinterpret_cast<__half2 &>(pair)); }
  static __device__ float widen(__half x) { return __half2float(x); }
  static __device__ __half narrow(float x) { return __float2half_rn(x); }
};

template <>
struct ElementOps<__nv_bfloat16> {
  static __device__ uint32_t pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<uint32_t &>(pair);
  }
  static __device__ float2 unpack(uint32_t pair) { return __bfloat1622float2(reinterpret_cast<__nv_bfloat162 &>(pair)); }
  static __device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }
};

template <>
struct ElementOps<float> {
  static __device__ float widen(float x) { return x; }
  static __device__ float narrow(float x) { return x; }
};

// D = A·B + D for one 16×8 tile of 16-bit operands: A 16×16 row-major, B 16×8 column-major, D in float32.
template <typename Element>
__device__ inline void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ inline void multiply_16x8x16<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ptx::multiply_half(d, a, b0, b1);
}

template <>
__device__ inline void multiply_16x8x16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                       uint32_t b1) {
  ptx::multiply_bfloat16(d, a, b0, b1);
}

}  // namespace ortflash
