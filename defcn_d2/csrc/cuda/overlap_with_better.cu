// The CUDA implementation of overlap_with_better: one launch for all levels.
#include <torch/csrc/stable/library.h>

#include "../grids.h"
#include "device.h"
#include "overlap.cuh"

namespace defcn_d2::cuda {
namespace {

template <typename Block>
__global__ void __launch_bounds__(Block::kThreads)
    overlap_kernel(const __grid_constant__ OverlapLaunch launch) {
  __shared__ typename Block::Shared shared;
  const Block block(launch, blockIdx.x, shared);
  const int32_t thread = threadIdx.x;
  block.clear(thread);
  __syncthreads();
  block.find(thread);
  __syncthreads();
  block.compare(thread);
}

OverlapLaunch launch_of(const Grids& grids, const Tensor& logits, const Tensor& overlaps) {
  STD_TORCH_CHECK(grids.levels.size() <= kMaxLevels, "on CUDA there may be at most ", kMaxLevels,
                  " levels, got ", grids.levels.size());
  STD_TORCH_CHECK(grids.classes <= 1 << 24, "there are too many classes: ", grids.classes);
  OverlapLaunch launch{};
  for (size_t index = 0; index < grids.levels.size(); ++index)
    launch.levels[index] = {static_cast<int32_t>(grids.levels[index].height),
                            static_cast<int32_t>(grids.levels[index].width),
                            static_cast<int32_t>(grids.levels[index].first)};
  launch.logits = logits.data_ptr();
  launch.boxes = grids.boxes.data_ptr();
  launch.overlaps = overlaps.data_ptr();
  for (int64_t dim = 0; dim < 3; ++dim) {
    launch.logit_strides[dim] = logits.stride(dim);
    launch.box_strides[dim] = grids.boxes.stride(dim);
  }
  launch.classes = static_cast<int32_t>(grids.classes);
  launch.num_levels = static_cast<int32_t>(grids.levels.size());
  launch.reach = static_cast<int32_t>(grids.reach);
  launch.cells = static_cast<int32_t>(grids.cells);
  return launch;
}

template <typename T, typename A>
void run(OverlapLaunch launch, int64_t batch, cudaStream_t stream) {
  using Block = OverlapBlock<T, Compute<T>, A>;
  launch.blocks_per_image = (launch.cells + Block::kCells - 1) / Block::kCells;
  const int64_t blocks = batch * launch.blocks_per_image;
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(),
                  "the images are too many for one launch: ", blocks, " blocks");
  overlap_kernel<Block><<<static_cast<unsigned>(blocks), Block::kThreads, 0, stream>>>(launch);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor overlap_with_better(Tensor logits, Tensor boxes, std::vector<int64_t> heights,
                           std::vector<int64_t> widths, int64_t tau) {
  const OnDevice on(logits);
  const Grids grids(logits, boxes, heights, widths, tau);
  Tensor overlaps = grids.new_overlaps(logits);
  if (grids.empty()) return overlaps;
  const OverlapLaunch launch = launch_of(grids, logits, overlaps);
  with_dtype(logits.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (grids.boxes.scalar_type() == ScalarType::Double)
      run<T, double>(launch, grids.batch, on.stream);
    else
      run<T, float>(launch, grids.batch, on.stream);
  });
  return overlaps;
}

}  // namespace
}  // namespace defcn_d2::cuda

STABLE_TORCH_LIBRARY_IMPL(defcn_d2, CUDA, m) {
  m.impl("overlap_with_better", TORCH_BOX(&defcn_d2::cuda::overlap_with_better));
}
