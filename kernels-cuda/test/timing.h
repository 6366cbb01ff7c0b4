// Times single calls of the attention kernels.
#pragma once
#include <string>

#include "../include/ortflash_attention.h"

namespace harness {

// What is timed of a call, over rotated buffers: its part of a run of calls; of a replayed graph of calls, for calls shorter
// than their launch; or the host's time to enqueue it.
enum class Clock { kEvents, kGraph, kHost };

struct Shape {
  int element, batch, query_heads, key_heads, queries, keys, dimension;
  bool causal;
  int mask;  // additive: 1 for (S, S), 2 for (H, S, S); 0 for none
  Clock clock = Clock::kEvents;
};

// Milliseconds of one call, or -1 where the kernel does not serve it.
float time_shape(const Shape &shape, int kernel);

// Candidate kernels (candidates/): all of them, each in a process of its own with a limit of time; `program` is this one.
int compare_candidates(const char *program);

// One candidate beside the table's kernel, a line of the table.
int time_candidate(int number);

std::string candidate_name(int number);

}  // namespace harness
