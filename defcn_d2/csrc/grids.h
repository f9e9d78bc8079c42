// The arguments of overlap_with_better, checked; shared by CPU and CUDA.
#pragma once

#include "pyramid.h"

namespace defcn_d2 {

// A level's cells among those of an image, row by row.
struct Grid {
  int64_t height, width, first;
};

struct Grids {
  Tensor boxes;  // float32 or float64
  std::vector<Grid> levels;
  int64_t batch, cells, classes;
  int64_t reach;  // levels looked at on each side

  Grids(const Tensor& logits, const Tensor& given_boxes, const std::vector<int64_t>& heights,
        const std::vector<int64_t>& widths, int64_t tau)
      : boxes(given_boxes) {
    STD_TORCH_CHECK(tau == 0 || tau == 2, "tau must be 0 or 2, got ", tau);
    STD_TORCH_CHECK(logits.dim() == 3, "logits must be (N, R, K), got ", logits.dim(),
                    " dimensions");
    batch = logits.size(0);
    cells = logits.size(1);
    classes = logits.size(2);
    STD_TORCH_CHECK(boxes.dim() == 3 && boxes.size(0) == batch && boxes.size(1) == cells &&
                        boxes.size(2) == 4,
                    "boxes must be (N, R, 4) with the N and R of logits, (", batch, ", ", cells,
                    ")");
    STD_TORCH_CHECK(logits.device() == boxes.device(), "logits and boxes must be on one device");
    STD_TORCH_CHECK(is_floating(logits) && is_floating(boxes),
                    "logits and boxes must be float32, float64, float16 or bfloat16");
    STD_TORCH_CHECK(cells <= int64_t(1) << 30, "there are too many cells: ", cells);
    add_levels(heights, widths);
    reach = tau / 2;
    if (boxes.scalar_type() != ScalarType::Float && boxes.scalar_type() != ScalarType::Double)
      boxes = torch::stable::to(boxes, ScalarType::Float);
  }

  Tensor new_overlaps(const Tensor& logits) const {  // uninitialised
    return torch::stable::empty(logits.sizes(), logits.scalar_type(), std::nullopt,
                                logits.device(), std::nullopt, MemoryFormat::Contiguous);
  }

  bool empty() const { return batch == 0 || cells == 0 || classes == 0; }

 private:
  void add_levels(const std::vector<int64_t>& heights, const std::vector<int64_t>& widths) {
    STD_TORCH_CHECK(heights.size() == widths.size(), "there are ", heights.size(),
                    " heights of levels and ", widths.size(), " widths");
    int64_t first = 0;
    for (size_t index = 0; index < heights.size(); ++index) {
      const Grid level{heights[index], widths[index], first};
      STD_TORCH_CHECK(std::min(level.height, level.width) >= 0 &&
                          std::max(level.height, level.width) <= int64_t(1) << 30,
                      "level ", index, " cannot be ", level.height, " x ", level.width);
      STD_TORCH_CHECK(index == 0 || (level.height == (heights[index - 1] + 1) / 2 &&
                                     level.width == (widths[index - 1] + 1) / 2),
                      "level ", index, " is ", level.height, " x ", level.width,
                      ", but must have half the rows and columns of the level before, rounded up");
      levels.push_back(level);
      first += level.height * level.width;
    }
    STD_TORCH_CHECK(first == cells, "the levels have ", first, " cells, but logits ", cells);
  }
};

}  // namespace defcn_d2
