#include "finished_runs.h"

#include "run_threads.h"
#include "run_worker.h"

namespace ortflash {
namespace {

void Check(napi_env env, napi_status status) {
  if (status != napi_ok) throw Napi::Error::New(env);
}

}  // namespace

FinishedRuns::FinishedRuns(Napi::Env env) : env_(env) {
  const Napi::String name = Napi::String::New(env, "ort-flash run");
  Check(env, napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, Deliver,
                                             &deliver_));
  Check(env, napi_unref_threadsafe_function(env, deliver_));
  // Hooks run last first, so this one before that which closes the function.
  Check(env, napi_add_env_cleanup_hook(env, EndEnvironment, this));
}

FinishedRuns::~FinishedRuns() = default;

void FinishedRuns::Expect() {
  if (expected_++ == 0) napi_ref_threadsafe_function(env_, deliver_);
}

void FinishedRuns::Add(RunWorker& run) {
  const std::lock_guard<std::mutex> lock(mutex_);
  finished_.emplace_back(&run);
  // One call delivers all that are there. It cannot fail: the function is closed only when no more runs are expected.
  if (finished_.size() == 1) napi_call_threadsafe_function(deliver_, nullptr, napi_tsfn_nonblocking);
  added_.notify_all();
}

std::vector<std::unique_ptr<RunWorker>> FinishedRuns::Take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::move(finished_);
}

void FinishedRuns::Deliver(napi_env env, napi_value, void* self, void*) {
  // The environment has ended, and with it this object.
  if (env == nullptr) return;
  auto& runs = *static_cast<FinishedRuns*>(self);
  for (const auto& run : runs.Take()) {
    run->Settle();
    if (--runs.expected_ == 0) napi_unref_threadsafe_function(env, runs.deliver_);
  }
}

// A worker thread that ends does not wait for its runs' results, but for the threads that still use its memory.
void FinishedRuns::EndEnvironment(void* self) {
  auto& runs = *static_cast<FinishedRuns*>(self);
  for (RunTask* task : RunThreads::Get().Withdraw(self)) {
    delete task;
    --runs.expected_;
  }
  std::unique_lock<std::mutex> lock(runs.mutex_);
  runs.added_.wait(lock, [&runs] { return runs.finished_.size() >= runs.expected_; });
  runs.finished_.clear();
  runs.expected_ = 0;
}

}  // namespace ortflash
