// Kernels with other tiles than the tables', built into the harness to be compared with them (harness --candidates).
// Choosing one is a change of its line in the table: HopperTiles, HopperBiasTiles, AmpereTiles, DecodeTiles.
#pragma once
#include <string>
#include <vector>

#include "../../kernels/launch.h"

namespace ortflash {

template <typename Element>
constexpr int candidate_element() {
  return std::is_same_v<Element, __half> ? ORTFLASH_FLOAT16 : ORTFLASH_BFLOAT16;
}

template <typename Element, int kHeadDimension>
void add_ampere_candidates(std::vector<Candidate> &all);

template <typename Element, int kHeadDimension>
void add_decode_candidates(std::vector<Candidate> &all);

// All of them; the candidate at n has kernel number kFirstCandidate + n.
const std::vector<Candidate> &candidates();

// Whether it serves calls with an additive mask, and only those.
inline bool is_for_bias(const Candidate &candidate) { return std::string(candidate.name).rfind("bias", 0) == 0; }

}  // namespace ortflash
