// Host functions that start one kernel each. A translation unit defines those of one element type and head dimension.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "params.cuh"

namespace ortflash {

// `rules`: scores go through softcap, a mask or a finite masked_value. All enqueue on `stream` and return at once.
// `small`: with AmpereSmallTiles, at head dimension 256.
template <typename Element, int kHeadDimension>
cudaError_t launch_ampere(const AttentionParams &p, bool rules, bool small, cudaStream_t stream);

template <typename Element, int kHeadDimension>
cudaError_t launch_hopper(const AttentionParams &p, bool rules, int multiprocessors, cudaStream_t stream);

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the decode kernel's blocks are shaped, and what puts a row's splits together.
enum class DecodeForm {
  kWorkspace,  // two blocks a multiprocessor, by way of workspace
  kWide,       // one with twice the warps, by way of workspace (compute capability 9.0)
  kCluster,    // the same, eight blocks a cluster (9.0)
};

// `form`: one that the device has.
template <typename Element, int kHeadDimension>
cudaError_t launch_decode(const AttentionParams &p, bool rules, DecodeForm form, cudaStream_t stream);

template <typename Element, int kHeadDimension>
SplitRule decode_splits(DecodeForm form);

// Whether a device of compute capability 9.0 can hold such a cluster.
template <typename Element, int kHeadDimension>
bool has_decode_cluster();

// `small`: with tiles of half as many queries.
template <int kHeadDimension>
cudaError_t launch_float32(const AttentionParams &p, bool rules, bool small, cudaStream_t stream);

template <int kHeadDimension>
cudaError_t launch_tf32(const AttentionParams &p, bool rules, cudaStream_t stream);

template <typename Element>
cudaError_t launch_scalar(const AttentionParams &p, cudaStream_t stream);

template <typename Element>
cudaError_t launch_combine(const AttentionParams &p, cudaStream_t stream);

// One of keys and values: where it comes from and goes to.
struct AppendParams {
  const void *past;      // (B, H, past, D), contiguous
  OrtFlashTensor added;  // (B, H, added, D), strided
  void *present;         // (B, H, past + added, D), contiguous
  int batch, heads, past_length, added_length, dimension;
  int element_bytes;
};

// present = past followed by added, for keys and values in one launch.
cudaError_t launch_append(const AppendParams &key, const AppendParams &value, cudaStream_t stream);

// A kernel with other tiles than the tables', to be compared with them. The library has none; the harness links some.
struct Candidate {
  const char *name;
  int kernel, element, head_dimension;  // in whose place it stands: OrtFlashKernel, OrtFlashElement, that of the tile
  bool (*serves)(const AttentionParams &p, bool rules);
  cudaError_t (*launch)(const AttentionParams &p, int multiprocessors, cudaStream_t stream);
  SplitRule splits;  // of a decode kernel
};

// Candidates take the kernel numbers from this one on.
constexpr int kFirstCandidate = 100;

// The candidate with this kernel number, or null.
const Candidate *find_candidate(int kernel);

// What a launch may ask for beyond its grid (compute capability 9.0).
struct LaunchOptions {
  int cluster = 1;     // blocks a cluster, at most eight
  bool early = false;  // start while the kernel before it in the stream ends, for which it waits itself
};

// Lets a kernel use this much dynamic shared memory on the current device. Asks the driver once; never takes back what another
// thread's launch needs.
cudaError_t allow_launch(const void *function, int shared_bytes);

// Starts a kernel with options.
template <typename... Formal, typename... Actual>
cudaError_t start_with(const LaunchOptions &options, void (*kernel)(Formal...), dim3 grid, int threads, int shared_bytes,
                       cudaStream_t stream, const Actual &...arguments) {
  const cudaError_t error = allow_launch(reinterpret_cast<const void *>(kernel), shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  if (options.cluster > 1) {
    cudaLaunchAttribute &attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(options.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (options.early) {
    cudaLaunchAttribute &attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Starts a kernel.
template <typename... Formal, typename... Actual>
cudaError_t start(void (*kernel)(Formal...), int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
                  const Actual &...arguments) {
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  return start_with({}, kernel, dim3(static_cast<unsigned>(blocks)), threads, shared_bytes, stream, arguments...);
}

// Starts `function`, which is Kernel's, with a block for each tile of queries of every head.
template <typename Kernel>
cudaError_t start_tiles(void (*function)(AttentionParams), const AttentionParams &p, cudaStream_t stream) {
  const int64_t blocks = divide_up(p.queries, Kernel::kRows) * p.batch * p.query_heads;
  return start(function, blocks, Kernel::kThreads, sizeof(typename Kernel::Shared), stream, p);
}


}  // namespace ortflash
