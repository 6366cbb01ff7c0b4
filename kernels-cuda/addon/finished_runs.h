// Brings finished runs back to the JavaScript thread that started them. Each has one of these.
#pragma once

#include <napi.h>

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace ortflash {

class RunWorker;

class FinishedRuns {
 public:
  explicit FinishedRuns(Napi::Env env);
  ~FinishedRuns();
  FinishedRuns(const FinishedRuns&) = delete;
  FinishedRuns& operator=(const FinishedRuns&) = delete;

  // On JavaScript's thread: a run was started that will be added. The event loop goes on until it is settled.
  void Expect();
  // On any thread, as the last that it does with the run.
  void Add(RunWorker& run);

 private:
  static void Deliver(napi_env env, napi_value function, void* self, void* data);
  static void EndEnvironment(void* self);

  std::vector<std::unique_ptr<RunWorker>> Take();

  napi_env env_;
  napi_threadsafe_function deliver_ = nullptr;
  // Runs that were started and are not settled; touched on JavaScript's thread alone.
  size_t expected_ = 0;
  std::mutex mutex_;
  std::condition_variable added_;
  std::vector<std::unique_ptr<RunWorker>> finished_;
};

}  // namespace ortflash
