// Interpolation tables of all pairs of neighbouring levels, built once a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../pyramid.h"
#include "kernels.h"

namespace defcn_d2::cpu {

// Where PyTorch's bilinear resize (align_corners=False) reads: same formula, same precision.
template <typename A>
struct AxisTable {
  std::vector<int32_t> low, high;
  std::vector<A> low_weight, high_weight;
  Ratio ratio;

  AxisTable(int64_t source, int64_t target)
      : low(target), high(target), low_weight(target), high_weight(target) {
    ratio = target == 2 * source   ? Ratio::kDouble
            : source == 2 * target ? Ratio::kHalf
                                   : Ratio::kAny;
    const A scale = static_cast<A>(source) / static_cast<A>(target);
    for (int64_t i = 0; i < target; ++i) {
      const A position = std::max(scale * (static_cast<A>(i) + A(0.5)) - A(0.5), A(0));
      const int64_t cell = std::min(static_cast<int64_t>(position), source - 1);
      low[i] = static_cast<int32_t>(cell);
      high[i] = static_cast<int32_t>(std::min(cell + 1, source - 1));
      high_weight[i] = std::min(position - static_cast<A>(cell), A(1));
      low_weight[i] = A(1) - high_weight[i];
    }
  }

  Axis<A> view() const {
    return {ratio, low.data(), high.data(), low_weight.data(), high_weight.data()};
  }
};

template <typename A>
struct AdjointTable {
  std::vector<int32_t> index;
  std::vector<A> weight;
  int32_t terms = 0;
  Ratio ratio;

  AdjointTable(const AxisTable<A>& axis, int64_t source) : ratio(axis.ratio) {
    const int64_t target = static_cast<int64_t>(axis.low.size());
    std::vector<int32_t> count(source, 0);
    for (int64_t i = 0; i < target; ++i) {
      terms = std::max(terms, ++count[axis.low[i]]);
      terms = std::max(terms, ++count[axis.high[i]]);
    }
    index.assign(terms * source, static_cast<int32_t>(target));
    weight.assign(terms * source, A(0));
    std::fill(count.begin(), count.end(), 0);
    const auto append = [&](int64_t cell, int64_t i, A value) {
      const int64_t place = count[cell]++ * source + cell;
      index[place] = static_cast<int32_t>(i);
      weight[place] = value;
    };
    for (int64_t i = 0; i < target; ++i) {
      append(axis.low[i], i, axis.low_weight[i]);
      append(axis.high[i], i, axis.high_weight[i]);
    }
  }

  Adjoint<A> view() const { return {ratio, index.data(), weight.data(), terms}; }
};

template <typename A>
struct Tables {
  std::vector<AxisTable<A>> axes;  // y and x of each pair
  std::vector<AdjointTable<A>> adjoints;
  std::vector<Shape> shapes;
  std::vector<Resize<A>> resizes;
  Problem<A> problem;

  Tables(const Pyramid& pyramid, bool for_backward) {
    const int64_t num_levels = static_cast<int64_t>(pyramid.levels.size());
    const int64_t pairs = num_levels * pyramid.slots();
    axes.reserve(2 * pairs);  // views into the elements must stay valid
    adjoints.reserve(pairs);
    for (const Tensor& level : pyramid.levels) shapes.push_back({level.size(2), level.size(3)});
    for (int64_t level = 0; level < num_levels; ++level)
      for (int64_t k = level - pyramid.reach; k <= level + pyramid.reach; ++k)
        resizes.push_back(resize(k, level, for_backward));
    problem = {static_cast<int32_t>(num_levels), pyramid.reach, pyramid.kernel_size, shapes.data(),
               resizes.data()};
  }
  Tables(const Tables&) = delete;

 private:
  Resize<A> resize(int64_t source, int64_t target, bool for_backward) {
    const auto has_cells = [&](int64_t level) {
      return shapes[level].height > 0 && shapes[level].width > 0;
    };
    const bool exists = source >= 0 && source < static_cast<int64_t>(shapes.size()) &&
                        source != target && has_cells(source) && has_cells(target);
    if (!exists) return {-1, {}, {}, {}};
    axes.emplace_back(shapes[source].height, shapes[target].height);
    axes.emplace_back(shapes[source].width, shapes[target].width);
    const AxisTable<A>& x = axes.back();
    const AxisTable<A>& y = axes[axes.size() - 2];
    if (for_backward) adjoints.emplace_back(x, shapes[source].width);
    return {static_cast<int32_t>(source), y.view(), x.view(),
            for_backward ? adjoints.back().view() : Adjoint<A>{}};
  }
};

}  // namespace defcn_d2::cpu
