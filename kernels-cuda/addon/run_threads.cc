#include "run_threads.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <system_error>
#include <thread>

namespace ortflash {
namespace {

// Runs at a time: one a processor, but so few at the least as Node's own pool has threads, and no more at the most than
// a machine has GPUs. Each needs memory for a model's intermediate results, and on the CPU has several threads' help.
constexpr unsigned kLeastThreads = 4;
constexpr unsigned kMostThreads = 16;

// Keeps this library loaded: Node unloads the addons of a worker thread that ends, and these threads go on.
void StayLoaded() {
  Dl_info own;
  if (dladdr(reinterpret_cast<const void*>(&StayLoaded), &own) != 0)
    dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

}  // namespace

RunThreads& RunThreads::Get() {
  static RunThreads* const threads = new RunThreads();
  return *threads;
}

RunThreads::RunThreads() : processors_(std::max(1u, std::thread::hardware_concurrency())) {
  StayLoaded();
  // ONNX Runtime is loaded by now, so this comes before the end of its statics, which a run may be using.
  std::atexit([] { Get().AwaitEnd(); });
}

bool RunThreads::Start(RunTask& task) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!idle_.empty()) {
    Thread& thread = *idle_.back();
    idle_.pop_back();
    thread.task.store(&task, std::memory_order_release);
    if (!thread.sleeps) return true;
    thread.given.notify_one();
    return false;
  }
  if (threads_ < std::clamp(processors_, kLeastThreads, kMostThreads)) {
    try {
      auto thread = std::make_unique<Thread>();
      thread->task = &task;
      std::thread([this, self = thread.get()] { Loop(*self); }).detach();
      thread.release();
      ++threads_;
      return false;
    } catch (const std::system_error&) {
      if (threads_ == 0) throw;
    }
  }
  waiting_.push_back(&task);
  return false;
}

std::vector<RunTask*> RunThreads::Withdraw(const void* owner) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto from = std::stable_partition(waiting_.begin(), waiting_.end(),
                                          [owner](const RunTask* task) { return task->owner() != owner; });
  const std::vector<RunTask*> withdrawn(from, waiting_.end());
  waiting_.erase(from, waiting_.end());
  return withdrawn;
}

void RunThreads::Loop(Thread& self) {
  for (RunTask* task = self.task.exchange(nullptr);;) task = Next(self, task->Execute());
}

RunTask* RunThreads::Next(Thread& self, bool brief) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!ends_ && !waiting_.empty()) {
      RunTask* const task = waiting_.front();
      waiting_.pop_front();
      return task;
    }
    idle_.push_back(&self);
    if (ends_) ended_.notify_all();
  }
  const auto is_given = [&self] { return self.task.load(std::memory_order_acquire) != nullptr; };
  if (!(brief && processors_ > 1 && self.patience.Await(is_given))) {
    std::unique_lock<std::mutex> lock(mutex_);
    self.sleeps = true;
    self.given.wait(lock, is_given);
    self.sleeps = false;
  }
  return self.task.exchange(nullptr);
}

void RunThreads::AwaitEnd() {
  std::unique_lock<std::mutex> lock(mutex_);
  ends_ = true;
  waiting_.clear();
  ended_.wait(lock, [this] { return idle_.size() == threads_; });
}

}  // namespace ortflash
