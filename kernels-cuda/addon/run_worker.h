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

// Memory for an output that is likely to be as large as in the last run, so that the run's own thread can fill it.
struct GuessedOutput {
  Napi::Reference<Napi::ArrayBuffer> buffer;
  void* data = nullptr;
  size_t bytes = 0;
  bool filled = false;
};

class RunWorker : public PromiseWorker {
 public:
  RunWorker(Napi::Env env, std::shared_ptr<SessionState> state, std::vector<Feed> feeds, std::vector<Fetch> fetches,
            Ort::RunOptions options);

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
  void FillGuesses();
  void CheckLent() const;

  // First, so that it goes last: inputs may lie in the session's own memory.
  std::shared_ptr<SessionState> state_;
  std::vector<Feed> feeds_;
  std::vector<Fetch> fetches_;
  Ort::RunOptions options_;
  std::vector<Ort::Value> outputs_;
  std::vector<PendingCopy> copies_;
  // One for each fetch.
  std::vector<GuessedOutput> guesses_;
};

}  // namespace ortflash
