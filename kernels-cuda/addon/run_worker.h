// One run of a session, off JavaScript's thread.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "failure.h"
#include "finished_runs.h"
#include "run_threads.h"
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

// Memory for an output that is likely to be as large as in the last runs, so that the run's own thread can fill it.
struct GuessedOutput {
  Napi::Reference<Napi::ArrayBuffer> buffer;
  void* data = nullptr;
  size_t bytes = 0;
  bool filled = false;
};

// Made, started and settled on JavaScript's thread.
class RunWorker : public RunTask {
 public:
  RunWorker(Napi::Env env, std::shared_ptr<SessionState> state, std::vector<Feed> feeds, std::vector<Fetch> fetches,
            Ort::RunOptions options);

  // Starts a run. Returns its results where it is over at once, having been brief; else a promise of them. Throws.
  static Napi::Value Start(std::unique_ptr<RunWorker> run);

  // Settles the promise.
  void Settle();

  bool Execute() noexcept override;
  const void* owner() const override { return &finished_; }

 private:
  // Who sees to the results of a run: the thread that started it, and waits, until it leaves; or FinishedRuns.
  enum class Phase { kAwaited, kLeft, kDone };

  void Work();
  void RunPlain();
  void RunBound();
  // Moves a large input from JavaScript's memory to page-locked memory.
  void Stage(Feed& feed);
  // Moves an input to the GPU.
  void Upload(Feed& feed);
  void CheckOutputs() const;
  void FillGuesses();
  void CheckLent() const;
  // The results, or a promise of them while they are copied. Throws what went wrong.
  Napi::Value Results();
  Napi::Value ResultData(size_t index);

  // First, so that it goes last: inputs may lie in the session's own memory.
  std::shared_ptr<SessionState> state_;
  Napi::Env env_;
  FinishedRuns& finished_;
  std::vector<Feed> feeds_;
  std::vector<Fetch> fetches_;
  Ort::RunOptions options_;
  std::vector<Ort::Value> outputs_;
  std::vector<PendingCopy> copies_;
  // One for each fetch.
  std::vector<GuessedOutput> guesses_;
  std::optional<Failure> failure_;
  bool brief_ = false;
  std::atomic<Phase> phase_{Phase::kLeft};
  std::optional<Napi::Promise::Deferred> deferred_;
};

}  // namespace ortflash
