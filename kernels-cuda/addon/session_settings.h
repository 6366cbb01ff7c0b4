// Session options as JavaScript gives them, copied so that the session can be opened on another thread.
#pragma once

#include <napi.h>
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ortflash {

struct ExternalData {
  std::string path;
  std::vector<char> bytes;
};

// Field by field the NativeSessionOptions of node-addon.ts, which says what each means.
struct SessionSettings {
  std::optional<int> graph_optimization_level;
  std::optional<int> intra_op_threads;
  std::optional<int> inter_op_threads;
  std::optional<bool> parallel_execution;
  std::optional<bool> cpu_memory_arena;
  std::optional<bool> memory_pattern;
  std::optional<int> log_severity_level;
  std::string log_id;
  std::string optimized_model_path;
  std::string profile_prefix;
  std::vector<std::pair<std::string, int64_t>> free_dimensions;
  std::vector<std::pair<std::string, std::string>> config_entries;
  std::vector<std::string> custom_op_libraries;
  std::vector<ExternalData> external_data;
  // Options of the CUDA provider by their ONNX Runtime names; no value: no CUDA provider.
  std::optional<std::unordered_map<std::string, std::string>> cuda;

  // The CUDA device that the session runs on, or -1.
  int CudaDevice() const;
  // Whether runs are to be captured as CUDA graphs: the provider's own option `enable_cuda_graph`.
  bool CapturesGraphs() const;
  // The settings must outlive the session's creation: external data is read from them.
  Ort::SessionOptions ToOptions();
};

// Throws Failure `invalid-argument` where a field has another type than expected.
SessionSettings ReadSessionSettings(const Napi::Object& options);

}  // namespace ortflash
