#include "session_state.h"

#include <algorithm>

#include "runtime.h"

namespace ortflash {
namespace {

ValueDescription DescribeValue(std::string name, const Ort::TypeInfo& info) {
  ValueDescription value;
  value.name = std::move(name);
  value.kind = info.GetONNXType();
  if (value.kind != ONNX_TYPE_TENSOR) return value;
  const auto tensor = info.GetTensorTypeAndShapeInfo();
  value.type = tensor.GetElementType();
  value.dimensions = tensor.GetShape();
  for (const char* symbol : tensor.GetSymbolicDimensions())
    value.dimension_names.emplace_back(symbol == nullptr ? "" : symbol);
  return value;
}

}  // namespace

size_t RunHistory::OutputBytes(const std::string& name) const {
  const auto output = outputs_.find(name);
  return output != outputs_.end() && output->second.steady ? output->second.bytes : 0;
}

void RunHistory::AddOutput(const std::string& name, size_t bytes) {
  const auto [output, is_new] = outputs_.try_emplace(name);
  output->second = {bytes, !is_new && output->second.bytes == bytes};
}

SessionState::SessionState(const std::string& model_path, SessionSettings& settings)
    : cuda_device_(settings.CudaDevice()),
      session_(RuntimeEnvironment(), model_path.c_str(), settings.ToOptions()) {
  Describe();
  if (settings.CapturesGraphs()) graphs_ = std::make_unique<GraphRunner>(*this);
}

SessionState::SessionState(const std::vector<char>& model, SessionSettings& settings)
    : cuda_device_(settings.CudaDevice()),
      session_(RuntimeEnvironment(), model.data(), model.size(), settings.ToOptions()) {
  Describe();
  if (settings.CapturesGraphs()) graphs_ = std::make_unique<GraphRunner>(*this);
}

void SessionState::Describe() {
  const std::vector<std::string> input_names = session_.GetInputNames();
  for (size_t i = 0; i < input_names.size(); ++i)
    inputs_.push_back(DescribeValue(input_names[i], session_.GetInputTypeInfo(i)));
  const std::vector<std::string> output_names = session_.GetOutputNames();
  for (size_t i = 0; i < output_names.size(); ++i)
    outputs_.push_back(DescribeValue(output_names[i], session_.GetOutputTypeInfo(i)));
  overridable_ = session_.GetOverridableInitializerNames();
  cpu_allocator_.emplace(session_, Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault));
  if (cuda_device_ < 0) return;
  pinned_allocator_.emplace(session_,
                            Ort::MemoryInfo("CudaPinned", OrtDeviceAllocator, cuda_device_, OrtMemTypeCPUOutput));
  gpu_allocator_.emplace(session_, Ort::MemoryInfo("Cuda", OrtDeviceAllocator, cuda_device_, OrtMemTypeDefault));
  const auto places = session_.GetMemoryInfoForInputs();
  for (size_t i = 0; i < inputs_.size(); ++i) inputs_[i].on_gpu = places[i].GetAllocatorName() == "Cuda";
}

bool SessionState::IsOnGpu(const std::string& input) const {
  const ValueDescription* description = FindDescription(inputs_, input);
  return description != nullptr && description->on_gpu;
}

bool SessionState::IsOverridable(const std::string& name) const {
  return std::find(overridable_.begin(), overridable_.end(), name) != overridable_.end();
}

const ValueDescription* FindDescription(const std::vector<ValueDescription>& values, const std::string& name) {
  for (const ValueDescription& value : values)
    if (value.name == name) return &value;
  return nullptr;
}

}  // namespace ortflash
