// The CPU implementation of overlap_with_better: spreads runs of cells over PyTorch's threads.
#include <torch/csrc/stable/library.h>

#include "../grids.h"
#include "dispatch.h"

namespace defcn_d2::cpu {
namespace {

constexpr int64_t kRun = 64;                    // cells at a time: their logits stay in the cache
constexpr int64_t kComparisonsPerTask = 16384;  // below that a second thread costs more

int64_t grain_for(int64_t per_cell) {
  return std::max<int64_t>(kRun, kComparisonsPerTask / per_cell);
}

// Half precision as float32, and the classes of a cell beside each other.
Tensor comparable(const Tensor& logits) {
  const ScalarType dtype = logits.scalar_type();
  if (dtype == ScalarType::Half || dtype == ScalarType::BFloat16)
    return torch::stable::contiguous(torch::stable::to(logits, ScalarType::Float));
  const bool adjacent = logits.stride(2) == 1 || logits.size(2) == 1;
  return adjacent ? logits : torch::stable::contiguous(logits);
}

// Coordinates and areas of the boxes as planes, (N, 5, R).
template <typename A>
Tensor box_planes(const Tensor& boxes) {
  const int64_t batch = boxes.size(0), cells = boxes.size(1);
  const int64_t by_image = boxes.stride(0), by_cell = boxes.stride(1), by_side = boxes.stride(2);
  const std::array<int64_t, 3> sizes = {batch, 5, cells};
  Tensor planes = torch::stable::empty(sizes, boxes.scalar_type());
  const A* in = static_cast<const A*>(boxes.data_ptr());
  A* out = static_cast<A*>(planes.data_ptr());
  torch::stable::parallel_for(0, batch * cells, grain_for(1), [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; ++cell) {
      const A* box = in + cell / cells * by_image + cell % cells * by_cell;
      A* plane = out + cell / cells * 5 * cells + cell % cells;
      const A x1 = box[0], y1 = box[by_side], x2 = box[2 * by_side], y2 = box[3 * by_side];
      plane[0] = x1;
      plane[cells] = y1;
      plane[2 * cells] = x2;
      plane[3 * cells] = y2;
      plane[4 * cells] = (x2 - x1) * (y2 - y1);
    }
  });
  return planes;
}

// One image: compares the cells of a run, which are in one row, with their neighbours.
template <typename T, typename A>
struct Image {
  const Grids& grids;
  const T* logits;
  int64_t step;    // from cell to cell
  const A* boxes;  // five planes
  T* largest;

  // `count` cells of a level from (row, column) on, and every step-th after it.
  struct Run {
    size_t level;
    int64_t row, column, step;
  };

  int64_t cell(const Run& run) const {
    const Grid& level = grids.levels[run.level];
    return level.first + run.row * level.width + run.column;
  }

  void compare(Run own, Run near, int64_t count, bool first) const {
    const Grid& level = grids.levels[near.level];
    if (near.row < 0 || near.row >= level.height) return;
    if (near.column < 0) {  // by one step at most
      own.column += own.step;
      near.column += near.step;
      --count;
    }
    count = std::min(count, (level.width - near.column + near.step - 1) / near.step);
    if (count <= 0) return;
    const int64_t at = cell(own), near_at = cell(near);
    A computed[kRun];
    kernels_for<A>().overlaps({boxes + at, grids.cells, own.step},
                              {boxes + near_at, grids.cells, near.step}, count, computed);
    T overlaps[kRun];
    for (int64_t i = 0; i < count; ++i) overlaps[i] = static_cast<T>(computed[i]);
    kernels_for<T>().raise({logits + at * step, own.step * step},
                           {logits + near_at * step, near.step * step}, count, grids.classes,
                           first, overlaps, largest + at * grids.classes,
                           own.step * grids.classes);
  }

  void with_own_level(const Run& own, int64_t count) const {
    for (int64_t down = -1; down <= 1; ++down)
      for (int64_t right = -1; right <= 1; ++right)
        if (down != 0 || right != 0)
          compare(own, {own.level, own.row + down, own.column + right, 1}, count,
                  down < 0 || (down == 0 && right < 0));
  }

  void with_finer_level(const Run& own, int64_t count) const {
    for (int64_t down = -1; down <= 2; ++down)
      for (int64_t right = -1; right <= 2; ++right)
        compare(own, {own.level - 1, 2 * own.row + down, 2 * own.column + right, 2}, count, true);
  }

  // Every other cell at a time: those have neighbours beside each other.
  void with_coarser_level(const Run& own, int64_t count) const {
    for (int64_t parity = 0; parity < std::min<int64_t>(2, count); ++parity) {
      const int64_t column = own.column + parity;
      for (int64_t down = -1; down <= 1; ++down)
        for (int64_t right = -1; right <= 1; ++right)
          compare({own.level, own.row, column, 2},
                  {own.level + 1, own.row / 2 + down, column / 2 + right, 1},
                  (count - parity + 1) / 2, false);
    }
  }

  // Up to `limit` cells from a place within the image on; returns how many.
  int64_t run(int64_t place, int64_t limit) const {
    size_t index = grids.levels.size() - 1;
    while (place < grids.levels[index].first) --index;
    const Grid& level = grids.levels[index];
    const int64_t within = place - level.first;
    const Run own = {index, within / level.width, within % level.width, 1};
    const int64_t count = std::min({limit, kRun, level.width - own.column});
    std::fill_n(largest + place * grids.classes, count * grids.classes, T(0));
    with_own_level(own, count);
    if (grids.reach > 0 && index > 0) with_finer_level(own, count);
    if (grids.reach > 0 && index + 1 < grids.levels.size()) with_coarser_level(own, count);
    return count;
  }
};

template <typename T, typename A>
void find_overlaps(const Grids& grids, const Tensor& logits, const Tensor& overlaps) {
  const Tensor planes = box_planes<A>(grids.boxes);
  const T* values = static_cast<const T*>(logits.data_ptr());
  const A* boxes = static_cast<const A*>(planes.data_ptr());
  T* out = static_cast<T*>(overlaps.data_ptr());
  const int64_t by_image = logits.stride(0), by_cell = logits.stride(1), cells = grids.cells;
  torch::stable::parallel_for(
      0, grids.batch * cells, grain_for(grids.classes), [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t index = begin / cells, place = begin % cells;
          const Image<T, A> image = {grids,
                                     values + index * by_image,
                                     by_cell,
                                     boxes + index * 5 * cells,
                                     out + index * cells * grids.classes};
          begin += image.run(place, std::min(end - begin, cells - place));
        }
      });
}

Tensor overlap_with_better(Tensor logits, Tensor boxes, std::vector<int64_t> heights,
                           std::vector<int64_t> widths, int64_t tau) {
  const Grids grids(logits, boxes, heights, widths, tau);
  if (grids.empty()) return grids.new_overlaps(logits);
  const Tensor values = comparable(logits);
  Tensor overlaps = grids.new_overlaps(values);
  const auto find = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (grids.boxes.scalar_type() == ScalarType::Double)
      find_overlaps<T, double>(grids, values, overlaps);
    else
      find_overlaps<T, float>(grids, values, overlaps);
  };
  if (values.scalar_type() == ScalarType::Double)
    find(static_cast<double*>(nullptr));
  else
    find(static_cast<float*>(nullptr));
  return torch::stable::to(overlaps, logits.scalar_type());
}

}  // namespace
}  // namespace defcn_d2::cpu

STABLE_TORCH_LIBRARY_IMPL(defcn_d2, CPU, m) {
  m.impl("overlap_with_better", TORCH_BOX(&defcn_d2::cpu::overlap_with_better));
}
