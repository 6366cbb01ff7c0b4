// Runs of a CUDA session that are captured once for each set of input shapes and then replayed (CUDA graphs).
#pragma once

#include <onnxruntime_cxx_api.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace ortflash {

class SessionState;
struct Feed;
struct Fetch;

// ONNX Runtime keeps a captured graph with the thread that captured it, and a graph reads and writes fixed addresses.
// So all runs take place on one thread of this object's, one after the other, on tensors that it keeps on the GPU.
class GraphRunner {
 public:
  explicit GraphRunner(SessionState& state);
  ~GraphRunner();
  GraphRunner(const GraphRunner&) = delete;
  GraphRunner& operator=(const GraphRunner&) = delete;

  // Runs the model, on any thread, and waits for the end. Results are in the order of the fetches: on the GPU where a
  // fetch wants that, else in page-locked memory. Throws Failure `unsupported` for what cannot be captured.
  std::vector<Ort::Value> Run(std::vector<Feed>& feeds, const std::vector<Fetch>& fetches,
                              const Ort::RunOptions& options);

 private:
  struct Graph;

  std::vector<Ort::Value> RunHere(std::vector<Feed>& feeds, const std::vector<Fetch>& fetches,
                                  const Ort::RunOptions& options);
  Graph& GraphFor(std::vector<Feed>& feeds, const std::vector<Fetch>& fetches);
  void Warm(Graph& graph, const std::vector<Fetch>& fetches);
  void Loop();

  SessionState& state_;
  std::map<std::string, std::unique_ptr<Graph>> graphs_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::function<void()>> tasks_;
  bool ends_ = false;
  // Last, so that it starts when all else is there.
  std::thread thread_;
};

}  // namespace ortflash
