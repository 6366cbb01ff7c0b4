// Checks and times the candidates: each in a process of its own, so that one that hangs or faults spoils no other.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "../timing.h"
#include "candidates.h"

namespace harness {
namespace {

using ortflash::candidates;
using Now = std::chrono::steady_clock;

constexpr int kAtOnce = 6, kSeconds = 40;

struct Process {
  int candidate;
  pid_t id;
  Now::time_point start;
};

Process start_process(const char *program, const char *option, int candidate) {
  std::fflush(stdout);
  const std::string number = std::to_string(candidate);
  const pid_t id = fork();
  if (id == 0) {
    execl("/proc/self/exe", program, option, number.c_str(), "--cases", "16", static_cast<char *>(nullptr));
    _exit(127);
  }
  return {candidate, id, Now::now()};
}

// Whether the process has ended, and if so whether well. One that takes too long is killed.
bool has_ended(const Process &process, bool &well) {
  int status;
  well = false;
  if (waitpid(process.id, &status, WNOHANG) == process.id) {
    well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (WIFSIGNALED(status) || WEXITSTATUS(status) == 2 || WEXITSTATUS(status) == 127)
      std::printf("BROKEN  %s\n", candidate_name(process.candidate).c_str());
    return true;
  }
  if (Now::now() - process.start < std::chrono::seconds(kSeconds)) return false;
  kill(process.id, SIGKILL);
  waitpid(process.id, &status, 0);
  std::printf("HANGS   %s\n", candidate_name(process.candidate).c_str());
  return true;
}

// Runs this program with `option` for each of these candidates; returns those that ended well.
std::vector<int> run_all(const char *program, const char *option, const std::vector<int> &which, int at_once) {
  std::vector<int> well_ended;
  std::vector<Process> running;
  size_t next = 0;
  while (next < which.size() || !running.empty()) {
    while (next < which.size() && static_cast<int>(running.size()) < at_once)
      running.push_back(start_process(program, option, which[next++]));
    for (size_t n = 0; n < running.size();) {
      bool well;
      if (!has_ended(running[n], well)) {
        ++n;
        continue;
      }
      if (well) well_ended.push_back(running[n].candidate);
      running.erase(running.begin() + n);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return well_ended;
}

struct Column {
  std::string name;
  Shape shape;
};

// What a candidate is timed on.
std::vector<Column> columns_of(const ortflash::Candidate &c) {
  std::vector<Column> columns;
  const int heads = 2048 / c.head_dimension;
  const auto add = [&](int tokens, bool causal, int mask) {
    const std::string name = mask == 0 ? (causal ? " causal" : "") : mask == 1 ? " S,S" : " H,S,S";
    columns.push_back({std::to_string(tokens) + name,
                       {c.element, 16384 / tokens, heads, heads, tokens, tokens, c.head_dimension, causal, mask}});
  };
  if (c.kernel == ORTFLASH_DECODE) {
    const auto cache = [&](int batch, int heads, int key_heads, int keys) {
      const std::string shape = std::to_string(batch) + "x" + std::to_string(heads) + "/" + std::to_string(key_heads);
      columns.push_back({shape + " " + std::to_string(keys) + " keys",
                         {c.element, batch, heads, key_heads, 1, keys, c.head_dimension, false, 0, Clock::kGraph}});
    };
    for (const int keys : {1024, 4096, 8192, 16384, 65536}) cache(1, 32, 8, keys);
    for (const int keys : {1024, 2048, 4096}) cache(1, 14, 2, keys);
    for (const int keys : {1024, 4096}) cache(1, 12, 12, keys);
    for (const int keys : {512, 2048}) cache(16, 32, 8, keys);
  } else if (is_for_bias(c)) {
    add(4096, false, 1);
    add(4096, false, 2);
  } else {
    for (const int tokens : {512, 1024, 2048, 4096, 16384}) add(tokens, true, 0);
    add(512, false, 0);
    add(4096, false, 0);
  }
  return columns;
}

}  // namespace

std::string candidate_name(int number) {
  static const char *const kernels[] = {"", "", "", "ampere", "hopper", "decode"};
  const ortflash::Candidate &c = candidates()[number];
  return std::string(kernels[c.kernel]) + " " + std::to_string(c.head_dimension) +
         (c.element == ORTFLASH_BFLOAT16  ? " bf16: "
          : c.element == ORTFLASH_FLOAT32 ? " float32: "
                                          : ": ") +
         c.name;
}

int time_candidate(int number) {
  const ortflash::Candidate &c = candidates()[number];
  std::printf("%-36s", candidate_name(number).c_str());
  for (const Column &column : columns_of(c)) {
    const Shape &s = column.shape;
    const float own = time_shape(s, c.kernel), other = time_shape(s, ortflash::kFirstCandidate + number);
    if (s.clock == Clock::kGraph) {
      std::printf(" | %s %.1f us, was %.1f", column.name.c_str(), other * 1e3, own * 1e3);
      continue;
    }
    const double work =
        4.0 * s.batch * s.query_heads * s.queries * double(s.keys) * s.dimension * (s.causal ? 0.5 : 1.0);
    std::printf(" | %s %.0f (x%.2f)", column.name.c_str(), work / other * 1e-9, own / other);
    if (s.mask) {
      Shape plain = s;
      plain.mask = 0;
      std::printf(" %.2f of unmasked", time_shape(plain, c.kernel) / other);
    }
  }
  std::printf("\n");
  return 0;
}

int compare_candidates(const char *program) {
  std::vector<int> all;
  for (int n = 0; n < static_cast<int>(candidates().size()); ++n) all.push_back(n);
  const auto start = Now::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Now::now() - start).count(); };
  const std::vector<int> right = run_all(program, "--check-candidate", all, kAtOnce);
  std::printf("%zu of %zu candidates right, %.0f s\n\nTFLOP/s (over the table's own kernel)\n", right.size(), all.size(),
              seconds());
  const std::vector<int> timed = run_all(program, "--time-candidate", right, 1);
  std::printf("%.0f s\n", seconds());
  return right.size() != all.size() || timed.size() != right.size();
}

}  // namespace harness
