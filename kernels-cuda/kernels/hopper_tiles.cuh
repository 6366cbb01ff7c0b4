// The tables of the Hopper kernel: sizes for each head dimension, and what of shared memory they take.
#pragma once
#include <cuda.h>

#include <cstdint>
#include <type_traits>

#include "element.cuh"

namespace ortflash {

// What a kernel's tiles may add to their sizes; off unless a tile says otherwise.
struct HopperDefaults {
  // Warpgroups issue their products in turn, so that one does its softmax while another multiplies.
  static constexpr bool kTurns = true;
  // A warpgroup passes over the steps that none of its own 64 queries sees, though others of the block do.
  static constexpr bool kSkipsHidden = false;
  // A diagonal that crosses a step takes out the keys on its one side without asking for the other.
  static constexpr bool kSeparateEdges = false;
  // Work items whose queries are in shared memory at once: with 2, those of the next arrive while one is worked on.
  static constexpr int kQueryBuffers = 1;
  // The first keys of an item are asked for before its queries, whose place is free later than theirs.
  static constexpr bool kKeysFirst = false;
  // Keys up to which heads are taken together one item a multiprocessor, though the L2 cache holds more: see plan_groups().
  static constexpr int kGroupedKeys = 1024;
  // Scores take an additive mask that the producer brings to shared memory: see add_bias().
  static constexpr bool kBias = false;
};

// kConsumers: warpgroups of 64 queries; kKeys: keys a step; kStages: steps in flight.
template <int kHeadDimension, bool kRules>
struct HopperTiles;

template <>
struct HopperTiles<64, false> : HopperDefaults {
  static constexpr int kConsumers = 3, kKeys = 128, kStages = 2;
};
template <>
struct HopperTiles<64, true> : HopperDefaults {
  static constexpr int kConsumers = 2, kKeys = 128, kStages = 2;
};
template <>
struct HopperTiles<128, false> : HopperDefaults {
  static constexpr int kConsumers = 2, kKeys = 176, kStages = 2;
};
template <>
struct HopperTiles<128, true> : HopperDefaults {
  static constexpr int kConsumers = 2, kKeys = 128, kStages = 2;
};
template <>
struct HopperTiles<256, false> : HopperDefaults {
  static constexpr int kConsumers = 2, kKeys = 80, kStages = 2;
};
template <>
struct HopperTiles<256, true> : HopperDefaults {
  static constexpr int kConsumers = 2, kKeys = 64, kStages = 2;
};

// Where causal rows are short: with wide steps most of their scores would be masked, and the next item's queries and keys
// have to be on their way early.
template <int kHeadDimension>
struct HopperShortTiles : HopperTiles<kHeadDimension, false> {
  static constexpr int kMostKeys = 0;  // keys up to which these serve
};
template <>
struct HopperShortTiles<64> : HopperDefaults {
  static constexpr int kConsumers = 3, kKeys = 128, kStages = 4, kMostKeys = 2048, kGroupedKeys = kMostKeys;
  static constexpr int kQueryBuffers = 2;
  static constexpr bool kKeysFirst = true, kTurns = false, kSkipsHidden = true, kSeparateEdges = true;
};
template <>
struct HopperShortTiles<128> : HopperDefaults {
  static constexpr int kConsumers = 2, kKeys = 128, kStages = 2, kMostKeys = 1024;
  static constexpr int kQueryBuffers = 2;
  static constexpr bool kKeysFirst = true;
};

// With an additive mask and nothing else between product and softmax.
template <int kHeadDimension>
struct HopperBiasTiles : HopperTiles<kHeadDimension, true> {
  static constexpr bool kBias = true, kSeparateEdges = true;
};
template <>
struct HopperBiasTiles<64> : HopperTiles<64, false> {
  static constexpr bool kBias = true, kSeparateEdges = true;
};

// How Q, K and V lie in memory, for the copy engine: boxes of 64 columns by 64 queries or kKeys keys.
struct HopperMaps {
  CUtensorMap query, key, value;
};

// And an additive mask: boxes of 64 keys by 64 queries.
struct HopperBiasMaps : HopperMaps {
  CUtensorMap mask;
};

// One block of queries of one head, and the steps of kKeys keys it visits: none where begin >= end. The producer works
// them out and passes them on; a negative head says that there are no more.
struct WorkItem {
  int first_query, head, batch, begin, end;
};

// The copy engine's 128-byte swizzle repeats every 1,024 bytes: every tile it fills begins at a multiple of that.
constexpr int kTileAlignment = 1024;

// The mask's stages follow those of the keys; each warpgroup has its own part, 64 queries by kKeys keys. Nothing but tiles
// here: a derived struct's members may begin in the padding at a base's end.
template <typename Element, typename Tiles>
struct HopperBiasStages {
  alignas(kTileAlignment) Element mask[Tiles::kStages][Tiles::kConsumers][Tiles::kKeys / 64][64][64];
};
struct HopperNoBias {};

template <typename Element_, int kHeadDimension_, bool kRules_, typename Tiles_ = HopperTiles<kHeadDimension_, kRules_>>
struct HopperKernel {
  using Element = Element_;
  using Tiles = Tiles_;
  static constexpr int kHeadDimension = kHeadDimension_, kKeys = Tiles::kKeys, kStages = Tiles::kStages;
  static constexpr int kQueryBuffers = Tiles::kQueryBuffers;
  static constexpr bool kRules = kRules_, kBias = Tiles::kBias;
  static_assert(!kBias || (!kRules && kKeys % 64 == 0));
  // Whether scores reach the softmax times the scale, or raw (a mask divided by it), which saves an instruction each. A
  // mask of bfloat16 reaches -3.4e38, which divided would overflow.
  static constexpr bool kScaled = kRules || (kBias && !std::is_same_v<Element, __half>);
  using Maps = std::conditional_t<kBias, HopperBiasMaps, HopperMaps>;
  static constexpr int kConsumers = Tiles::kConsumers, kRows = 64 * kConsumers, kThreads = 128 * (kConsumers + 1);
  static constexpr int kChunks = kHeadDimension / 64;  // of 64 columns, 128 bytes
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;

  struct Shared : std::conditional_t<kBias, HopperBiasStages<Element, Tiles>, HopperNoBias> {
    alignas(kTileAlignment) Element query[kQueryBuffers][kConsumers][kChunks][64][64];
    alignas(kTileAlignment) Element key[kStages][kChunks][kKeys][64];
    alignas(kTileAlignment) Element value[kStages][kChunks][kKeys][64];
    WorkItem work[2];
    uint64_t work_full[2], work_empty[2];
    uint64_t query_full[kQueryBuffers][kConsumers], query_empty[kQueryBuffers][kConsumers];
    uint64_t key_full[kStages], key_empty[kStages], value_full[kStages], value_empty[kStages];
    uint64_t mask_full[kStages][kConsumers], mask_empty[kStages][kConsumers];  // of a mask in shared memory alone
  };
  static_assert(alignof(Shared) == kTileAlignment);
  static_assert(kKeys * 128 % kTileAlignment == 0, "a chunk of keys would leave the next misaligned");
  static constexpr int kSharedBytes = sizeof(Shared) + kTileAlignment;  // and room to align it
  static_assert(kSharedBytes <= 232448, "more than an SM has");
};

}  // namespace ortflash
