#include "graph_runner.h"

#include <future>
#include <utility>

#include "device_memory.h"
#include "failure.h"
#include "run_worker.h"
#include "session_state.h"
#include "tensor.h"

namespace ortflash {
namespace {

// ONNX Runtime's name for which graph a run captures or replays; -1 for none.
constexpr char kGraphId[] = "gpu_graph_id";
// Each keeps its inputs, outputs and working memory on the GPU.
constexpr size_t kMostGraphs = 16;

std::vector<int64_t> ShapeOf(const Ort::Value& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

Ort::Value Allocate(OrtAllocator* allocator, const Ort::Value& like) {
  const std::vector<int64_t> shape = ShapeOf(like);
  return Ort::Value::CreateTensor(allocator, shape.data(), shape.size(),
                                  like.GetTensorTypeAndShapeInfo().GetElementType());
}

void Copy(Ort::Value& target, const Ort::Value& source) {
  CopyDeviceMemory(target.GetTensorMutableRawData(), source.GetTensorRawData(), TensorByteLength(source));
}

}  // namespace

// Fixed tensors, and the binding that names them.
struct GraphRunner::Graph {
  std::vector<Ort::Value> inputs;
  std::vector<Ort::Value> outputs;
  Ort::IoBinding binding{nullptr};
  std::string id;
};

GraphRunner::GraphRunner(SessionState& state) : state_(state), thread_([this] { Loop(); }) {}

GraphRunner::~GraphRunner() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void GraphRunner::Loop() {
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return ends_ || !tasks_.empty(); });
      if (tasks_.empty()) break;
      task = std::move(tasks_.front());
      tasks_.erase(tasks_.begin());
    }
    task();
  }
  // What was allocated on this thread goes on it.
  graphs_.clear();
}

std::vector<Ort::Value> GraphRunner::Run(std::vector<Feed>& feeds, const std::vector<Fetch>& fetches,
                                         const Ort::RunOptions& options) {
  auto task = std::make_shared<std::packaged_task<std::vector<Ort::Value>()>>(
      [&] { return RunHere(feeds, fetches, options); });
  auto results = task->get_future();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.emplace_back([task] { (*task)(); });
  }
  changed_.notify_all();
  return results.get();
}

std::vector<Ort::Value> GraphRunner::RunHere(std::vector<Feed>& feeds, const std::vector<Fetch>& fetches,
                                             const Ort::RunOptions& options) {
  Graph& graph = GraphFor(feeds, fetches);
  for (size_t i = 0; i < feeds.size(); ++i) Copy(graph.inputs[i], feeds[i].value());
  // The caller's options are for runs in general; which graph this is is no business of theirs.
  Ort::RunOptions own;
  if (const char* tag = options.GetRunTag()) own.SetRunTag(tag);
  own.SetRunLogSeverityLevel(options.GetRunLogSeverityLevel());
  own.SetRunLogVerbosityLevel(options.GetRunLogVerbosityLevel());
  own.AddConfigEntry(kGraphId, graph.id.c_str());
  state_.session().Run(own, graph.binding);
  graph.binding.SynchronizeOutputs();
  std::vector<Ort::Value> results;
  for (size_t i = 0; i < fetches.size(); ++i) {
    OrtAllocator* const place = fetches[i].on_device ? state_.gpu_allocator() : state_.pinned_allocator();
    Ort::Value result = Allocate(place, graph.outputs[i]);
    Copy(result, graph.outputs[i]);
    results.push_back(std::move(result));
  }
  return results;
}

GraphRunner::Graph& GraphRunner::GraphFor(std::vector<Feed>& feeds, const std::vector<Fetch>& fetches) {
  std::string key;
  for (const Feed& feed : feeds) {
    if (!state_.IsOnGpu(feed.name))
      throw Failure("unsupported", "input " + feed.name + " is read by the CPU, where a captured graph does not see it: " +
                                       "leave out enableGraphCapture");
    key += feed.name;
    for (const int64_t size : ShapeOf(feed.value())) key += " " + std::to_string(size);
    key += ";";
  }
  for (const Fetch& fetch : fetches) key += fetch.name + ";";
  const auto found = graphs_.find(key);
  if (found != graphs_.end()) return *found->second;
  if (graphs_.size() == kMostGraphs)
    throw Failure("unsupported", "inputs of more than " + std::to_string(kMostGraphs) +
                                     " sets of shapes are captured already: leave out enableGraphCapture");
  auto graph = std::make_unique<Graph>();
  // 0 is ONNX Runtime's own.
  graph->id = std::to_string(graphs_.size() + 1);
  graph->binding = Ort::IoBinding(state_.session());
  for (Feed& feed : feeds) {
    graph->inputs.push_back(Allocate(state_.gpu_allocator(), feed.value()));
    Copy(graph->inputs.back(), feed.value());
    graph->binding.BindInput(feed.name.c_str(), graph->inputs.back());
  }
  Warm(*graph, fetches);
  return *graphs_.emplace(key, std::move(graph)).first->second;
}

// A run without capture, whose outputs are kept as those of the graph: their shapes are not known before.
void GraphRunner::Warm(Graph& graph, const std::vector<Fetch>& fetches) {
  const Ort::MemoryInfo gpu("Cuda", OrtDeviceAllocator, state_.cuda_device(), OrtMemTypeDefault);
  for (const Fetch& fetch : fetches) {
    const ValueDescription* output = FindDescription(state_.outputs(), fetch.name);
    if (output->kind != ONNX_TYPE_TENSOR || output->type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING)
      throw Failure("unsupported", "output " + fetch.name + " cannot lie on the GPU: leave out enableGraphCapture");
    graph.binding.BindOutput(fetch.name.c_str(), gpu);
  }
  Ort::RunOptions options;
  options.AddConfigEntry(kGraphId, "-1");
  state_.session().Run(options, graph.binding);
  graph.binding.SynchronizeOutputs();
  graph.outputs = graph.binding.GetOutputValues();
  graph.binding.ClearBoundOutputs();
  for (size_t i = 0; i < fetches.size(); ++i) graph.binding.BindOutput(fetches[i].name.c_str(), graph.outputs[i]);
}

}  // namespace ortflash
