// How a wgmma operand in shared memory is described (PTX ISA, wgmma: matrix descriptor).
#pragma once
#include <cstdint>

#include "ptx.cuh"

namespace ortflash::wgmma {

// Describes an operand in shared memory in the 128-byte swizzle that tensor copies of 64 16-bit columns write: rows of 128
// bytes, 8 rows to a 1,024-byte block. `leading` is the distance in bytes between neighbouring chunks of 64 columns where
// those are the operand's M or N axis; 8-row blocks follow each other directly.
__device__ inline uint64_t operand(const void *shared, uint32_t leading = 16) {
  const uint64_t address = (ptx::shared_address(shared) & 0x3ffff) >> 4;
  return address | uint64_t{leading >> 4} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// The operand `bytes` further on.
__device__ inline uint64_t advance(uint64_t operand, uint32_t bytes) { return operand + (bytes >> 4); }

}  // namespace ortflash::wgmma
