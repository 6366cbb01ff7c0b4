// In the place of kernels/wgmma.cuh: a warpgroup's products, done by each warp for its own 16 rows when they are waited for
// (PTX ISA, wgmma: layouts of registers and of operands in shared memory).
#pragma once
#include "element.cuh"
#include "ptx.cuh"
#include "wgmma_operand.cuh"

namespace ortflash::wgmma {

inline void arrive() {}
inline void commit() { emulated::fiber().products.close(); }

template <int kPending>
void wait() {
  auto &closed = emulated::fiber().products.closed;
  while (closed.size() > kPending) {
    struct Given {
      const std::vector<emulated::Product> *group;
    } given{&closed.front()};
    emulated::together("wgmma.wait_group", given, [](Given *const(&all)[emulated::kLanes]) {
      for (size_t n = 0; n < all[0]->group->size(); ++n) {
        const emulated::Product *lanes[emulated::kLanes];
        for (int lane = 0; lane < emulated::kLanes; ++lane) lanes[lane] = &all[lane]->group->at(n);
        lanes[0]->multiply(lanes);
      }
    });
    closed.erase(closed.begin());
  }
}

template <int kGroups>
void pin(float (&)[kGroups][4]) {}

struct OperandPlace {
  uint32_t address, leading, stride;  // bytes
};

inline OperandPlace place_of(uint64_t operand) {
  if (operand >> 61 != 2) emulated::fail("an operand without the 128-byte swizzle");
  const auto field = [&](int first) { return static_cast<uint32_t>(operand >> first & 0x3fff) << 4; };
  return {field(0), field(16), field(32)};
}

template <typename Element>
float element_at(uint32_t address) {
  const uint32_t swizzled = address ^ (address >> 7 & 7) << 4;
  return ElementOps<Element>::widen(*static_cast<const Element *>(emulated::at_address(swizzled, 2)));
}

// Element (row, k) of an operand whose rows lie along k.
template <typename Element>
float by_rows(uint64_t operand, int row, int k) {
  const OperandPlace place = place_of(operand);
  return element_at<Element>(place.address + row / 8 * place.stride + row % 8 * 128 + k * 2);
}

// Element (k, column) of an operand whose rows lie along the columns, 64 to a chunk.
template <typename Element>
float by_columns(uint64_t operand, int k, int column) {
  const OperandPlace place = place_of(operand);
  return element_at<Element>(place.address + column / 64 * place.leading + k / 8 * place.stride + k % 8 * 128 +
                             column % 64 * 2);
}

// D (+)= A·B for the warp's 16 rows; B as 16 rows of kN, given by `right(k, j)`.
template <int kN, typename Left, typename Right>
void multiply_rows(const emulated::Product *const (&lanes)[emulated::kLanes], Left left, Right right) {
  static float a[16][16], b[16][kN], sum[16][kN];
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < 16; ++i) a[i][k] = left(i, k);
    for (int j = 0; j < kN; ++j) b[k][j] = right(k, j);
  }
  const auto each = [&](auto act) {
    for (int lane = 0; lane < emulated::kLanes; ++lane) {
      for (int n = 0; n < kN / 2; ++n)
        act(lanes[lane]->d[n], sum[lane / 4 + n % 4 / 2 * 8][n / 4 * 8 + lane % 4 * 2 + n % 2]);
    }
  };
  const bool add = lanes[0]->add;
  each([&](const float &d, float &s) { s = add ? d : 0.0f; });
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < kN; ++j) sum[i][j] += a[i][k] * b[k][j];
    }
  }
  each([](float &d, const float &s) { d = s; });
}

template <typename Element, int kN>
struct RowsByRows {
  static void multiply(float (&d)[kN / 8][4], uint64_t a, uint64_t b, int add) {
    emulated::fiber().products.open.push_back({d[0], nullptr, a, b, add != 0, run});
  }
  static void run(const emulated::Product *const (&lanes)[emulated::kLanes]) {
    const emulated::Product &own = *lanes[0];
    const int first_row = emulated::fiber().thread / 32 % 4 * 16;
    multiply_rows<kN>(
        lanes, [&](int i, int k) { return by_rows<Element>(own.a_operand, first_row + i, k); },
        [&](int k, int j) { return by_rows<Element>(own.b_operand, j, k); });
  }
};

template <typename Element, int kN>
struct RegistersByColumns {
  static void multiply(float (&d)[kN / 8][4], const uint32_t (&a)[4], uint64_t b) {
    emulated::fiber().products.open.push_back({d[0], a, 0, b, true, run});
  }
  static void run(const emulated::Product *const (&lanes)[emulated::kLanes]) {
    multiply_rows<kN>(
        lanes,
        [&](int i, int k) {
          const uint32_t pair = lanes[i % 8 * 4 + k % 8 / 2]->a[i / 8 + k / 8 * 2];
          const float2 both = ElementOps<Element>::unpack(pair);
          return k % 2 ? both.y : both.x;
        },
        [&](int k, int j) { return by_columns<Element>(lanes[0]->b_operand, k, j); });
  }
};

}  // namespace ortflash::wgmma
