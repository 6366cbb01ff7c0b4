// The small kernels of every element type: scalar attention, the combine step of decode, and the append to a cache.
#include "decode_combine.cuh"
#include "launch.h"
#include "scalar.cuh"

namespace ortflash {

template <typename Element>
cudaError_t launch_scalar(const AttentionParams &p, cudaStream_t stream) {
  const int64_t rows = int64_t{p.batch} * p.query_heads * p.queries;
  const int shared_bytes = kScalarWarps * p.value_dimension * static_cast<int>(sizeof(float));
  return start(scalar_attention<Element>, divide_up(rows, kScalarWarps), kScalarWarps * 32, shared_bytes, stream, p);
}

template <typename Element>
cudaError_t launch_combine(const AttentionParams &p, cudaStream_t stream) {
  const int64_t rows = int64_t{p.batch} * p.query_heads * p.queries;
  const int floats = p.splits + kCombineThreads / 32 * p.value_dimension;
  const int shared_bytes = floats * static_cast<int>(sizeof(float));
  return start(combine_splits<Element>, rows, kCombineThreads, shared_bytes, stream, p);
}

template cudaError_t launch_scalar<float>(const AttentionParams &, cudaStream_t);
template cudaError_t launch_scalar<__half>(const AttentionParams &, cudaStream_t);
template cudaError_t launch_scalar<__nv_bfloat16>(const AttentionParams &, cudaStream_t);
template cudaError_t launch_combine<float>(const AttentionParams &, cudaStream_t);
template cudaError_t launch_combine<__half>(const AttentionParams &, cudaStream_t);
template cudaError_t launch_combine<__nv_bfloat16>(const AttentionParams &, cudaStream_t);

// `Unit`: what one thread copies, a whole number of elements of one row.
template <typename Unit>
__device__ inline void append(const AppendParams &a, int units_per_row) {
  const int64_t length = int64_t{a.past_length} + a.added_length, rows = int64_t{a.batch} * a.heads * length;
  const int per_unit = static_cast<int>(sizeof(Unit)) / a.element_bytes;
  const auto *past = static_cast<const Unit *>(a.past);
  for (int64_t n = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; n < rows * units_per_row;
       n += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = n / units_per_row, head = row / length;
    const int unit = static_cast<int>(n % units_per_row), position = static_cast<int>(row % length);
    const Unit *source;
    if (position < a.past_length) {
      source = past + (head * a.past_length + position) * units_per_row + unit;
    } else {
      const int64_t element = head / a.heads * a.added.batch + head % a.heads * a.added.head +
                              (position - a.past_length) * a.added.sequence + unit * per_unit * a.added.dimension;
      source = reinterpret_cast<const Unit *>(static_cast<const char *>(a.added.data) + element * a.element_bytes);
    }
    static_cast<Unit *>(a.present)[n] = *source;
  }
}

template <typename Unit>
__global__ void append_to_cache(const __grid_constant__ AppendParams key, const __grid_constant__ AppendParams value) {
  const AppendParams &a = blockIdx.y == 0 ? key : value;
  append<Unit>(a, a.dimension * a.element_bytes / static_cast<int>(sizeof(Unit)));
}

static bool can_copy_wide(const AppendParams &a) {
  const auto aligned = [&](int64_t elements) { return elements * a.element_bytes % 16 == 0; };
  const auto address = [](const void *pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return aligned(a.dimension) && a.added.dimension == 1 && aligned(a.added.batch) && aligned(a.added.head) &&
         aligned(a.added.sequence) && address(a.past) && address(a.added.data) && address(a.present);
}

cudaError_t launch_append(const AppendParams &key, const AppendParams &value, cudaStream_t stream) {
  const bool wide = can_copy_wide(key) && can_copy_wide(value);
  const int64_t length = int64_t{key.past_length} + key.added_length;
  const int dimension = key.dimension > value.dimension ? key.dimension : value.dimension;
  const int unit_bytes = wide ? 16 : key.element_bytes;
  const int64_t units = int64_t{key.batch} * key.heads * length * (dimension * key.element_bytes / unit_bytes);
  int64_t blocks = divide_up(units, 256);
  if (blocks == 0) return cudaSuccess;
  if (blocks > 4096) blocks = 4096;
  const auto kernel = wide                     ? append_to_cache<uint4>
                      : key.element_bytes == 4 ? append_to_cache<uint32_t>
                                               : append_to_cache<uint16_t>;
  return start_with({}, kernel, dim3(static_cast<unsigned>(blocks), 2), 256, 0, stream, key, value);
}

}  // namespace ortflash
