// The CUDA implementation: one launch for all levels.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <type_traits>

#include "../pyramid.h"
#include "backward.cuh"
#include "device.h"
#include "forward.cuh"
#include "plan.h"

namespace defcn_d2::cuda {
namespace {

constexpr int64_t kCommonSharedBytes = 48 * 1024;  // what every device grants without asking

template <typename T, int kLanes, bool kCodes>
__global__ void __launch_bounds__(Tile<kLanes>::kThreads)
    forward_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(16) char shared[];
  using Block = ForwardBlock<T, Compute<T>, kLanes, kCodes>;
  const Block block(launch, blockIdx.x, shared);
  const int32_t thread = threadIdx.x;
  typename Block::Thread state;
  bool first = true;
  for (int32_t slot = 0; slot < block.slots(); ++slot) {
    if (!block.has(slot)) continue;
    block.tabulate(thread, slot);
    __syncthreads();  // tables ready; cells read by all in the last round
    block.fill(thread, slot, first);
    __syncthreads();  // cells ready; tables read by all
    if (kCodes) block.reduce(thread, slot, state);
    first = false;
  }
  if (!kCodes) block.reduce(thread, 0, state);
  block.store(thread, state);
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(Tile<kLanes>::kThreads)
    backward_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(16) char shared[];
  using Block = BackwardBlock<T, Compute<T>, kLanes>;
  const Block block(launch, blockIdx.x, shared);
  const int32_t thread = threadIdx.x;
  typename Block::Thread state;
  block.start(state);
  for (int32_t k = block.place.level - launch.reach; k <= block.place.level + launch.reach; ++k) {
    if (!block.looks(k)) continue;
    if (k == block.place.level) {
      block.own(thread, state);
      continue;
    }
    const typename Block::Region region = block.region_of(k);
    typename Block::Region piece;
    for (int32_t piece_index = 0; block.piece_of(region, piece_index, piece); ++piece_index) {
      block.collect(thread, k, piece);
      __syncthreads();
      block.spread(thread, k, piece, state);
      __syncthreads();
    }
  }
  block.store(thread, state);
}

template <typename Kernel>
void run(Kernel kernel, const std::vector<Launch>& launches, int64_t threads, int64_t shared_bytes,
         int32_t device, cudaStream_t stream) {
  if (shared_bytes > kCommonSharedBytes) {
    int limit = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    STD_TORCH_CHECK(shared_bytes <= limit, "kernel_size needs ", shared_bytes,
                    " bytes of shared memory, this device has ", limit,
                    "; DEFCN_D2_OPS=off takes PyTorch's operators instead");
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)));
  }
  for (const Launch& launch : launches) {
    STD_TORCH_CHECK(launch.tiles <= std::numeric_limits<int32_t>::max(),
                    "the levels are too large for one launch: ", launch.tiles, " tiles");
    kernel<<<static_cast<unsigned>(launch.tiles), static_cast<unsigned>(threads),
             static_cast<size_t>(shared_bytes), stream>>>(launch);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

template <typename TileOf>
std::vector<Launch> plan_for(const Pyramid& pyramid, const Tensors& targets, const Tensors* codes) {
  std::vector<LevelMemory> memory;
  for (size_t index = 0; index < targets.size(); ++index)
    memory.push_back({pyramid.levels[index].data_ptr(), targets[index].data_ptr(),
                      codes == nullptr ? nullptr : (*codes)[index].data_ptr(),
                      pyramid.levels[index].size(2), pyramid.levels[index].size(3)});
  STD_TORCH_CHECK(memory.size() <= kMaxLevels || 2 * pyramid.reach < kMaxLevels,
                  "on CUDA tau must be below ", kMaxLevels, " where there are more than ",
                  kMaxLevels, " levels");
  STD_TORCH_CHECK(pyramid.channels <= std::numeric_limits<int32_t>::max() - 64,
                  "too many channels: ", pyramid.channels);
  return plan<TileOf>(memory, pyramid.batch, pyramid.channels, pyramid.reach, pyramid.kernel_size,
                      pyramid.wide);
}

template <typename T, int kLanes>
void launch_forward(const Pyramid& pyramid, const Tensors& outputs, const Tensors* codes,
                    const OnDevice& on) {
  using A = Compute<T>;
  const auto launches = plan_for<Tile<kLanes>>(pyramid, outputs, codes);
  const int64_t bytes = ForwardBlock<T, A, kLanes, true>::shared_bytes(pyramid.kernel_size);
  const auto kernel =
      codes == nullptr ? forward_kernel<T, kLanes, false> : forward_kernel<T, kLanes, true>;
  run(kernel, launches, Tile<kLanes>::kThreads, bytes, on.index, on.stream);
}

template <typename T, int kLanes>
void launch_backward(const Pyramid& pyramid, const Tensors& grad_inputs, const Tensors& codes,
                     const OnDevice& on) {
  const auto launches = plan_for<Tile<kLanes>>(pyramid, grad_inputs, &codes);
  run(backward_kernel<T, kLanes>, launches, Tile<kLanes>::kThreads,
      BackwardBlock<T, Compute<T>, kLanes>::shared_bytes(), on.index, on.stream);
}

// A tile of channels_last memory holds 32 channels: with a large window that is more shared memory
// than a device has, and the contiguous kernel takes over.
bool fits_channels_last_tile(const Pyramid& pyramid) {
  const int64_t bytes =
      pyramid.dtype() == ScalarType::Double
          ? ForwardBlock<double, double, 32, true>::shared_bytes(pyramid.kernel_size)
          : ForwardBlock<float, float, 32, true>::shared_bytes(pyramid.kernel_size);
  return bytes <= kCommonSharedBytes;
}

Pyramid forward_pyramid(const Tensors& levels, int64_t tau, int64_t kernel_size) {
  Pyramid pyramid(levels, tau, kernel_size);
  if (pyramid.format == MemoryFormat::ChannelsLast && !fits_channels_last_tile(pyramid)) {
    pyramid.format = MemoryFormat::Contiguous;
    pyramid.levels = in_format(pyramid.levels, pyramid.format);
  }
  return pyramid;
}

Tensors forward(const Pyramid& pyramid, const Tensors* codes, const OnDevice& on) {
  Tensors outputs = pyramid.new_tensors(pyramid.dtype());
  if (!pyramid.empty())
    with_dtype(pyramid.dtype(), [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if (pyramid.format == MemoryFormat::ChannelsLast)
        launch_forward<T, 32>(pyramid, outputs, codes, on);
      else
        launch_forward<T, 1>(pyramid, outputs, codes, on);
    });
  return outputs;
}

Tensors max_filter_3d(Tensors levels, int64_t tau, int64_t kernel_size) {
  STD_TORCH_CHECK(!levels.empty(), "levels must hold at least one tensor");
  const OnDevice on(levels[0]);
  const Pyramid pyramid = forward_pyramid(levels, tau, kernel_size);
  return in_formats_of(levels, pyramid, forward(pyramid, nullptr, on));
}

std::tuple<Tensors, Tensors> max_filter_3d_with_codes(Tensors levels, int64_t tau,
                                                      int64_t kernel_size) {
  STD_TORCH_CHECK(!levels.empty(), "levels must hold at least one tensor");
  const OnDevice on(levels[0]);
  const Pyramid pyramid = forward_pyramid(levels, tau, kernel_size);
  const Tensors codes = pyramid.new_tensors(pyramid.code_dtype());
  Tensors outputs = in_formats_of(levels, pyramid, forward(pyramid, &codes, on));
  return {outputs, in_format(codes, common_format(levels))};
}

Tensors max_filter_3d_backward(Tensors grads, Tensors codes, int64_t tau, int64_t kernel_size) {
  STD_TORCH_CHECK(!grads.empty(), "grads must hold at least one tensor");
  const OnDevice on(grads[0]);
  const Pyramid pyramid = gradient_pyramid(grads, codes, tau, kernel_size);
  Tensors grad_inputs = pyramid.new_tensors(pyramid.dtype());
  if (!pyramid.empty())
    with_dtype(pyramid.dtype(), [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if (pyramid.format == MemoryFormat::ChannelsLast)
        launch_backward<T, 32>(pyramid, grad_inputs, codes, on);
      else
        launch_backward<T, 1>(pyramid, grad_inputs, codes, on);
    });
  return grad_inputs;
}

}  // namespace
}  // namespace defcn_d2::cuda

STABLE_TORCH_LIBRARY_IMPL(defcn_d2, CUDA, m) {
  m.impl("max_filter_3d", TORCH_BOX(&defcn_d2::cuda::max_filter_3d));
  m.impl("max_filter_3d_with_codes", TORCH_BOX(&defcn_d2::cuda::max_filter_3d_with_codes));
  m.impl("max_filter_3d_backward", TORCH_BOX(&defcn_d2::cuda::max_filter_3d_backward));
}
