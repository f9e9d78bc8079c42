// Kernel of overlap_with_better: a block has kCells consecutive cells of an image.
#pragma once

#include "launch.h"

namespace defcn_d2::cuda {

struct GridLevel {
  int32_t height, width, first;  // first cell among those of an image
};

struct OverlapLaunch {
  GridLevel levels[kMaxLevels];
  const void* logits;
  const void* boxes;
  void* overlaps;  // contiguous
  int64_t logit_strides[3], box_strides[3];
  int32_t classes;
  int32_t num_levels, reach;
  int32_t cells, blocks_per_image;
};

// Phases, with a barrier after each but the last:  clear | find | compare.
template <typename T, typename C, typename A>
struct OverlapBlock {
  static constexpr int32_t kCells = 32, kThreads = 128;
  // Places to look at: 3 x 3 on the own level, 3 x 3 on the coarser one, 4 x 4 on the finer one.
  static constexpr int32_t kOwn = 9, kCoarser = 9, kPlaces = kOwn + kCoarser + 16;

  struct Shared {
    int32_t count[kCells];             // neighbours whose boxes overlap the cell's
    int32_t near[kCells][kPlaces - 1];  // which, in no particular order
    C overlap[kCells][kPlaces - 1];     // how much
  };

  struct Box {
    A x1, y1, x2, y2;

    DEFCN_D2_DEVICE A area() const { return (x2 - x1) * (y2 - y1); }
  };

  const OverlapLaunch& launch;
  const int64_t image;
  const int32_t first;  // cell
  Shared& shared;

  DEFCN_D2_DEVICE OverlapBlock(const OverlapLaunch& of, int64_t block, Shared& memory)
      : launch(of),
        image(block / of.blocks_per_image),
        first(static_cast<int32_t>(block % of.blocks_per_image) * kCells),
        shared(memory) {}

  DEFCN_D2_DEVICE void clear(int32_t thread) const {
    if (thread < kCells) shared.count[thread] = 0;
  }

  // The threads of a warp look at one place, each for its own cell: their reads are neighbours.
  DEFCN_D2_DEVICE void find(int32_t thread) const {
    const int32_t within = thread % kCells, cell = first + within;
    if (cell >= launch.cells) return;
    int32_t level = launch.num_levels - 1;
    while (cell < launch.levels[level].first) --level;
    const int32_t row = (cell - launch.levels[level].first) / launch.levels[level].width;
    const int32_t column = (cell - launch.levels[level].first) % launch.levels[level].width;
    const Box own = box(cell);
    for (int32_t place = thread / kCells; place < kPlaces; place += kThreads / kCells) {
      const int32_t near = neighbour(level, row, column, place);
      if (near < 0 || near == cell) continue;
      const C overlap = static_cast<C>(iou(own, box(near)));
      if (overlap == 0) continue;
      const int32_t index = take(shared.count[within]);
      shared.near[within][index] = near;
      shared.overlap[within][index] = overlap;
    }
  }

  // The threads of a warp compare classes beside each other.
  DEFCN_D2_DEVICE void compare(int32_t thread) const {
    const int32_t entries = least(kCells, launch.cells - first) * launch.classes;
    T* out = static_cast<T*>(launch.overlaps) + (image * launch.cells + first) * launch.classes;
    for (int32_t entry = thread; entry < entries; entry += kThreads) {
      const int32_t within = entry / launch.classes, k = entry % launch.classes;
      const int32_t cell = first + within, count = shared.count[within];
      const C own = logit(cell, k);
      C largest = 0;
      for (int32_t i = 0; i < count; ++i) {
        const C overlap = shared.overlap[within][i];
        if (overlap <= largest) continue;
        const int32_t near = shared.near[within][i];
        const C other = logit(near, k);
        if (near < cell ? other >= own : other > own) largest = overlap;  // equal: the first
      }
      out[entry] = static_cast<T>(largest);
    }
  }

 private:
  // The cell at a place around another, or -1.
  DEFCN_D2_DEVICE int32_t neighbour(int32_t level, int32_t row, int32_t column,
                                    int32_t place) const {
    if (place < kOwn) {
      row += place / 3 - 1;
      column += place % 3 - 1;
    } else if (place < kOwn + kCoarser) {
      level += 1;
      row = row / 2 + (place - kOwn) / 3 - 1;
      column = column / 2 + (place - kOwn) % 3 - 1;
    } else {
      level -= 1;
      row = 2 * row + (place - kOwn - kCoarser) / 4 - 1;
      column = 2 * column + (place - kOwn - kCoarser) % 4 - 1;
    }
    if (place >= kOwn && (launch.reach == 0 || level < 0 || level >= launch.num_levels)) return -1;
    const GridLevel& grid = launch.levels[level];
    if (row < 0 || row >= grid.height || column < 0 || column >= grid.width) return -1;
    return grid.first + row * grid.width + column;
  }

  DEFCN_D2_DEVICE Box box(int32_t cell) const {
    const A* at = static_cast<const A*>(launch.boxes) + image * launch.box_strides[0] +
                  cell * launch.box_strides[1];
    const int64_t side = launch.box_strides[2];
    return {at[0], at[side], at[2 * side], at[3 * side]};
  }

  DEFCN_D2_DEVICE C logit(int32_t cell, int32_t k) const {
    return static_cast<C>(
        static_cast<const T*>(launch.logits)[image * launch.logit_strides[0] +
                                             cell * launch.logit_strides[1] +
                                             k * launch.logit_strides[2]]);
  }

  // A NaN among the corners may be lost in the comparisons: it is in the area as well.
  DEFCN_D2_DEVICE A iou(const Box& a, const Box& b) const {
    const A width = (a.x2 < b.x2 ? a.x2 : b.x2) - (a.x1 > b.x1 ? a.x1 : b.x1);
    const A height = (a.y2 < b.y2 ? a.y2 : b.y2) - (a.y1 > b.y1 ? a.y1 : b.y1);
    const A inter = (width > 0 ? width : A(0)) * (height > 0 ? height : A(0));
    const A both = a.area() + b.area() - inter;
    return both > 0 ? inter / both : A(0);
  }

  // Returns a counter and adds one to it.
  static DEFCN_D2_DEVICE int32_t take(int32_t& counter) {
#ifdef __CUDA_ARCH__
    return atomicAdd(&counter, 1);
#else
    return counter++;
#endif
  }
};

}  // namespace defcn_d2::cuda
