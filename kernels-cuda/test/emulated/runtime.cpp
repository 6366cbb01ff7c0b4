// The parts of CUDA's runtime that the library and the harness call, on the processor.
#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "tensor_map.h"
#include "threads.h"

namespace {

int from_environment(const char *name, int otherwise) {
  const char *text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

struct Mapping {
  void *start;
  size_t bytes;
};
std::map<void *, Mapping> mappings;

struct TensorMap {
  char *data;
  int64_t sizes[4], strides[4];  // strides in bytes
  int box[4];
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

}  // namespace

// Memory that ends, but for the alignment to 256 bytes, where the next page may not be touched.
extern "C" cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE), used = (bytes + 255) / 256 * 256;
  const size_t whole = (used + page - 1) / page * page;
  char *start = static_cast<char *>(
      mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (start == MAP_FAILED) return cudaErrorMemoryAllocation;
  mprotect(start + whole, page, PROT_NONE);
  *pointer = start + whole - used;
  mappings[*pointer] = {start, whole + page};
  return cudaSuccess;
}

extern "C" cudaError_t cudaFree(void *pointer) {
  const auto found = mappings.find(pointer);
  if (found == mappings.end()) return pointer ? cudaErrorInvalidValue : cudaSuccess;
  munmap(found->second.start, found->second.bytes);
  mappings.erase(found);
  return cudaSuccess;
}

extern "C" cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

extern "C" cudaError_t cudaMemset(void *to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

extern "C" cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}

extern "C" cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
extern "C" cudaError_t cudaGetLastError() { return cudaSuccess; }
extern "C" const char *cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "an error"; }
extern "C" cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }

extern "C" cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}

// An H100, or what the environment says: EMULATED_COMPUTE_MAJOR, EMULATED_MULTIPROCESSORS, EMULATED_SHARED_BYTES.
extern "C" cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = from_environment("EMULATED_COMPUTE_MAJOR", 9);
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = from_environment("EMULATED_MULTIPROCESSORS", 132);
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = from_environment("EMULATED_SHARED_BYTES", emulated::kSharedBytes);
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                                        cudaDriverEntryPointQueryResult *found) {
  if (std::strcmp(symbol, "cuTensorMapEncodeTiled") != 0) return cudaErrorInvalidValue;
  *function = reinterpret_cast<void *>(emulated::encode_tensor_map);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

namespace emulated {

CUresult encode_tensor_map(CUtensorMap *map, CUtensorMapDataType, cuuint32_t rank, void *data, const cuuint64_t *sizes,
                           const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *, CUtensorMapInterleave,
                           CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (rank != 4 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B || box[0] * 2 > 128) return CUDA_ERROR_INVALID_VALUE;
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
  TensorMap made{static_cast<char *>(data), {}, {2}, {}};
  for (int axis = 0; axis < 4; ++axis) {
    if (sizes[axis] == 0 || sizes[axis] > uint64_t{1} << 32 || box[axis] == 0 || box[axis] > 256)
      return CUDA_ERROR_INVALID_VALUE;
    made.sizes[axis] = static_cast<int64_t>(sizes[axis]);
    made.box[axis] = static_cast<int>(box[axis]);
    if (axis == 0) continue;
    if (strides[axis - 1] % 16 != 0 || strides[axis - 1] >= uint64_t{1} << 40) return CUDA_ERROR_INVALID_VALUE;
    made.strides[axis] = static_cast<int64_t>(strides[axis - 1]);
  }
  std::memcpy(map, &made, sizeof made);
  return CUDA_SUCCESS;
}

uint32_t copy_box(uint32_t address, const CUtensorMap &encoded, const int (&at)[4]) {
  TensorMap map;
  std::memcpy(&map, &encoded, sizeof map);
  if (address % 128 != 0) fail("the copy engine writes to multiples of 128 bytes, not to %u", address);
  uint32_t written = 0;
  int64_t n[4];
  for (n[3] = at[3]; n[3] < at[3] + map.box[3]; ++n[3]) {
    for (n[2] = at[2]; n[2] < at[2] + map.box[2]; ++n[2]) {
      for (n[1] = at[1]; n[1] < at[1] + map.box[1]; ++n[1]) {
        for (n[0] = at[0]; n[0] < at[0] + map.box[0]; ++n[0], written += 2) {
          bool inside = true;
          int64_t offset = 0;
          for (int axis = 0; axis < 4; ++axis) {
            inside = inside && n[axis] >= 0 && n[axis] < map.sizes[axis];
            offset += n[axis] * map.strides[axis];
          }
          uint16_t element = 0;
          if (inside) std::memcpy(&element, map.data + offset, 2);
          // The swizzle: bits 4 to 6 of the address change with bits 7 to 9.
          const uint32_t place = address + written;
          std::memcpy(at_address(place ^ (place >> 7 & 7) << 4, 2), &element, 2);
        }
      }
    }
  }
  return written;
}

}  // namespace emulated
