// Runs the CUDA kernels on the CPU: the phases between two barriers thread after thread, so that
// the index arithmetic is tested where there is no GPU. The order of the threads can be reversed:
// within a phase it must not matter. Built and called by tests/test_ops_cuda_emulation.py.
#include <vector>

#include "../../defcn_d2/csrc/cuda/backward.cuh"
#include "../../defcn_d2/csrc/cuda/forward.cuh"
#include "../../defcn_d2/csrc/cuda/overlap.cuh"
#include "../../defcn_d2/csrc/cuda/plan.h"

using namespace defcn_d2::cuda;

namespace {

template <typename TileOf, typename Phase>
void for_each_thread(bool reversed, const Phase& phase) {
  for (int i = 0; i < TileOf::kThreads; ++i) phase(reversed ? TileOf::kThreads - 1 - i : i);
}

template <typename A, int kLanes, bool kCodes>
void forward(const std::vector<Launch>& launches, bool reversed) {
  using TileOf = Tile<kLanes>;
  using Block = ForwardBlock<A, A, kLanes, kCodes>;
  for (const Launch& launch : launches)
    for (int64_t tile = 0; tile < launch.tiles; ++tile) {
      std::vector<A> shared(Block::shared_bytes(launch.kernel_size) / sizeof(A) + 1);
      const Block block(launch, tile, reinterpret_cast<char*>(shared.data()));
      std::vector<typename Block::Thread> states(TileOf::kThreads);
      bool first = true;
      for (int32_t slot = 0; slot < block.slots(); ++slot) {
        if (!block.has(slot)) continue;
        for_each_thread<TileOf>(reversed, [&](int t) { block.tabulate(t, slot); });
        for_each_thread<TileOf>(reversed, [&](int t) { block.fill(t, slot, first); });
        if (kCodes)
          for_each_thread<TileOf>(reversed, [&](int t) { block.reduce(t, slot, states[t]); });
        first = false;
      }
      for_each_thread<TileOf>(reversed, [&](int t) {
        if (!kCodes) block.reduce(t, 0, states[t]);
        block.store(t, states[t]);
      });
    }
}

template <typename A, int kLanes>
void backward(const std::vector<Launch>& launches, bool reversed) {
  using TileOf = Tile<kLanes>;
  using Block = BackwardBlock<A, A, kLanes>;
  for (const Launch& launch : launches)
    for (int64_t tile = 0; tile < launch.tiles; ++tile) {
      std::vector<A> shared(Block::shared_bytes() / sizeof(A));
      const Block block(launch, tile, reinterpret_cast<char*>(shared.data()));
      std::vector<typename Block::Thread> states(TileOf::kThreads);
      for (auto& state : states) block.start(state);
      for (int32_t k = block.place.level - launch.reach; k <= block.place.level + launch.reach;
           ++k) {
        if (!block.looks(k)) continue;
        if (k == block.place.level) {
          for_each_thread<TileOf>(reversed, [&](int t) { block.own(t, states[t]); });
          continue;
        }
        const auto region = block.region_of(k);
        typename Block::Region piece;
        for (int32_t index = 0; block.piece_of(region, index, piece); ++index) {
          for_each_thread<TileOf>(reversed, [&](int t) { block.collect(t, k, piece); });
          for_each_thread<TileOf>(reversed, [&](int t) { block.spread(t, k, piece, states[t]); });
        }
      }
      for_each_thread<TileOf>(reversed, [&](int t) { block.store(t, states[t]); });
    }
}

template <typename A, int kLanes>
int run(const std::vector<LevelMemory>& levels, int64_t batch, int64_t channels, int32_t reach,
        int32_t kernel_size, bool wide, bool is_backward, bool reversed) {
  const auto launches = plan<Tile<kLanes>>(levels, batch, channels, reach, kernel_size, wide);
  if (is_backward)
    backward<A, kLanes>(launches, reversed);
  else if (levels[0].codes == nullptr)
    forward<A, kLanes, false>(launches, reversed);
  else
    forward<A, kLanes, true>(launches, reversed);
  return static_cast<int>(launches.size());
}

template <typename Block>
void overlap(OverlapLaunch launch, int64_t batch, bool reversed) {
  launch.blocks_per_image = (launch.cells + Block::kCells - 1) / Block::kCells;
  for (int64_t index = 0; index < batch * launch.blocks_per_image; ++index) {
    typename Block::Shared shared;
    const Block block(launch, index, shared);
    for_each_thread<Block>(reversed, [&](int t) { block.clear(t); });
    for_each_thread<Block>(reversed, [&](int t) { block.find(t); });
    for_each_thread<Block>(reversed, [&](int t) { block.compare(t); });
  }
}

}  // namespace

// overlap_with_better. strides: of logits, then of boxes.
extern "C" void defcn_d2_emulate_overlap(int count, const int64_t* sizes, const void* logits,
                                         const void* boxes, void* out, const int64_t* strides,
                                         int64_t batch, int64_t classes, int reach,
                                         int double_logits, int double_boxes, int reversed) {
  OverlapLaunch launch{};
  for (int i = 0; i < count; ++i) {
    launch.levels[i] = {int32_t(sizes[2 * i]), int32_t(sizes[2 * i + 1]), launch.cells};
    launch.cells += int32_t(sizes[2 * i] * sizes[2 * i + 1]);
  }
  for (int i = 0; i < 3; ++i) {
    launch.logit_strides[i] = strides[i];
    launch.box_strides[i] = strides[3 + i];
  }
  launch.logits = logits;
  launch.boxes = boxes;
  launch.overlaps = out;
  launch.classes = int32_t(classes);
  launch.num_levels = count;
  launch.reach = reach;
  const auto call =
      double_logits
          ? (double_boxes ? overlap<OverlapBlock<double, double, double>>
                          : overlap<OverlapBlock<double, double, float>>)
          : (double_boxes ? overlap<OverlapBlock<float, float, double>>
                          : overlap<OverlapBlock<float, float, float>>);
  call(launch, batch, reversed != 0);
}

// Returns the number of launches. sizes: height and width of each level.
extern "C" int defcn_d2_emulate(int count, const void** sources, void** targets, void** codes,
                                const int64_t* sizes, int64_t batch, int64_t channels, int reach,
                                int kernel_size, int wide, int lanes, int is_double,
                                int is_backward, int reversed) {
  std::vector<LevelMemory> levels;
  for (int i = 0; i < count; ++i)
    levels.push_back({sources[i], targets[i], codes == nullptr ? nullptr : codes[i], sizes[2 * i],
                      sizes[2 * i + 1]});
  const auto call = is_double ? (lanes == 1 ? run<double, 1> : run<double, 32>)
                              : (lanes == 1 ? run<float, 1> : run<float, 32>);
  return call(levels, batch, channels, reach, kernel_size, wide != 0, is_backward != 0,
              reversed != 0);
}
