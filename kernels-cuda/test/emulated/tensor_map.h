// The copy engine's tensor maps: made and read on the processor.
#pragma once
#include <cuda.h>

#include <cstdint>

namespace emulated {

// As cuTensorMapEncodeTiled, for what the kernels ask of it: rank 4, 16-bit elements, swizzle of 128 bytes, zeros outside.
CUresult encode_tensor_map(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *data,
                           const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                           const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                           CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

// Brings the box at these coordinates to shared memory; returns its bytes.
uint32_t copy_box(uint32_t address, const CUtensorMap &map, const int (&at)[4]);

}  // namespace emulated
