#include "session.h"

#include <utility>
#include <variant>
#include <vector>

#include "addon_data.h"
#include "element_type.h"
#include "failure.h"
#include "promise_worker.h"
#include "run_worker.h"
#include "runtime.h"
#include "tensor.h"

namespace ortflash {
namespace {

using Model = std::variant<std::string, std::vector<char>>;

class OpenWorker : public PromiseWorker {
 public:
  OpenWorker(Napi::Env env, Model model, SessionSettings settings)
      : PromiseWorker(env), model_(std::move(model)), settings_(std::move(settings)) {}

 protected:
  void Work() override {
    state_ = std::visit([this](const auto& model) { return std::make_shared<SessionState>(model, settings_); }, model_);
    model_ = std::string();
  }

  Napi::Value Result(Napi::Env env) override {
    return SessionObject::Create(env, std::move(state_));
  }

 private:
  Model model_;
  SessionSettings settings_;
  std::shared_ptr<SessionState> state_;
};

// Closes a session off JavaScript's thread: freeing gigabytes takes its time.
class ReleaseWorker : public PromiseWorker {
 public:
  ReleaseWorker(Napi::Env env, std::shared_ptr<SessionState> state) : PromiseWorker(env), state_(std::move(state)) {}

 protected:
  void Work() override { state_.reset(); }
  Napi::Value Result(Napi::Env env) override { return env.Undefined(); }

 private:
  std::shared_ptr<SessionState> state_;
};

Model ReadModel(const Napi::Value& value) {
  if (value.IsString()) return value.As<Napi::String>().Utf8Value();
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    throw Failure("invalid-argument", "the model must be a path or a Uint8Array");
  const auto bytes = value.As<Napi::Uint8Array>();
  if (bytes.ByteLength() == 0) throw Failure("malformed-model", "the model is empty");
  const char* begin = reinterpret_cast<const char*>(bytes.Data());
  return std::vector<char>(begin, begin + bytes.ByteLength());
}

Napi::Array DescribeToJavaScript(Napi::Env env, const std::vector<ValueDescription>& values) {
  Napi::Array result = Napi::Array::New(env, values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const ValueDescription& value = values[i];
    Napi::Object item = Napi::Object::New(env);
    item.Set("name", value.name);
    item.Set("isTensor", Napi::Boolean::New(env, value.kind == ONNX_TYPE_TENSOR));
    if (value.kind == ONNX_TYPE_TENSOR) {
      Napi::Array shape = Napi::Array::New(env, value.dimensions.size());
      for (size_t d = 0; d < value.dimensions.size(); ++d) {
        const int64_t size = value.dimensions[d];
        if (size >= 0) {
          shape.Set(static_cast<uint32_t>(d), Napi::Number::New(env, static_cast<double>(size)));
        } else {
          shape.Set(static_cast<uint32_t>(d), Napi::String::New(env, value.dimension_names[d]));
        }
      }
      item.Set("type", Napi::String::New(env, std::string(ElementTypeName(value.type))));
      item.Set("shape", shape);
    }
    result.Set(static_cast<uint32_t>(i), item);
  }
  return result;
}

Napi::Array ArrayArgument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (!info[index].IsArray()) throw Failure("invalid-argument", std::string(name) + " must be an array");
  return info[index].As<Napi::Array>();
}

std::vector<Feed> ReadFeeds(SessionState& state, const Napi::Array& records) {
  std::vector<Feed> feeds;
  for (uint32_t i = 0; i < records.Length(); ++i) {
    const Napi::Value record = records.Get(i);
    if (!record.IsArray()) throw Failure("invalid-argument", "feeds must be arrays");
    Feed feed = ReadFeed(state, record.As<Napi::Array>());
    for (const Feed& other : feeds)
      if (other.name == feed.name) throw Failure("invalid-argument", "input " + feed.name + " is given twice");
    feeds.push_back(std::move(feed));
  }
  return feeds;
}

// The outputs' names, and those among them that stay on the GPU.
std::vector<Fetch> ReadFetches(const SessionState& state, const Napi::Array& names, const Napi::Array& on_device) {
  std::vector<Fetch> fetches;
  for (uint32_t i = 0; i < names.Length(); ++i) {
    Fetch fetch;
    fetch.name = names.Get(i).ToString().Utf8Value();
    if (FindDescription(state.outputs(), fetch.name) == nullptr)
      throw Failure("invalid-argument", fetch.name + " is none of the model's outputs");
    for (const Fetch& other : fetches)
      if (other.name == fetch.name) throw Failure("invalid-argument", "output " + fetch.name + " is asked for twice");
    fetches.push_back(std::move(fetch));
  }
  for (uint32_t i = 0; i < on_device.Length() && state.cuda_device() >= 0; ++i) {
    const std::string name = on_device.Get(i).ToString().Utf8Value();
    for (Fetch& fetch : fetches) fetch.on_device = fetch.on_device || fetch.name == name;
  }
  if (fetches.empty()) throw Failure("invalid-argument", "a run must ask for at least one output");
  return fetches;
}

Ort::RunOptions ReadRunOptions(const Napi::Value& value) {
  Ort::RunOptions options;
  if (!value.IsObject()) return options;
  const Napi::Object object = value.As<Napi::Object>();
  const Napi::Value severity = object.Get("logSeverityLevel");
  if (severity.IsNumber()) options.SetRunLogSeverityLevel(severity.As<Napi::Number>().Int32Value());
  const Napi::Value verbosity = object.Get("logVerbosityLevel");
  if (verbosity.IsNumber()) options.SetRunLogVerbosityLevel(verbosity.As<Napi::Number>().Int32Value());
  const Napi::Value tag = object.Get("tag");
  if (tag.IsString()) options.SetRunTag(tag.As<Napi::String>().Utf8Value().c_str());
  const Napi::Value entries = object.Get("configEntries");
  if (entries.IsObject()) {
    const Napi::Object pairs = entries.As<Napi::Object>();
    const Napi::Array keys = pairs.GetPropertyNames();
    for (uint32_t i = 0; i < keys.Length(); ++i) {
      const std::string key = keys.Get(i).ToString().Utf8Value();
      options.AddConfigEntry(key.c_str(), pairs.Get(key).ToString().Utf8Value().c_str());
    }
  }
  return options;
}

}  // namespace

Napi::Function SessionObject::Define(Napi::Env env) {
  return DefineClass(env, "NativeSession",
                     {InstanceAccessor<&SessionObject::Inputs>("inputs"),
                      InstanceAccessor<&SessionObject::Outputs>("outputs"), InstanceMethod("run", &SessionObject::Run),
                      InstanceMethod("endProfiling", &SessionObject::EndProfiling),
                      InstanceMethod("release", &SessionObject::Release)});
}

Napi::Value SessionObject::Open(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    RuntimeEnvironment();  // Throws before initialize: nothing below may use ONNX Runtime then.
    Model model = ReadModel(info[0]);
    if (!info[1].IsObject()) throw Failure("invalid-argument", "session options must be an object");
    SessionSettings settings = ReadSessionSettings(info[1].As<Napi::Object>());
    return (new OpenWorker(info.Env(), std::move(model), std::move(settings)))->Start();
  });
}

Napi::Object SessionObject::Create(Napi::Env env, std::shared_ptr<SessionState> state) {
  const Napi::Object object = AddonData::Of(env).session.New({});
  Unwrap(object)->state_ = std::move(state);
  return object;
}

std::shared_ptr<SessionState> SessionObject::State() const {
  if (!state_) throw Failure("invalid-argument", "the session was released");
  return state_;
}

Napi::Value SessionObject::Inputs(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return DescribeToJavaScript(info.Env(), State()->inputs()); });
}

Napi::Value SessionObject::Outputs(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return DescribeToJavaScript(info.Env(), State()->outputs()); });
}

Napi::Value SessionObject::Run(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    std::shared_ptr<SessionState> state = State();
    std::vector<Feed> feeds = ReadFeeds(*state, ArrayArgument(info, 0, "feeds"));
    std::vector<Fetch> fetches =
        ReadFetches(*state, ArrayArgument(info, 1, "fetches"), ArrayArgument(info, 2, "onDevice"));
    Ort::RunOptions options = ReadRunOptions(info[3]);
    return RunWorker::Start(std::make_unique<RunWorker>(info.Env(), std::move(state), std::move(feeds),
                                                        std::move(fetches), std::move(options)));
  });
}

Napi::Value SessionObject::EndProfiling(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    const Ort::AllocatorWithDefaultOptions allocator;
    const auto path = State()->session().EndProfilingAllocated(allocator);
    return Napi::String::New(info.Env(), path.get());
  });
}

Napi::Value SessionObject::Release(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return (new ReleaseWorker(info.Env(), std::move(state_)))->Start(); });
}

}  // namespace ortflash
