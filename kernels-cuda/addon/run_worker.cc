#include "run_worker.h"

#include <cstring>

#include "device_memory.h"

namespace ortflash {
namespace {

// Up to here outputs are copied on JavaScript's thread, which takes less than the way to another thread and back.
constexpr size_t kCopyAtOnceBytes = 1 << 20;

// Copies large outputs into their ArrayBuffers on another thread, so that the event loop does not wait for it. Nobody
// else knows these ArrayBuffers yet: they are handed out when all is copied.
class CopyWorker : public Napi::AsyncWorker {
 public:
  CopyWorker(Napi::Env env, Napi::Promise::Deferred deferred, const Napi::Object& results,
             std::vector<PendingCopy> copies)
      : Napi::AsyncWorker(env),
        deferred_(deferred),
        results_(Napi::Persistent(results)),
        copies_(std::move(copies)) {}

 private:
  void Execute() override {
    for (const PendingCopy& copy : copies_) copy.Do();
  }

  void OnOK() override {
    const Napi::HandleScope scope(Env());
    deferred_.Resolve(results_.Value());
  }

  Napi::Promise::Deferred deferred_;
  Napi::ObjectReference results_;
  std::vector<PendingCopy> copies_;
};

}  // namespace

void PendingCopy::Do() const { std::memcpy(target, value.GetTensorRawData(), bytes); }

RunWorker::RunWorker(Napi::Env env, std::shared_ptr<SessionState> state, std::vector<Feed> feeds,
                     std::vector<Fetch> fetches, Ort::RunOptions options)
    : PromiseWorker(env),
      state_(std::move(state)),
      feeds_(std::move(feeds)),
      fetches_(std::move(fetches)),
      options_(std::move(options)),
      guesses_(fetches_.size()) {
  for (size_t i = 0; i < fetches_.size(); ++i) {
    const auto last = state_->last_output_bytes().find(fetches_[i].name);
    if (fetches_[i].on_device || last == state_->last_output_bytes().end() || last->second <= kCopyAtOnceBytes) continue;
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, last->second);
    guesses_[i].data = buffer.Data();
    guesses_[i].bytes = last->second;
    guesses_[i].buffer = Napi::Persistent(buffer);
  }
}

void RunWorker::Work() {
  if (state_->graphs() != nullptr) {
    outputs_ = state_->graphs()->Run(feeds_, fetches_, options_);
  } else if (state_->cuda_device() >= 0) {
    RunBound();
  } else {
    RunPlain();
  }
  CheckOutputs();
  FillGuesses();
  // The inputs are not needed any more, and may be large; what is JavaScript's goes on JavaScript's thread.
  for (Feed& feed : feeds_) {
    feed.owned = Ort::Value(nullptr);
    feed.resident.reset();
  }
}

void RunWorker::RunPlain() {
  std::vector<const char*> input_names;
  std::vector<const OrtValue*> inputs;
  for (const Feed& feed : feeds_) {
    input_names.push_back(feed.name.c_str());
    inputs.push_back(feed.value());
  }
  std::vector<const char*> output_names;
  for (const Fetch& fetch : fetches_) output_names.push_back(fetch.name.c_str());
  std::vector<OrtValue*> outputs(fetches_.size(), nullptr);
  Ort::ThrowOnError(Ort::GetApi().Run(state_->session(), options_, input_names.data(), inputs.data(), inputs.size(),
                                      output_names.data(), output_names.size(), outputs.data()));
  for (OrtValue* output : outputs) outputs_.emplace_back(output);
}

void RunWorker::RunBound() {
  const int device = state_->cuda_device();
  const Ort::MemoryInfo gpu("Cuda", OrtDeviceAllocator, device, OrtMemTypeDefault);
  const Ort::MemoryInfo pinned("CudaPinned", OrtDeviceAllocator, device, OrtMemTypeCPUOutput);
  const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  Ort::IoBinding binding(state_->session());
  for (Feed& feed : feeds_) {
    if (feed.upload) Upload(feed);
    binding.BindInput(feed.name.c_str(), feed.value());
  }
  for (const Fetch& fetch : fetches_) {
    const ValueDescription* output = FindDescription(state_->outputs(), fetch.name);
    const bool numeric = output->kind == ONNX_TYPE_TENSOR && output->type != ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING;
    const Ort::MemoryInfo& place = !numeric ? cpu : fetch.on_device ? gpu : pinned;
    binding.BindOutput(fetch.name.c_str(), place);
  }
  state_->session().Run(options_, binding);
  binding.SynchronizeOutputs();
  outputs_ = binding.GetOutputValues();
}

void RunWorker::Upload(Feed& feed) {
  const auto info = feed.owned.GetTensorTypeAndShapeInfo();
  const std::vector<int64_t> shape = info.GetShape();
  Ort::Value target =
      Ort::Value::CreateTensor(state_->gpu_allocator(), shape.data(), shape.size(), info.GetElementType());
  CopyDeviceMemory(target.GetTensorMutableRawData(), feed.owned.GetTensorRawData(), TensorByteLength(feed.owned));
  feed.owned = std::move(target);
}

void RunWorker::CheckOutputs() const {
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (!outputs_[i].HasValue() || !outputs_[i].IsTensor())
      throw Failure("unsupported", "output " + fetches_[i].name + " is no tensor; leave it out of the fetches");
  }
}

void RunWorker::FillGuesses() {
  for (size_t i = 0; i < guesses_.size(); ++i) {
    GuessedOutput& guess = guesses_[i];
    if (guess.data == nullptr || TensorByteLength(outputs_[i]) != guess.bytes) continue;
    std::memcpy(guess.data, outputs_[i].GetTensorRawData(), guess.bytes);
    guess.filled = true;
  }
}

// An input that was transferred while the run read it may have been freed or changed: the results mean nothing then.
void RunWorker::CheckLent() const {
  for (const Feed& feed : feeds_) {
    if (!feed.lent.IsEmpty() && feed.lent.Value().ByteLength() == 0)
      throw Failure("invalid-tensor", "input " + feed.name + " was given to another thread while the run used it");
  }
}

Napi::Value RunWorker::Result(Napi::Env env) {
  CheckLent();
  Napi::Object results = Napi::Object::New(env);
  for (size_t i = 0; i < outputs_.size(); ++i) {
    Ort::Value& value = outputs_[i];
    Napi::Object result = CreateResult(env, value);
    results.Set(fetches_[i].name, result);
    // Page-locked memory counts as the GPU's, too; its name tells it apart.
    if (fetches_[i].on_device && value.GetTensorMemoryInfo().GetAllocatorName() == "Cuda") {
      result.Set("device", DeviceTensorObject::Create(env, state_, std::move(value)));
    } else if (!result.Has("data")) {
      const size_t bytes = TensorByteLength(value);
      state_->last_output_bytes()[fetches_[i].name] = bytes;
      if (guesses_[i].filled) {
        result.Set("data", guesses_[i].buffer.Value());
        continue;
      }
      Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, bytes);
      result.Set("data", buffer);
      if (bytes > 0) copies_.push_back({std::move(value), buffer.Data(), bytes});
    }
  }
  return results;
}

void RunWorker::OnOK() {
  const Napi::HandleScope scope(Env());
  Napi::Value results;
  try {
    results = Guarded(Env(), [this] { return Result(Env()); });
  } catch (const Napi::Error& error) {
    deferred().Reject(error.Value());
    return;
  }
  size_t bytes = 0;
  for (const PendingCopy& copy : copies_) bytes += copy.bytes;
  if (bytes > kCopyAtOnceBytes) {
    (new CopyWorker(Env(), deferred(), results.As<Napi::Object>(), std::move(copies_)))->Queue();
    return;
  }
  for (const PendingCopy& copy : copies_) copy.Do();
  deferred().Resolve(results);
}

}  // namespace ortflash
