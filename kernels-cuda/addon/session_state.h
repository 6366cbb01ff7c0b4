// An open ONNX Runtime session and what is known of its inputs and outputs.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graph_runner.h"
#include "run_threads.h"
#include "session_settings.h"

namespace ortflash {

// A model's input or output. Dimensions that are not fixed are -1, with a name where the model gives one.
struct ValueDescription {
  std::string name;
  ONNXType kind = ONNX_TYPE_UNKNOWN;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dimensions;
  std::vector<std::string> dimension_names;
  // Where a run wants it, for inputs.
  bool on_gpu = false;
};

// What a session's last runs were like, from which the next may be guessed.
struct RunHistory {
  // Whether the last run was over in no time.
  bool brief = false;
  // With runs that are likely to be brief.
  Patience patience;

  // How many bytes an output had in the last two runs, 0 where they differ.
  size_t OutputBytes(const std::string& name) const;
  void AddOutput(const std::string& name, size_t bytes);

 private:
  struct Output {
    size_t bytes = 0;
    bool steady = false;
  };
  std::map<std::string, Output> outputs_;
};

// Shared between the JavaScript object and the runs under way: the session closes when the last of them lets go.
class SessionState {
 public:
  // Opens the model, on any thread. Throws Ort::Exception with ONNX Runtime's message.
  SessionState(const std::string& model_path, SessionSettings& settings);
  SessionState(const std::vector<char>& model, SessionSettings& settings);

  Ort::Session& session() { return session_; }
  const std::vector<ValueDescription>& inputs() const { return inputs_; }
  const std::vector<ValueDescription>& outputs() const { return outputs_; }
  // Whether a feed may name it though it is no input: an initializer that can be overridden.
  bool IsOverridable(const std::string& name) const;
  // The CUDA device, or -1.
  int cuda_device() const { return cuda_device_; }
  // Whether a run wants this input on the GPU.
  bool IsOnGpu(const std::string& input) const;
  // The session's pools: of the CPU's memory, whose pages are in place after the first runs; and in a CUDA session of
  // page-locked memory, from where copies to the GPU are fastest, and of the GPU's own.
  OrtAllocator* cpu_allocator() { return *cpu_allocator_; }
  OrtAllocator* pinned_allocator() { return *pinned_allocator_; }
  OrtAllocator* gpu_allocator() { return *gpu_allocator_; }
  // Touched on JavaScript's thread alone.
  RunHistory& history() { return history_; }
  // Where the session captures its runs as CUDA graphs; else null.
  GraphRunner* graphs() { return graphs_.get(); }

 private:
  void Describe();

  int cuda_device_;
  Ort::Session session_{nullptr};
  std::optional<Ort::Allocator> cpu_allocator_;
  std::optional<Ort::Allocator> pinned_allocator_;
  std::optional<Ort::Allocator> gpu_allocator_;
  std::vector<ValueDescription> inputs_;
  std::vector<ValueDescription> outputs_;
  std::vector<std::string> overridable_;
  RunHistory history_;
  // Last, so that it goes first: its tensors lie in the session's memory.
  std::unique_ptr<GraphRunner> graphs_;
};

const ValueDescription* FindDescription(const std::vector<ValueDescription>& values, const std::string& name);

}  // namespace ortflash
