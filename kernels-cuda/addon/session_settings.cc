#include "session_settings.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "failure.h"

namespace ortflash {
namespace {

[[noreturn]] void Refuse(const std::string& name, const char* expected) {
  throw Failure("invalid-argument", "session option " + name + " must be " + expected);
}

std::string ToText(const Napi::Value& value, const std::string& name) {
  if (!value.IsString()) Refuse(name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

int64_t ToInteger(const Napi::Value& value, const std::string& name) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  if (!(std::abs(number) <= 9007199254740991.0) || std::floor(number) != number) Refuse(name, "an integer");
  return static_cast<int64_t>(number);
}

void Read(const Napi::Object& options, const char* name, std::optional<int>& field) {
  const Napi::Value value = options.Get(name);
  if (value.IsUndefined()) return;
  const int64_t number = ToInteger(value, name);
  if (number < 0 || number > std::numeric_limits<int>::max()) Refuse(name, "a number that is not negative");
  field = static_cast<int>(number);
}

void Read(const Napi::Object& options, const char* name, std::optional<bool>& field) {
  const Napi::Value value = options.Get(name);
  if (value.IsUndefined()) return;
  if (!value.IsBoolean()) Refuse(name, "true or false");
  field = value.As<Napi::Boolean>().Value();
}

void Read(const Napi::Object& options, const char* name, std::string& field) {
  const Napi::Value value = options.Get(name);
  if (!value.IsUndefined()) field = ToText(value, name);
}

template <typename Each>
void ForEachEntry(const Napi::Object& options, const std::string& name, Each&& each) {
  const Napi::Value value = options.Get(name);
  if (value.IsUndefined()) return;
  if (!value.IsObject()) Refuse(name, "an object");
  const Napi::Object entries = value.As<Napi::Object>();
  const Napi::Array keys = entries.GetPropertyNames();
  for (uint32_t i = 0; i < keys.Length(); ++i) {
    const std::string key = keys.Get(i).ToString().Utf8Value();
    each(key, entries.Get(key));
  }
}

template <typename Each>
void ForEachItem(const Napi::Object& options, const std::string& name, Each&& each) {
  const Napi::Value value = options.Get(name);
  if (value.IsUndefined()) return;
  if (!value.IsArray()) Refuse(name, "an array");
  const Napi::Array items = value.As<Napi::Array>();
  for (uint32_t i = 0; i < items.Length(); ++i) each(items.Get(i));
}

ExternalData ReadExternalData(const Napi::Value& item) {
  if (!item.IsObject()) Refuse("externalData", "an array of {path, data}");
  const Napi::Object object = item.As<Napi::Object>();
  ExternalData file;
  file.path = ToText(object.Get("path"), "externalData path");
  const Napi::Value data = object.Get("data");
  if (!data.IsTypedArray() || data.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    Refuse("externalData data", "a Uint8Array");
  const auto bytes = data.As<Napi::Uint8Array>();
  const char* begin = reinterpret_cast<const char*>(bytes.Data());
  if (bytes.ByteLength() > 0) file.bytes.assign(begin, begin + bytes.ByteLength());
  return file;
}

void AppendCuda(Ort::SessionOptions& options, const std::unordered_map<std::string, std::string>& settings) {
  Ort::CUDAProviderOptions cuda;
  cuda.Update(settings);
  options.AppendExecutionProvider_CUDA_V2(*cuda);
}

}  // namespace

SessionSettings ReadSessionSettings(const Napi::Object& options) {
  SessionSettings settings;
  Read(options, "graphOptimizationLevel", settings.graph_optimization_level);
  Read(options, "intraOpNumThreads", settings.intra_op_threads);
  Read(options, "interOpNumThreads", settings.inter_op_threads);
  Read(options, "parallelExecution", settings.parallel_execution);
  Read(options, "enableCpuMemArena", settings.cpu_memory_arena);
  Read(options, "enableMemPattern", settings.memory_pattern);
  Read(options, "logSeverityLevel", settings.log_severity_level);
  Read(options, "logId", settings.log_id);
  Read(options, "optimizedModelFilePath", settings.optimized_model_path);
  Read(options, "profileFilePrefix", settings.profile_prefix);
  ForEachEntry(options, "freeDimensionOverrides", [&](const std::string& key, const Napi::Value& value) {
    settings.free_dimensions.emplace_back(key, ToInteger(value, "freeDimensionOverrides." + key));
  });
  ForEachEntry(options, "configEntries", [&](const std::string& key, const Napi::Value& value) {
    settings.config_entries.emplace_back(key, ToText(value, "configEntries." + key));
  });
  ForEachItem(options, "customOpLibraries", [&](const Napi::Value& item) {
    settings.custom_op_libraries.push_back(ToText(item, "customOpLibraries"));
  });
  ForEachItem(options, "externalData",
              [&](const Napi::Value& item) { settings.external_data.push_back(ReadExternalData(item)); });
  if (!options.Get("cuda").IsUndefined()) {
    settings.cuda.emplace();
    ForEachEntry(options, "cuda", [&](const std::string& key, const Napi::Value& value) {
      settings.cuda->insert_or_assign(key, ToText(value, "cuda." + key));
    });
  }
  return settings;
}

int SessionSettings::CudaDevice() const {
  if (!cuda) return -1;
  const auto device = cuda->find("device_id");
  return device == cuda->end() ? 0 : std::atoi(device->second.c_str());
}

bool SessionSettings::CapturesGraphs() const {
  if (!cuda) return false;
  const auto option = cuda->find("enable_cuda_graph");
  return option != cuda->end() && option->second == "1";
}

Ort::SessionOptions SessionSettings::ToOptions() {
  Ort::SessionOptions options;
  if (graph_optimization_level)
    options.SetGraphOptimizationLevel(static_cast<GraphOptimizationLevel>(*graph_optimization_level));
  if (intra_op_threads) options.SetIntraOpNumThreads(*intra_op_threads);
  if (inter_op_threads) options.SetInterOpNumThreads(*inter_op_threads);
  if (parallel_execution) options.SetExecutionMode(*parallel_execution ? ORT_PARALLEL : ORT_SEQUENTIAL);
  if (cpu_memory_arena) *cpu_memory_arena ? options.EnableCpuMemArena() : options.DisableCpuMemArena();
  if (memory_pattern) *memory_pattern ? options.EnableMemPattern() : options.DisableMemPattern();
  if (log_severity_level) options.SetLogSeverityLevel(*log_severity_level);
  if (!log_id.empty()) options.SetLogId(log_id.c_str());
  if (!optimized_model_path.empty()) options.SetOptimizedModelFilePath(optimized_model_path.c_str());
  if (!profile_prefix.empty()) options.EnableProfiling(profile_prefix.c_str());
  for (const auto& [name, size] : free_dimensions) options.AddFreeDimensionOverrideByName(name.c_str(), size);
  for (const auto& [key, value] : config_entries) options.AddConfigEntry(key.c_str(), value.c_str());
  for (const std::string& library : custom_op_libraries) options.RegisterCustomOpsLibrary(library.c_str());
  if (!external_data.empty()) {
    std::vector<std::string> paths;
    std::vector<char*> data;
    std::vector<size_t> lengths;
    for (ExternalData& file : external_data) {
      paths.push_back(file.path);
      data.push_back(file.bytes.data());
      lengths.push_back(file.bytes.size());
    }
    options.AddExternalInitializersFromFilesInMemory(paths, data, lengths);
  }
  if (cuda) AppendCuda(options, *cuda);
  return options;
}

}  // namespace ortflash
