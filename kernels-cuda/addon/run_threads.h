// The threads that carry out runs, for all JavaScript threads of the process.
//
// Node's own pool would do, but for two things. Its few threads also read files and look up names, which must not wait
// for models. And a thread that sleeps takes longer to wake than a small model takes to run; here a thread that has
// had little to do looks out for more for a moment before it sleeps.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <vector>

namespace ortflash {

// A run that takes no longer than this is worth waiting for, on the side that gives it and on the side that takes it.
constexpr std::chrono::microseconds kBriefRun{50};

// Waits for what another thread is about to do, without sleeping, which would take longer; but for some microseconds at
// the most, and less and less often while that is in vain: the other thread may be waiting for this one's processor.
class Patience {
 public:
  // Returns what `is_done` said last.
  template <typename Done>
  bool Await(Done&& is_done) {
    if (skips_ > 0) {
      --skips_;
      return is_done();
    }
    const bool done = Spin(is_done);
    in_vain_ = done ? 0 : std::min(2 * in_vain_ + 1, kMostSkips);
    skips_ = in_vain_;
    return done;
  }

 private:
  static constexpr std::chrono::microseconds kMostWait{60};
  static constexpr unsigned kMostSkips = 255;

  template <typename Done>
  static bool Spin(Done&& is_done) {
    const auto end = std::chrono::steady_clock::now() + kMostWait;
    while (!is_done()) {
      if (std::chrono::steady_clock::now() >= end) return is_done();
#if defined(__x86_64__)
      for (int i = 0; i < 8; ++i) __builtin_ia32_pause();
#elif defined(__aarch64__)
      for (int i = 0; i < 8; ++i) asm volatile("yield");
#endif
    }
    return true;
  }

  // Waits in vain since the last that was not, as 2^n - 1, and how many of the next are left out for them.
  unsigned in_vain_ = 0;
  unsigned skips_ = 0;
};

class RunTask {
 public:
  virtual ~RunTask() = default;
  // Carries out the run, on one of the threads, and hands the task back to its owner, who may delete it at once.
  // Returns whether the run was brief.
  virtual bool Execute() noexcept = 0;
  // Whose it is: Withdraw takes it back by this.
  virtual const void* owner() const = 0;
};

class RunThreads {
 public:
  // One a process. It is never destroyed: its threads sleep when the process ends.
  static RunThreads& Get();

  // Starts a task; where all threads are busy it waits for its turn, in order. Returns whether a thread that is awake
  // has it, so that its end is worth waiting for if it is brief.
  bool Start(RunTask& task);
  // Takes back the owner's tasks that no thread has yet.
  std::vector<RunTask*> Withdraw(const void* owner);

 private:
  // A thread that has no task is among `idle_`.
  struct Thread {
    std::atomic<RunTask*> task{nullptr};
    std::condition_variable given;
    bool sleeps = false;
    Patience patience;
  };

  RunThreads();
  void Loop(Thread& self);
  RunTask* Next(Thread& self, bool brief);
  void AwaitEnd();

  const unsigned processors_;
  std::mutex mutex_;
  std::condition_variable ended_;
  // The last one that had a task comes last, and is the first to get another: its caches are warm.
  std::vector<Thread*> idle_;
  std::deque<RunTask*> waiting_;
  unsigned threads_ = 0;
  bool ends_ = false;
};

}  // namespace ortflash
