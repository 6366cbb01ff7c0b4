// One run of a session, off JavaScript's thread.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "promise_worker.h"
#include "tensor.h"

namespace ortflash {

// An output that a run is asked for, and whether it stays on the GPU.
struct Fetch {
  std::string name;
  bool on_device = false;
};

// An output whose elements are still to be copied into its ArrayBuffer.
struct PendingCopy {
  Ort::Value value{nullptr};
  void* target;
  size_t bytes;

  void Do() const;
};

class RunWorker : public PromiseWorker {
 public:
  RunWorker(Napi::Env env, std::shared_ptr<SessionState> state, std::vector<Feed> feeds, std::vector<Fetch> fetches,
            Ort::RunOptions options)
      : PromiseWorker(env),
        state_(std::move(state)),
        feeds_(std::move(feeds)),
        fetches_(std::move(fetches)),
        options_(std::move(options)) {}

 protected:
  void Work() override;
  void OnOK() override;
  Napi::Value Result(Napi::Env env) override;

 private:
  void RunPlain();
  void RunBound();
  // Moves an input to the GPU.
  void Upload(Feed& feed);
  void CheckOutputs() const;

  // First, so that it goes last: inputs may lie in the session's own memory.
  std::shared_ptr<SessionState> state_;
  std::vector<Feed> feeds_;
  std::vector<Fetch> fetches_;
  Ort::RunOptions options_;
  std::vector<Ort::Value> outputs_;
  std::vector<PendingCopy> copies_;
};

}  // namespace ortflash
