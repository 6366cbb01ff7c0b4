#include "layout.h"

#include <cctype>
#include <stdexcept>

namespace ortflash {
namespace {

class Parser {
 public:
  explicit Parser(const std::string &text) : text_(text) {}

  Layout parse() {
    Layout layout;
    while (at_ < text_.size()) layout.push_back(take('(') ? group() : LayoutDimension{{factor()}});
    int seen[4] = {};
    for (const auto &dimension : layout) {
      for (const auto &factor : dimension.factors) {
        if (factor.axis >= 0 && ++seen[factor.axis] > 1) fail("an axis stands twice");
      }
    }
    return layout;
  }

 private:
  [[noreturn]] void fail(const std::string &why) const {
    throw std::invalid_argument("\"" + text_ + "\" is no tensor layout: " + why);
  }

  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) fail(std::string("'") + c + "' expected at position " + std::to_string(at_));
  }

  int64_t number() {
    const size_t begin = at_;
    int64_t value = 0;
    while (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])) && at_ - begin < 12) {
      value = value * 10 + (text_[at_++] - '0');
    }
    if (at_ == begin) fail("a number is expected at position " + std::to_string(at_));
    return value;
  }

  LayoutFactor factor() {
    static const std::string axes = "BHSD";
    if (take('[')) {
      LayoutFactor packed{-1, number(), 0};
      expect('/');
      packed.parts = number();
      expect(']');
      if (packed.part >= packed.parts) fail("a part is not one of its parts");
      return packed;
    }
    const size_t axis = at_ < text_.size() ? axes.find(text_[at_]) : std::string::npos;
    if (axis == std::string::npos) fail("cannot read position " + std::to_string(at_));
    ++at_;
    return {static_cast<int>(axis), 0, 1};
  }

  LayoutDimension group() {
    LayoutDimension dimension;
    while (at_ < text_.size() && text_[at_] != ')' && text_[at_] != '@') dimension.factors.push_back(factor());
    if (take('@')) {
      dimension.sliced = true;
      dimension.start = number();
      expect('/');
      dimension.width = number();
    }
    expect(')');
    if (dimension.factors.empty()) fail("a pair of parentheses is empty");
    return dimension;
  }

  const std::string &text_;
  size_t at_ = 0;
};

std::string print(const std::vector<int64_t> &shape) {
  std::string text = "(";
  for (size_t d = 0; d < shape.size(); ++d) text += (d ? ", " : "") + std::to_string(shape[d]);
  return text + ")";
}

[[noreturn]] void misfit(const std::vector<int64_t> &shape, const std::string &why) {
  throw std::invalid_argument("shape " + print(shape) + " does not fit its layout: " + why);
}

// What a factor covers without its dimension's extent being asked. An axis that has a whole dimension to itself has its
// size from that.
std::optional<int64_t> known_size(const LayoutDimension &dimension, const LayoutFactor &factor, const KnownSizes &known) {
  if (factor.axis < 0) return factor.parts;
  int axes = 0;
  for (const auto &other : dimension.factors) axes += other.axis >= 0;
  return !dimension.sliced && axes == 1 ? std::nullopt : known[factor.axis];
}

// Size of the one factor of a dimension that is not known, from what remains of the extent; 1 where all are.
int64_t remaining_size(const LayoutDimension &dimension, int64_t extent, const KnownSizes &known,
                       const std::vector<int64_t> &shape) {
  int open_count = 0;
  int64_t product = 1;
  for (const auto &factor : dimension.factors) {
    const auto size = known_size(dimension, factor, known);
    open_count += !size;
    product *= size.value_or(1);
  }
  const bool splits = dimension.sliced  ? open_count == 0
                      : open_count == 0 ? product == extent
                                        : open_count == 1 && product != 0 && extent % product == 0;
  if (!splits) misfit(shape, "a dimension does not split into its axes");
  return open_count == 0 ? 1 : extent / product;
}

}  // namespace

Layout parse_layout(const std::string &text) { return Parser(text).parse(); }

StridedTensor resolve_layout(const Layout &layout, const std::vector<int64_t> &shape, const KnownSizes &known) {
  if (shape.size() != layout.size()) misfit(shape, "rank " + std::to_string(layout.size()) + " expected");
  StridedTensor tensor{{1, 1, 1, 1}, {0, 0, 0, 0}, 0};
  int64_t dimension_stride = 1;
  for (size_t d = layout.size(); d-- > 0;) {
    const LayoutDimension &dimension = layout[d];
    const int64_t extent = shape[d];
    if (dimension.sliced) {
      if (dimension.width != extent) misfit(shape, "a dimension of " + std::to_string(dimension.width) + " expected");
      tensor.offset += dimension.start * dimension_stride;
    }
    const int64_t remaining = remaining_size(dimension, extent, known, shape);
    int64_t stride = dimension_stride;
    for (size_t f = dimension.factors.size(); f-- > 0;) {
      const LayoutFactor &factor = dimension.factors[f];
      const int64_t size = known_size(dimension, factor, known).value_or(remaining);
      if (factor.axis >= 0) {
        tensor.size[factor.axis] = size;
        tensor.stride[factor.axis] = stride;
      } else {
        tensor.offset += factor.part * stride;
      }
      stride *= size;
    }
    const int64_t covered = dimension_stride == 0 ? 0 : stride / dimension_stride;
    if (dimension.sliced && dimension.start + covered > dimension.width)
      misfit(shape, "a dimension is too short for its slice");
    dimension_stride *= extent;
  }
  return tensor;
}

std::vector<int64_t> layout_shape(const Layout &layout, const Sizes &size) {
  std::vector<int64_t> shape;
  for (const auto &dimension : layout) {
    if (dimension.sliced) throw std::invalid_argument("an output's layout has a slice");
    int64_t extent = 1;
    for (const auto &factor : dimension.factors) extent *= factor.axis >= 0 ? size[factor.axis] : factor.parts;
    shape.push_back(extent);
  }
  return shape;
}

Extents layout_extents(const Layout &layout, const std::vector<Extent> &shape, const KnownSizes &known) {
  Extents axes;
  if (shape.size() != layout.size()) return axes;
  for (size_t d = 0; d < layout.size(); ++d) {
    Extent *open = nullptr;
    int open_count = 0;
    int64_t product = 1;
    for (const auto &factor : layout[d].factors) {
      const auto size = known_size(layout[d], factor, known);
      if (factor.axis >= 0) axes[factor.axis].size = size;
      if (size) product *= *size;
      if (!size) open = &axes[factor.axis], ++open_count;
    }
    if (open_count != 1 || layout[d].sliced) continue;
    const Extent &whole = shape[d];
    if (whole.size && product > 0 && *whole.size % product == 0) open->size = *whole.size / product;
    if (product == 1) open->name = whole.name;
  }
  return axes;
}

std::vector<Extent> layout_shape(const Layout &layout, const Extents &axes) {
  std::vector<Extent> shape;
  for (const auto &dimension : layout) {
    if (dimension.sliced) throw std::invalid_argument("an output's layout has a slice");
    Extent product{1, ""};
    for (const auto &factor : dimension.factors) {
      const Extent other = factor.axis >= 0 ? axes[factor.axis] : Extent{factor.parts, ""};
      if (product.size == 1) product = other;  // also a name stays one
      else if (product.size && other.size) product.size = *product.size * *other.size;
      else if (other.size != 1) product = {};
    }
    shape.push_back(product);
  }
  return shape;
}

bool slices_head_dimension(const Layout &layout) {
  for (const auto &dimension : layout) {
    for (const auto &factor : dimension.factors) {
      if (dimension.sliced && factor.axis == kDimension) return true;
    }
  }
  return false;
}

}  // namespace ortflash
