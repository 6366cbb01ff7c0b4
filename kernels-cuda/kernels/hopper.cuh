// FlashAttention-3 (Shah et al. 2024, sections 3.1 and 3.2) for compute capability 9.0: one producer warp feeds shared
// memory through the tensor copy engine; consumer warpgroups of 64 queries each multiply with wgmma, take turns so that one
// does its softmax while another multiplies, and within a warpgroup the softmax of one block of keys runs beside the
// product of the last one's weights with its values. Blocks are persistent and take work items until none is left.
#pragma once
#include "hopper_tiles.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

namespace ortflash {

// Position in a ring of stages: which stage, and the parity of its barriers' current phase.
template <int kStages>
struct Ring {
  uint32_t count = 0;
  __device__ uint32_t stage() const { return count % kStages; }
  __device__ uint32_t parity() const { return count / kStages % 2; }
  __device__ void advance() { ++count; }
  __device__ Ring last() const { return {count - 1}; }
};
// Of one stage there is only the parity, which takes the producer fewer registers.
template <>
struct Ring<1> {
  uint32_t phase = 0;
  __device__ uint32_t stage() const { return 0; }
  __device__ uint32_t parity() const { return phase; }
  __device__ void advance() { phase ^= 1; }
};

// Heads are taken in groups whose keys fit the L2 cache (AttentionParams::heads_at_once); within one, where causality makes
// blocks unequal, the longest first.
template <typename Kernel>
__device__ inline WorkItem work_item(const AttentionParams &p, int index) {
  const int tiles = (p.queries + Kernel::kRows - 1) / Kernel::kRows, heads = p.batch * p.query_heads;
  const int group = index / (tiles * p.heads_at_once), rest = index % (tiles * p.heads_at_once);
  const int group_heads = min(p.heads_at_once, heads - group * p.heads_at_once);
  const int any_head = group * p.heads_at_once + rest % group_heads;
  WorkItem item;
  item.first_query = (tiles - 1 - rest / group_heads) * Kernel::kRows;
  // Batch entries that share a head's mask follow each other, so that they find it in the L2 cache.
  item.head = Kernel::kBias ? any_head / p.batch : any_head % p.query_heads;
  item.batch = Kernel::kBias ? any_head % p.batch : any_head / p.query_heads;
  const Visibility visibility(p, item.batch);
  const KeyRange visit =
      visibility.to_visit(p, item.first_query, min(item.first_query + Kernel::kRows, p.queries) - 1);
  item.begin = visit.begin / Kernel::kKeys;
  item.end = visit.begin < visit.end ? (visit.end + Kernel::kKeys - 1) / Kernel::kKeys : item.begin;
  return item;
}

template <typename Kernel>
__device__ inline int work_items(const AttentionParams &p) {
  return (p.queries + Kernel::kRows - 1) / Kernel::kRows * p.batch * p.query_heads;
}

// The producer: one thread. Work comes by turns, or, where items differ in length, from a counter in workspace.
template <typename Kernel>
__device__ inline void produce(const AttentionParams &p, const typename Kernel::Maps &maps, typename Kernel::Shared &shared) {
  constexpr uint32_t kQueryBytes = sizeof(shared.query[0][0]), kKeyBytes = sizeof(shared.key[0]);
  const int items = work_items<Kernel>(p), blocks = gridDim.x;
  Ring<Kernel::kStages> ring;
  Ring<2> work_ring;
  Ring<Kernel::kQueryBuffers> query_ring;
  for (int index = blockIdx.x, next; ; index = next, work_ring.advance()) {
    next = index >= items ? items : p.work_counter ? atomicAdd(p.work_counter, 1) + blocks : index + blocks;
    WorkItem item{0, -1, 0, 0, 0};
    if (index < items) item = work_item<Kernel>(p, index);
    ptx::barrier_wait(&shared.work_empty[work_ring.stage()], work_ring.parity() ^ 1);
    shared.work[work_ring.stage()] = item;
    ptx::barrier_arrive(&shared.work_full[work_ring.stage()]);
    if (item.head < 0) return;
    if (item.begin >= item.end) continue;
    const int key_head = item.head / p.heads_per_key;

    auto copy_query = [&](int w) {
      const int buffer = query_ring.stage();
      uint64_t *full = &shared.query_full[buffer][w];
      ptx::barrier_wait(&shared.query_empty[buffer][w], query_ring.parity() ^ 1);
      ptx::barrier_expect(full, kQueryBytes);
#pragma unroll 1
      for (int c = 0; c < Kernel::kChunks; ++c) {
        ptx::tensor_copy(shared.query[buffer][w][c], &maps.query, full, 64 * c, item.first_query + 64 * w, item.head,
                         item.batch);
      }
    };
    if (!Kernel::Tiles::kKeysFirst) copy_query(0);
    for (int step = item.begin; step < item.end; ++step, ring.advance()) {
      auto copy = [&](auto &target, const CUtensorMap &map, uint64_t *full, uint64_t *empty) {
        ptx::barrier_wait(empty, ring.parity() ^ 1);
        ptx::barrier_expect(full, kKeyBytes);
#pragma unroll 1
        for (int c = 0; c < Kernel::kChunks; ++c) {
          ptx::tensor_copy(target[c], &map, full, 64 * c, step * Kernel::kKeys, key_head, item.batch);
        }
      };
      const int s = ring.stage();
      copy(shared.key[s], maps.key, &shared.key_full[s], &shared.key_empty[s]);
      // The first warpgroup can begin while the others are still at the last item.
      if (step == item.begin) {
#pragma unroll 1
        for (int w = Kernel::Tiles::kKeysFirst ? 0 : 1; w < Kernel::kConsumers; ++w) copy_query(w);
      }
      if constexpr (Kernel::kBias) {
        const int head = p.mask.head ? item.head : 0, batch = p.mask.batch ? item.batch % p.mask.batches : 0;
#pragma unroll 1
        for (int w = 0; w < Kernel::kConsumers; ++w) {
          ptx::barrier_wait(&shared.mask_empty[s][w], ring.parity() ^ 1);
          ptx::barrier_expect(&shared.mask_full[s][w], sizeof(shared.mask[s][w]));
#pragma unroll 1
          for (int c = 0; c < Kernel::kKeys / 64; ++c) {
            ptx::tensor_copy(shared.mask[s][w][c], &maps.mask, &shared.mask_full[s][w], step * Kernel::kKeys + 64 * c,
                             item.first_query + 64 * w, head, batch);
          }
        }
      }
      copy(shared.value[s], maps.value, &shared.value_full[s], &shared.value_empty[s]);
    }
    query_ring.advance();
  }
}

// S = Q·Kᵀ, 64 queries by kKeys keys, in the background.
template <typename Kernel>
__device__ inline void start_query_key(ScoreFragment<Kernel::kKeys> &scores,
                                       const typename Kernel::Element (&query)[Kernel::kChunks][64][64],
                                       const typename Kernel::Element (&key)[Kernel::kChunks][Kernel::kKeys][64]) {
  using Product = wgmma::RowsByRows<typename Kernel::Element, Kernel::kKeys>;
  wgmma::arrive();
#pragma unroll
  for (int c = 0; c < Kernel::kChunks; ++c) {
    const uint64_t a = wgmma::operand(query[c]), b = wgmma::operand(key[c]);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Product::multiply(scores.value, wgmma::advance(a, 32 * k), wgmma::advance(b, 32 * k), c + k > 0);
    }
  }
  wgmma::commit();
}

// O += P·V, in the background.
template <typename Kernel>
__device__ inline void start_weight_value(float (&output)[Kernel::kHeadDimension / 8][4],
                                          const uint32_t (&weights)[Kernel::kKeys / 16][4],
                                          const typename Kernel::Element (&value)[Kernel::kChunks][Kernel::kKeys][64]) {
  using Product = wgmma::RegistersByColumns<typename Kernel::Element, Kernel::kHeadDimension>;
  wgmma::arrive();
  const uint64_t b = wgmma::operand(value, sizeof(value[0]));
#pragma unroll
  for (int k = 0; k < Kernel::kKeys / 16; ++k) Product::multiply(output, weights[k], wgmma::advance(b, 2048 * k));
  wgmma::commit();
}

// Sets the rows of values that lie past a length to zero: 0·NaN would be NaN, and what stands there is not ours.
template <typename Kernel>
__device__ inline void clear_values(typename Kernel::Element (&value)[Kernel::kChunks][Kernel::kKeys][64], int first,
                                    int barrier) {
  for (int i = threadIdx.x % 128; i < (Kernel::kKeys - first) * 8 * Kernel::kChunks; i += 128) {
    const int row = first + i / (8 * Kernel::kChunks), piece = i % (8 * Kernel::kChunks);
    *reinterpret_cast<uint4 *>(&value[piece / 8][row][piece % 8 * 8]) = make_uint4(0, 0, 0, 0);
  }
  ptx::fence_shared_async();
  ptx::named_barrier_wait(barrier, 128);
}

template <typename Kernel>
__device__ inline void write_output(const AttentionParams &p, const WorkItem &item, const FragmentRows &rows,
                                    const RowSoftmax<Kernel::kScaled> &softmax, const float (&output)[Kernel::kHeadDimension / 8][4]) {
  using Element = typename Kernel::Element;
  float factor[2];
  Element *row[2];
  Element *base = static_cast<Element *>(p.output.data) + item.batch * p.output.batch + item.head * p.output.head;
  const float sink = sink_logit<Element>(p, item.head);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = rows.query[r];
    float lse;
    factor[r] = softmax.finish(r, p.scale, sink, lse);
    row[r] = i < p.queries ? base + i * p.output.sequence : nullptr;
    if (p.log_sum_exp && i < p.queries && lane_column() == 0) {
      p.log_sum_exp[(static_cast<int64_t>(item.batch) * p.query_heads + item.head) * p.queries + i] = lse;
    }
  }
  store_rows<Element, Kernel::kHeadDimension>(output, factor, row, p);
}

// Adds the warpgroup's part of an additive mask, in the copy engine's 128-byte swizzle, to the scores. ldmatrix leaves
// it as the scores lie: of 16 rows by 16 keys, each lane gets its two rows' pairs.
template <typename Kernel>
__device__ inline void add_bias(ScoreFragment<Kernel::kKeys> &scores,
                                const typename Kernel::Element (&mask)[Kernel::kKeys / 64][64][64], float scale,
                                float unscale) {
  const int row = threadIdx.x % 128 / 32 * 16 + lane_id() % 16, half = lane_id() / 16;
#pragma unroll
  for (int j = 0; j < Kernel::kKeys; j += 16) {
    uint32_t pair[4];
    ptx::load_matrix_x4(pair, ptx::shared_address(&mask[j / 64][row][((j % 64 / 8 + half) ^ (row % 8)) * 8]));
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      float(&group)[4] = scores.value[j / 8 + n / 2];
      const float2 bias = ElementOps<typename Kernel::Element>::unpack(pair[n]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float &score = group[n % 2 * 2 + c];
        const float b = c == 0 ? bias.x : bias.y;
        score = Kernel::kScaled ? fmaf(score, scale, b) : fmaf(b, unscale, score);
      }
    }
  }
}

// The steps of a work item that some query of this warpgroup sees; none where begin >= end.
template <typename Kernel>
__device__ inline KeyRange own_steps(const AttentionParams &p, const Visibility &visibility, const WorkItem &item,
                                     int warpgroup) {
  if (!Kernel::Tiles::kSkipsHidden) return {item.begin, item.end};
  const int first = item.first_query + 64 * warpgroup;
  if (first >= p.queries) return {item.end, item.end};
  const KeyRange visit = visibility.to_visit(p, first, min(first + 64, p.queries) - 1);
  if (visit.begin >= visit.end) return {item.end, item.end};
  return {visit.begin / Kernel::kKeys, (visit.end + Kernel::kKeys - 1) / Kernel::kKeys};
}

// The query of the lane's row r of a work item.
__device__ inline int row_query(const WorkItem &item, int warpgroup, int r) {
  return item.first_query + 64 * warpgroup + threadIdx.x % 128 / 32 * 16 + lane_id() / 4 + 8 * r;
}

// Hides what lies outside each row's range, which is found anew: only steps at an edge need it, and registers are scarce.
template <typename Kernel>
__device__ inline void hide_edges(ScoreFragment<Kernel::kKeys> &scores, const AttentionParams &p, const WorkItem &item,
                                  int warpgroup, int first_key) {
  const Visibility visibility(p, item.batch);
  const KeyRange range[2] = {visibility.of(row_query(item, warpgroup, 0)), visibility.of(row_query(item, warpgroup, 1))};
  if (range[1].begin > first_key) hide_before(scores, range, first_key);
  if (range[0].end < first_key + Kernel::kKeys) hide_after(scores, range, first_key);
}

// Warpgroups issue their products in turn: each waits for the one before it to have issued.
constexpr int kFirstTurnBarrier = 1;

template <typename Kernel>
__device__ inline void wait_for_turn(int warpgroup) {
  if constexpr (Kernel::Tiles::kTurns) ptx::named_barrier_wait(kFirstTurnBarrier + warpgroup, 256);
}

template <typename Kernel>
__device__ inline void pass_on_turn(int warpgroup) {
  if constexpr (Kernel::Tiles::kTurns)
    ptx::named_barrier_arrive(kFirstTurnBarrier + (warpgroup + 1) % Kernel::kConsumers, 256);
}

// Hands back stages of steps that this warpgroup has no part in.
template <typename Kernel>
__device__ inline void skip_steps(typename Kernel::Shared &shared, int steps, int warpgroup,
                                  Ring<Kernel::kStages> &key_ring, Ring<Kernel::kStages> &value_ring) {
  const bool first_lane = threadIdx.x % 32 == 0;
  const auto skip = [&](uint64_t *full, uint64_t *empty, Ring<Kernel::kStages> &ring) {
    ptx::barrier_wait(full, ring.parity());
    if (first_lane) ptx::barrier_arrive(empty);
    ring.advance();
  };
  for (; steps > 0; --steps) {
    const int s = key_ring.stage();
    skip(&shared.key_full[s], &shared.key_empty[s], key_ring);
    wait_for_turn<Kernel>(warpgroup);
    pass_on_turn<Kernel>(warpgroup);
    if constexpr (Kernel::kBias) {
      Ring<Kernel::kStages> mask_ring = key_ring.last();
      skip(&shared.mask_full[s][warpgroup], &shared.mask_empty[s][warpgroup], mask_ring);
    }
    skip(&shared.value_full[s], &shared.value_empty[s], value_ring);
  }
}

// A consumer warpgroup, 64 queries of each work item.
template <typename Kernel>
__device__ inline void consume(const AttentionParams &p, typename Kernel::Shared &shared, int warpgroup) {
  using Element = typename Kernel::Element;
  constexpr int kKeys = Kernel::kKeys, kConsumers = Kernel::kConsumers;
  constexpr int kOwnBarrier = kFirstTurnBarrier + kConsumers;
  const bool first_lane = threadIdx.x % 32 == 0;
  Ring<Kernel::kStages> key_ring, value_ring;
  Ring<Kernel::kQueryBuffers> query_ring;

  auto wait_turn = [&] { wait_for_turn<Kernel>(warpgroup); };
  auto pass_turn = [&] { pass_on_turn<Kernel>(warpgroup); };
  if (warpgroup == kConsumers - 1) pass_turn();

  Ring<2> work_ring;
  for (;; work_ring.advance()) {
    ptx::barrier_wait(&shared.work_full[work_ring.stage()], work_ring.parity());
    const WorkItem &item = shared.work[work_ring.stage()];  // read anew where needed: registers are dearer
    if (item.head < 0) return;
    const Visibility visibility(p, item.batch);
    FragmentRows rows;
    KeyRange range[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows.query[r] = row_query(item, warpgroup, r);
      rows.head[r] = item.head;
      range[r] = visibility.of(rows.query[r]);
    }
    const int own_first = item.first_query + 64 * warpgroup;
    const KeyRange seen_by_all{visibility.of(own_first + 63).begin, visibility.of(own_first).end};
    RowSoftmax<Kernel::kScaled> softmax;
    float output[Kernel::kHeadDimension / 8][4] = {};
    ScoreFragment<kKeys> scores;
    uint32_t weights[kKeys / 16][4];
    MaskFragment<Kernel::kRules ? kKeys : 8> mask;

    auto fetch_mask = [&](int step) {
      if constexpr (Kernel::kRules) {
        if (p.mask.kind != ORTFLASH_MASK_NONE) mask.load(p, item.batch, rows, step * kKeys);
      }
    };
    auto settle_mask = [&] {
      if constexpr (Kernel::kRules) {
        if (p.mask.kind != ORTFLASH_MASK_NONE) mask.settle(p);
      }
    };
    auto to_weights = [&](int step, float(&rescale)[2]) {
      const int first_key = step * kKeys;
      if constexpr (Kernel::kRules) {
        apply_rules<Element>(scores, p, range, mask, first_key);
      } else {
        if constexpr (Kernel::kBias) {
          const int stage = key_ring.last().stage();
          ptx::barrier_wait(&shared.mask_full[stage][warpgroup], key_ring.last().parity());
          add_bias<Kernel>(scores, shared.mask[stage][warpgroup], p.scale, 1.0f / p.scale);
          __syncwarp();  // every lane has read its part
          if (first_lane) ptx::barrier_arrive(&shared.mask_empty[stage][warpgroup]);
        }
        if constexpr (Kernel::Tiles::kSeparateEdges) {
          if (first_key < seen_by_all.begin || first_key + kKeys > seen_by_all.end)
            hide_edges<Kernel>(scores, p, item, warpgroup, first_key);
        } else if (range[1].begin > first_key || range[0].end < first_key + kKeys) {
          hide_outside(scores, range, first_key, kMinusInfinity);
        }
      }
      softmax.update(scores, p.scale, rescale);
    };

    if (item.begin < item.end) {
      const KeyRange own = own_steps<Kernel>(p, visibility, item, warpgroup);
      const int begin = own.begin, end = own.end;
      auto release_query = [&](int step) {
        if (first_lane && step + 1 == end) ptx::barrier_arrive(&shared.query_empty[query_ring.stage()][warpgroup]);
      };
      if constexpr (Kernel::Tiles::kSkipsHidden)
        skip_steps<Kernel>(shared, begin - item.begin, warpgroup, key_ring, value_ring);
      fetch_mask(begin);
      ptx::barrier_wait(&shared.query_full[query_ring.stage()][warpgroup], query_ring.parity());
      const auto &query = shared.query[query_ring.stage()][warpgroup];
      if (begin < end) {
        float rescale[2];
        ptx::barrier_wait(&shared.key_full[key_ring.stage()], key_ring.parity());
        wait_turn();
        start_query_key<Kernel>(scores, query, shared.key[key_ring.stage()]);
        pass_turn();
        settle_mask();
        wgmma::wait<0>();
        wgmma::pin(scores.value);
        if (first_lane) ptx::barrier_arrive(&shared.key_empty[key_ring.stage()]);
        release_query(begin);
        key_ring.advance();
        to_weights(begin, rescale);
        to_operand<Element>(scores, weights);

        for (int step = begin + 1; step < end; ++step) {
          fetch_mask(step);
          ptx::barrier_wait(&shared.key_full[key_ring.stage()], key_ring.parity());
          wait_turn();
          start_query_key<Kernel>(scores, query, shared.key[key_ring.stage()]);
          ptx::barrier_wait(&shared.value_full[value_ring.stage()], value_ring.parity());
          start_weight_value<Kernel>(output, weights, shared.value[value_ring.stage()]);
          pass_turn();
          settle_mask();
          wgmma::wait<1>();
          wgmma::pin(scores.value);
          if (first_lane) ptx::barrier_arrive(&shared.key_empty[key_ring.stage()]);
          release_query(step);
          key_ring.advance();
          to_weights(step, rescale);
          wgmma::wait<0>();
          wgmma::pin(output);
          if (first_lane) ptx::barrier_arrive(&shared.value_empty[value_ring.stage()]);
          value_ring.advance();
#pragma unroll
          for (int d = 0; d < Kernel::kHeadDimension / 8; ++d) {
#pragma unroll
            for (int e = 0; e < 4; ++e) output[d][e] *= rescale[e / 2];
          }
          to_operand<Element>(scores, weights);
        }

        ptx::barrier_wait(&shared.value_full[value_ring.stage()], value_ring.parity());
        const int readable = visibility.readable_values(p) - (end - 1) * kKeys;
        if (p.key_lengths && readable < kKeys) {
          clear_values<Kernel>(shared.value[value_ring.stage()], max(0, readable), kOwnBarrier + warpgroup);
        }
        start_weight_value<Kernel>(output, weights, shared.value[value_ring.stage()]);
        wgmma::wait<0>();
        wgmma::pin(output);
        if (first_lane) ptx::barrier_arrive(&shared.value_empty[value_ring.stage()]);
        value_ring.advance();
      } else {
        release_query(end - 1);
      }
      if constexpr (Kernel::Tiles::kSkipsHidden)
        skip_steps<Kernel>(shared, item.end - end, warpgroup, key_ring, value_ring);
      query_ring.advance();
    }
    if constexpr (Kernel::Tiles::kSeparateEdges) {
      const FragmentRows again{{row_query(item, warpgroup, 0), row_query(item, warpgroup, 1)}, {item.head, item.head}};
      write_output<Kernel>(p, item, again, softmax, output);
    } else {
      write_output<Kernel>(p, item, rows, softmax, output);
    }
    __syncwarp();  // every lane has read the item for the last time
    if (first_lane) ptx::barrier_arrive(&shared.work_empty[work_ring.stage()]);
  }
}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    hopper_attention(const __grid_constant__ AttentionParams p, const __grid_constant__ typename Kernel::Maps maps) {
  extern __shared__ unsigned char memory[];
  const uint32_t misaligned = ptx::shared_address(memory) % 1024;
  auto &shared = *reinterpret_cast<typename Kernel::Shared *>(memory + (misaligned ? 1024 - misaligned : 0));
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = 4 * Kernel::kConsumers;
    for (int s = 0; s < 2; ++s) {
      ptx::barrier_init(&shared.work_full[s], 1);
      ptx::barrier_init(&shared.work_empty[s], kConsumerWarps);
    }
    for (int w = 0; w < Kernel::kConsumers; ++w) {
      for (int buffer = 0; buffer < Kernel::kQueryBuffers; ++buffer) {
        ptx::barrier_init(&shared.query_full[buffer][w], 1);
        ptx::barrier_init(&shared.query_empty[buffer][w], 4);
      }
    }
    for (int s = 0; s < Kernel::kStages; ++s) {
      ptx::barrier_init(&shared.key_full[s], 1);
      ptx::barrier_init(&shared.key_empty[s], kConsumerWarps);
      ptx::barrier_init(&shared.value_full[s], 1);
      ptx::barrier_init(&shared.value_empty[s], kConsumerWarps);
      if constexpr (Kernel::kBias) {
        for (int w = 0; w < Kernel::kConsumers; ++w) {
          ptx::barrier_init(&shared.mask_full[s][w], 1);
          ptx::barrier_init(&shared.mask_empty[s][w], 4);
        }
      }
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::registers_decrease<Kernel::kProducerRegisters>();
    if (threadIdx.x == 0) {
      ptx::prefetch_tensor_map(&maps.query);
      ptx::prefetch_tensor_map(&maps.key);
      ptx::prefetch_tensor_map(&maps.value);
      if constexpr (Kernel::kBias) ptx::prefetch_tensor_map(&maps.mask);
      produce<Kernel>(p, maps, shared);
    }
  } else {
    ptx::registers_increase<Kernel::kConsumerRegisters>();
    consume<Kernel>(p, shared, threadIdx.x / 128 - 1);
  }
}

}  // namespace ortflash
