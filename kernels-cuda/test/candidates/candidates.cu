#include "candidates.h"

namespace ortflash {

const std::vector<Candidate> &candidates() {
  static const auto all = [] {
    std::vector<Candidate> made;
    add_ampere_candidates<__half, 256>(made);
    add_decode_candidates<__half, 64>(made);
    add_decode_candidates<__half, 128>(made);
    add_decode_candidates<__half, 256>(made);
    add_decode_candidates<float, 64>(made);
    add_decode_candidates<float, 128>(made);
    return made;
  }();
  return all;
}

const Candidate *find_candidate(int kernel) {
  const size_t n = static_cast<size_t>(kernel - kFirstCandidate);
  return kernel >= kFirstCandidate && n < candidates().size() ? &candidates()[n] : nullptr;
}

}  // namespace ortflash
