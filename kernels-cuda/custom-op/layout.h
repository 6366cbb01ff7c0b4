// Layout strings of the operator (grammar and meaning: graph-rewrite/op/layout.ts), read on the host.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ortflash {

enum Axis { kBatch = 0, kHeads = 1, kSequence = 2, kDimension = 3 };

// One value an axis, in the order of Axis.
using Sizes = std::array<int64_t, 4>;
using KnownSizes = std::array<std::optional<int64_t>, 4>;

// An axis, or one part of a packed axis.
struct LayoutFactor {
  int axis;  // -1: a packed part
  int64_t part, parts;
};

// One dimension of the tensor: factors, outermost first, and the slice of it that they cover.
struct LayoutDimension {
  std::vector<LayoutFactor> factors;
  bool sliced = false;
  int64_t start = 0, width = 0;
};

using Layout = std::vector<LayoutDimension>;

// Sizes and strides of a tensor seen as (batch, heads, sequence, head dimension), in elements.
struct StridedTensor {
  Sizes size, stride;
  int64_t offset;
};

// The size of an axis or of a dimension as far as a model tells it before it runs: a number; or else a name, which stands
// for one size throughout the model; or else, with an empty name, nothing.
struct Extent {
  std::optional<int64_t> size;
  std::string name;
};

// One an axis, in the order of Axis.
using Extents = std::array<Extent, 4>;

// Throws std::invalid_argument where the text is no layout or names an axis twice.
Layout parse_layout(const std::string &text);

// Sees a tensor of this shape through a layout. `known`: sizes that the shape does not give.
// Throws std::invalid_argument where the shape does not fit.
StridedTensor resolve_layout(const Layout &layout, const std::vector<int64_t> &shape, const KnownSizes &known);

// Shape of a tensor with these sizes in this layout. Throws std::invalid_argument for a layout with slices.
std::vector<int64_t> layout_shape(const Layout &layout, const Sizes &size);

// The same two of what a model tells before it runs: what a shape says of each axis, nothing where it does not fit, and
// the shape of a tensor with these axes.
Extents layout_extents(const Layout &layout, const std::vector<Extent> &shape, const KnownSizes &known);
std::vector<Extent> layout_shape(const Layout &layout, const Extents &axes);

// Whether the head dimension lies in a sliced dimension, so that the shape does not give its size.
bool slices_head_dimension(const Layout &layout);

}  // namespace ortflash
