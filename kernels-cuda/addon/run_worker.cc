#include "run_worker.h"

#include <cstring>

#include "addon_data.h"
#include "device_memory.h"
#include "promise_worker.h"

namespace ortflash {
namespace {

// Up to here outputs are copied on JavaScript's thread, which takes less than the way to another thread and back.
constexpr size_t kCopyAtOnceBytes = 1 << 20;
// From here on memory for an output is made before the run, where its size can be guessed.
constexpr size_t kGuessBytes = 1 << 16;

// Copies large outputs into their ArrayBuffers on another thread, so that the event loop does not wait for it. Nobody
// else knows these ArrayBuffers yet: they are handed out when all is copied.
class CopyWorker : public PromiseWorker {
 public:
  CopyWorker(Napi::Env env, const Napi::Object& results, std::vector<PendingCopy> copies)
      : PromiseWorker(env), results_(Napi::Persistent(results)), copies_(std::move(copies)) {}

 protected:
  void Work() override {
    for (const PendingCopy& copy : copies_) copy.Do();
  }

  Napi::Value Result(Napi::Env) override { return results_.Value(); }

 private:
  Napi::ObjectReference results_;
  std::vector<PendingCopy> copies_;
};

FinishedRuns& FinishedRunsOf(Napi::Env env) {
  std::unique_ptr<FinishedRuns>& runs = AddonData::Of(env).finished_runs;
  if (runs == nullptr) runs = std::make_unique<FinishedRuns>(env);
  return *runs;
}

}  // namespace

void PendingCopy::Do() const { std::memcpy(target, value.GetTensorRawData(), bytes); }

RunWorker::RunWorker(Napi::Env env, std::shared_ptr<SessionState> state, std::vector<Feed> feeds,
                     std::vector<Fetch> fetches, Ort::RunOptions options)
    : state_(std::move(state)),
      env_(env),
      finished_(FinishedRunsOf(env)),
      feeds_(std::move(feeds)),
      fetches_(std::move(fetches)),
      options_(std::move(options)),
      guesses_(fetches_.size()) {
  for (size_t i = 0; i < fetches_.size(); ++i) {
    const size_t bytes = fetches_[i].on_device ? 0 : state_->history().OutputBytes(fetches_[i].name);
    if (bytes < kGuessBytes) continue;
    Napi::ArrayBuffer buffer = OutputMemory(env, bytes);
    guesses_[i].data = buffer.Data();
    guesses_[i].bytes = bytes;
    guesses_[i].buffer = Napi::Persistent(buffer);
  }
}

Napi::Value RunWorker::Start(std::unique_ptr<RunWorker> run) {
  RunHistory& history = run->state_->history();
  const bool awaits = history.brief;
  if (awaits) run->phase_ = Phase::kAwaited;
  const bool is_awake = RunThreads::Get().Start(*run);
  RunWorker& worker = *run.release();
  if (awaits) {
    const auto is_done = [&worker] { return worker.phase_.load(std::memory_order_acquire) == Phase::kDone; };
    if (is_awake) history.patience.Await(is_done);
    Phase expected = Phase::kAwaited;
    if (!worker.phase_.compare_exchange_strong(expected, Phase::kLeft)) {
      const std::unique_ptr<RunWorker> done(&worker);
      return done->Results();
    }
  }
  worker.finished_.Expect();
  worker.deferred_ = Napi::Promise::Deferred::New(worker.env_);
  return worker.deferred_->Promise();
}

bool RunWorker::Execute() noexcept {
  const auto start = std::chrono::steady_clock::now();
  try {
    Work();
  } catch (const Failure& failure) {
    failure_ = failure;
  } catch (const std::exception& error) {
    failure_ = Failure("runtime", error.what());
  }
  const bool brief = std::chrono::steady_clock::now() - start <= kBriefRun;
  brief_ = brief;
  FinishedRuns& finished = finished_;
  // Whoever waits for kDone may delete this object as soon as it is so.
  if (phase_.exchange(Phase::kDone) == Phase::kLeft) finished.Add(*this);
  return brief;
}

void RunWorker::Settle() {
  if (!deferred_) return;
  const Napi::HandleScope scope(env_);
  try {
    try {
      deferred_->Resolve(Guarded(env_, [this] { return Results(); }));
    } catch (const Napi::Error& error) {
      deferred_->Reject(error.Value());
    }
  } catch (const Napi::Error&) {
    // The JavaScript thread is being ended, and takes no values any more.
  }
}

void RunWorker::Work() {
  for (Feed& feed : feeds_)
    if (feed.upload && !feed.lent.IsEmpty()) Stage(feed);
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

void RunWorker::Stage(Feed& feed) {
  const auto info = feed.owned.GetTensorTypeAndShapeInfo();
  const std::vector<int64_t> shape = info.GetShape();
  Ort::Value target =
      Ort::Value::CreateTensor(state_->pinned_allocator(), shape.data(), shape.size(), info.GetElementType());
  std::memcpy(target.GetTensorMutableRawData(), feed.owned.GetTensorRawData(), TensorByteLength(feed.owned));
  feed.owned = std::move(target);
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

Napi::Value RunWorker::Results() {
  state_->history().brief = brief_;
  if (failure_) throw *failure_;
  CheckLent();
  Napi::Array results = Napi::Array::New(env_, outputs_.size());
  for (size_t i = 0; i < outputs_.size(); ++i) {
    Napi::Array result = CreateResult(env_, outputs_[i]);
    if (result.Length() <= kResultData) result.Set(kResultData, ResultData(i));
    results.Set(static_cast<uint32_t>(i), result);
  }
  size_t bytes = 0;
  for (const PendingCopy& copy : copies_) bytes += copy.bytes;
  if (bytes > kCopyAtOnceBytes) return (new CopyWorker(env_, results, std::move(copies_)))->Start();
  for (const PendingCopy& copy : copies_) copy.Do();
  return results;
}

Napi::Value RunWorker::ResultData(size_t index) {
  Ort::Value& value = outputs_[index];
  const Fetch& fetch = fetches_[index];
  // Page-locked memory counts as the GPU's, too; its name tells it apart.
  if (fetch.on_device && value.GetTensorMemoryInfo().GetAllocatorName() == "Cuda")
    return DeviceTensorObject::Create(env_, state_, std::move(value));
  const size_t bytes = TensorByteLength(value);
  state_->history().AddOutput(fetch.name, bytes);
  if (guesses_[index].filled) return guesses_[index].buffer.Value();
  Napi::ArrayBuffer buffer = OutputMemory(env_, bytes);
  if (bytes > 0) copies_.push_back({std::move(value), buffer.Data(), bytes});
  return buffer;
}

}  // namespace ortflash
