// What the dispatchers (max_filter_3d.cpp, overlap_with_better.cpp) and the kernels share. Plain
// data only: the kernels are compiled once for each instruction set, and a std template
// instantiated there could be linked into code that runs on an older processor.
#pragma once

#include <cstdint>

namespace defcn_d2::cpu {

// Sizes at which the places that an interpolation reads follow a pattern.
enum class Ratio { kAny, kDouble, kHalf };

// Linear interpolation along one axis: target cell i is
// low_weight[i] * source[low[i]] + high_weight[i] * source[high[i]].
template <typename A>
struct Axis {
  Ratio ratio;
  const int32_t* low;
  const int32_t* high;
  const A* low_weight;
  const A* high_weight;
};

// The transpose of an Axis: source cell i collects sum_t weight[t * size + i] * target[index[...]].
// Missing terms point at the cell after the last target, which holds zero.
template <typename A>
struct Adjoint {
  Ratio ratio;
  const int32_t* index;
  const A* weight;
  int32_t terms;
};

// How level `source` looks at the size of the level it is a neighbour of; source < 0: no neighbour.
template <typename A>
struct Resize {
  int32_t source;
  Axis<A> y, x;
  Adjoint<A> x_adjoint;
};

struct Shape {
  int64_t height, width;
};

template <typename A>
struct Problem {
  int32_t num_levels;
  int32_t reach;        // levels looked at on each side
  int32_t kernel_size;  // cells, odd
  const Shape* shapes;
  const Resize<A>* resizes;  // [level][slot], slot = neighbour - level + reach
};

// `lanes` neighbouring channels of all levels: bases[l] is the first element of level l, the cells
// of a row are `pixel` elements apart, a row follows its predecessor without a gap. Contiguous
// memory has one lane and pixel 1; channels_last has several lanes and pixel C.
template <typename T>
struct Planes {
  T* const* bases;
  int64_t pixel;
  int32_t lanes;
};

// The winner of an output: (slot * kernel_size + row offset) * kernel_size + column offset.
struct CodePlanes {
  void* const* bases;
  int64_t pixel;
  bool wide;  // int32 where a byte cannot tell all candidates apart, else uint8
};

// Boxes of every step-th cell of a row: left, top, right, bottom and area, `plane` elements apart.
template <typename A>
struct BoxRun {
  const A* first;
  int64_t plane, step;
};

// Logits of all classes of some cells of a row, `step` elements from cell to cell.
template <typename T>
struct LogitRun {
  const T* first;
  int64_t step;
};

template <typename A>
struct Kernels {
  void (*forward)(const Problem<A>&, Planes<const A>, Planes<A>, void* scratch);
  void (*forward_codes)(const Problem<A>&, Planes<const A>, Planes<A>, CodePlanes, void* scratch);
  void (*backward)(const Problem<A>&, Planes<const A>, CodePlanes, Planes<A>, void* scratch);
  // overlap_with_better, for boxes and for logits of this precision
  void (*overlaps)(const BoxRun<A>& own, const BoxRun<A>& near, int64_t count, A* overlaps);
  void (*raise)(const LogitRun<A>& own, const LogitRun<A>& near, int64_t count, int64_t classes,
                bool first, const A* overlaps, A* largest, int64_t largest_step);
};

struct KernelSet {
  const char* name;
  Kernels<float> single;
  Kernels<double> twice;
};

extern const KernelSet kernels_baseline;
extern const KernelSet kernels_avx2;
extern const KernelSet kernels_avx512;

}  // namespace defcn_d2::cpu
