// Speed of the kernels alone: forward in TFLOP/s (causal counts half), decode in TB/s; median of many runs over rotated
// buffers of random numbers, CUDA events.
#include "timing.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <chrono>

#include "case.h"

namespace {

using harness::Shape;

__global__ void randomise(void *data, int64_t count, uint32_t seed, int element) {
  for (int64_t n = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; n < count; n += int64_t{gridDim.x} * blockDim.x) {
    float sum = 0;
    uint32_t x = static_cast<uint32_t>(n) * 2654435761u ^ seed;
    for (int k = 0; k < 4; ++k) {
      x ^= x << 13;
      x ^= x >> 17;
      x ^= x << 5;
      sum += static_cast<float>(x >> 8) * (1.0f / (1 << 24)) - 0.5f;
    }
    if (element == ORTFLASH_FLOAT32) static_cast<float *>(data)[n] = sum * 1.7f;
    else if (element == ORTFLASH_FLOAT16) static_cast<__half *>(data)[n] = __float2half(sum * 1.7f);
    else static_cast<__nv_bfloat16 *>(data)[n] = __float2bfloat16(sum * 1.7f);
  }
}

void *random_memory(int64_t elements, uint32_t seed, int element) {
  void *data;
  CHECK_CUDA(cudaMalloc(&data, elements * harness::element_bytes(element)));
  randomise<<<1024, 256>>>(data, elements, seed, element);
  CHECK_CUDA(cudaGetLastError());
  return data;
}

// Runs `launch(n)` a few times between events, over and over; the median of milliseconds a call.
template <typename Launch>
float median_time(cudaStream_t stream, int calls, const Launch &launch) {
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int n = 0; n < calls + 1; ++n) launch(n);
  for (int repeat = 0; repeat < 9; ++repeat) {
    CHECK_CUDA(cudaEventRecord(begin, stream));
    for (int n = 0; n < calls; ++n) launch(n);
    CHECK_CUDA(cudaEventRecord(end, stream));
    CHECK_CUDA(cudaEventSynchronize(end));
    float elapsed;
    CHECK_CUDA(cudaEventElapsedTime(&elapsed, begin, end));
    times.push_back(elapsed / calls);
  }
  CHECK_CUDA(cudaEventDestroy(begin));
  CHECK_CUDA(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Keeps the GPU busy with the call before it is timed: one that has been idle for seconds runs at a fifth of its clock, and
// takes up to half a second of work to raise it.
template <typename Launch>
void warm_up(const Launch &launch) {
  static bool is_warm = false;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(is_warm ? 30 : 700);
  is_warm = true;
  while (std::chrono::steady_clock::now() < end) {
    for (int n = 0; n < 30; ++n) launch(n, nullptr);
    CHECK_CUDA(cudaDeviceSynchronize());
  }
}

// The time of one call in a replayed graph of many, over rotated buffers: for calls shorter than their launch.
constexpr int kGraphCalls = 32;

template <typename Launch>
float time_in_graph(const Launch &launch) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK_CUDA(cudaStreamCreate(&stream));
  launch(0, stream);
  CHECK_CUDA(cudaStreamSynchronize(stream));
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int n = 0; n < kGraphCalls; ++n) launch(n, stream);
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  const float time = median_time(stream, 5, [&](int) { CHECK_CUDA(cudaGraphLaunch(executable, stream)); }) / kGraphCalls;
  CHECK_CUDA(cudaGraphExecDestroy(executable));
  CHECK_CUDA(cudaGraphDestroy(graph));
  CHECK_CUDA(cudaStreamDestroy(stream));
  return time;
}

__global__ void do_nothing() {}

// The least of several means: other work of the machine only adds.
template <typename Launch>
float time_on_host(const Launch &launch) {
  constexpr int kCalls = 50;
  float least = INFINITY;
  for (int repeat = 0; repeat < 10; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    for (int n = 0; n < kCalls; ++n) launch(n, nullptr);
    const std::chrono::duration<float, std::milli> elapsed = std::chrono::steady_clock::now() - start;
    CHECK_CUDA(cudaDeviceSynchronize());
    least = std::min(least, elapsed.count() / kCalls);
  }
  return least;
}

}  // namespace

float harness::time_shape(const Shape &s, int kernel) {
  OrtFlashAttention call{};
  call.element = s.element;
  call.kernel = kernel;
  call.batch = s.batch;
  call.query_heads = s.query_heads;
  call.key_heads = s.key_heads;
  call.queries = s.queries;
  call.new_keys = s.keys;
  call.head_dimension = call.value_dimension = s.dimension;
  call.scale = 1.0f / std::sqrt(static_cast<float>(s.dimension));
  call.is_causal = s.causal;
  call.left_window = call.right_window = -1;
  call.align_end = 1;
  call.masked_value = -INFINITY;
  const auto tensor = [&](int heads, int length, uint32_t seed) {
    const int64_t row = int64_t{length} * s.dimension;
    return OrtFlashTensor{random_memory(row * heads * s.batch, seed, s.element), row * heads, row, s.dimension, 1};
  };
  // Together more than twice the L2 cache of an H100, from which short calls would read else.
  constexpr int64_t kRotatedBytes = int64_t{128} << 20;
  const int64_t bytes_of_set =
      int64_t{2} * s.batch * s.key_heads * s.keys * s.dimension * harness::element_bytes(s.element);
  const int sets = static_cast<int>(std::clamp<int64_t>(kRotatedBytes / bytes_of_set, 3, kGraphCalls));
  std::vector<OrtFlashTensor> query(sets), key(sets), value(sets);
  for (int n = 0; n < sets; ++n) {
    query[n] = tensor(s.query_heads, s.queries, 3 * n + 1);
    key[n] = tensor(s.key_heads, s.keys, 3 * n + 2);
    value[n] = tensor(s.key_heads, s.keys, 3 * n + 3);
  }
  call.output = tensor(s.query_heads, s.queries, 9);
  if (s.mask) {
    const int heads = s.mask == 2 ? s.query_heads : 1;
    call.mask = {random_memory(int64_t{heads} * s.queries * s.keys, 5, s.element), ORTFLASH_MASK_ADDITIVE, 1, s.keys, 0,
                 heads == 1 ? 0 : int64_t{s.queries} * s.keys, s.keys, 1};
  }
  call.query = query[0];
  call.key = key[0];
  call.value = value[0];
  size_t bytes;
  float result = -1;
  if (!ortflash_attention_workspace(&call, &bytes)) {
    void *workspace;
    CHECK_CUDA(cudaMalloc(&workspace, bytes + 256));
    const auto launch = [&](int n, cudaStream_t stream) {
      call.query = query[n % sets];
      call.key = key[n % sets];
      call.value = value[n % sets];
      if (const char *wrong = ortflash_attention_run(&call, workspace, stream)) {
        std::printf("%s\n", wrong);
        std::exit(2);
      }
    };
    warm_up(launch);
    result = s.clock == Clock::kGraph  ? time_in_graph(launch)
             : s.clock == Clock::kHost ? time_on_host(launch)
                                       : median_time(nullptr, 5, [&](int n) { launch(n, nullptr); });
    CHECK_CUDA(cudaFree(workspace));
  }
  for (int n = 0; n < sets; ++n) {
    for (const OrtFlashTensor *t : {&query[n], &key[n], &value[n]}) CHECK_CUDA(cudaFree(t->data));
  }
  CHECK_CUDA(cudaFree(call.output.data));
  CHECK_CUDA(cudaFree(const_cast<void *>(call.mask.data)));
  return result;
}

using harness::Clock;
using harness::time_shape;

namespace {

void time_decode_of_float32() {
  std::printf("decode, float32: heads, D, keys, microseconds, TB/s; microseconds without splits\n");
  for (const int key_heads : {8, 32}) {
    for (const int dimension : {128, 64}) {
      for (const int keys : {1024, 4096, 8192, 16384, 65536}) {
        Shape shape{ORTFLASH_FLOAT32, 1, 32, key_heads, 1, keys, dimension, false, 0, Clock::kGraph};
        const float ms = time_shape(shape, ORTFLASH_DECODE);
        shape.clock = Clock::kEvents;  // calls of milliseconds
        std::printf("32/%-2d %3d %6d %8.1f %6.2f %10.1f\n", key_heads, dimension, keys, ms * 1e3,
                    2.0 * key_heads * keys * dimension * 4 / ms * 1e-9, 1e3 * time_shape(shape, ORTFLASH_FLOAT32_TILED));
      }
    }
  }
}

}  // namespace

int time_kernels(int only) {
  std::printf("forward, fp16, TFLOP/s      hopper  ampere\n");
  for (const int dimension : {64, 128, 256}) {
    for (const int tokens : {512, 4096, 16384}) {
      for (const int variant : {0, 1, 2, 3}) {  // plain, causal, mask (S,S), mask (H,S,S)
        if (variant >= 2 && tokens != 4096) continue;
        const Shape shape{ORTFLASH_FLOAT16, 16384 / tokens, 2048 / dimension, 2048 / dimension, tokens, tokens, dimension,
                          variant == 1,     variant >= 2 ? variant - 1 : 0};
        const double work = 4.0 * shape.batch * shape.query_heads * tokens * double(tokens) * dimension *
                            (shape.causal ? 0.5 : 1.0);
        static const char *const names[] = {"", "causal", "mask 1,S,S", "mask H,S,S"};
        std::printf("%3d %6d %-11s", dimension, tokens, names[variant]);
        for (const int kernel : {ORTFLASH_HOPPER, ORTFLASH_AMPERE}) {
          if (only >= 0 && kernel != only) continue;
          const float ms = time_shape(shape, kernel);
          std::printf(" %8.1f", ms > 0 ? work / ms * 1e-9 : 0.0);
        }
        std::printf("\n");
      }
    }
  }
  std::printf("decode, 32 heads on 8, D 128, fp16: keys, microseconds, TB/s\n");
  for (const int keys : {1024, 4096, 8192, 16384, 65536}) {
    const float ms = time_shape({ORTFLASH_FLOAT16, 1, 32, 8, 1, keys, 128, false, 0, Clock::kGraph},
                                ORTFLASH_DECODE);
    std::printf("%6d %8.1f %6.2f\n", keys, ms * 1e3, 2.0 * 8 * keys * 128 * 2 / ms * 1e-9);
  }
  if (only < 0 || only == ORTFLASH_DECODE) time_decode_of_float32();
  std::printf("a kernel that does nothing, in the same graph: %.1f microseconds\n",
              1e3 * time_in_graph([](int, cudaStream_t stream) { do_nothing<<<132, 128, 0, stream>>>(); }));
  std::printf("host, microseconds a call: hopper causal %.1f, hopper %.1f, ampere %.1f, decode %.1f\n",
              1e3 * time_shape({ORTFLASH_FLOAT16, 1, 8, 8, 512, 512, 64, true, 0, Clock::kHost}, ORTFLASH_HOPPER),
              1e3 * time_shape({ORTFLASH_FLOAT16, 1, 8, 8, 512, 512, 64, false, 0, Clock::kHost}, ORTFLASH_HOPPER),
              1e3 * time_shape({ORTFLASH_FLOAT16, 1, 8, 8, 512, 512, 64, false, 0, Clock::kHost}, ORTFLASH_AMPERE),
              1e3 * time_shape({ORTFLASH_FLOAT16, 1, 32, 8, 1, 1024, 128, false, 0, Clock::kHost}, ORTFLASH_DECODE));
  return 0;
}
