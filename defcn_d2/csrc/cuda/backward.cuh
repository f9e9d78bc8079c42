// Backward kernel: a block writes one tile of the gradient of one level for one group of channels.
// It gathers, so that no two threads ever add to the same place and the order of the sums is fixed.
#pragma once

#include "launch.h"

namespace defcn_d2::cuda {

// One block. For each level that looks at this one, piece by piece of what the tile's cells were
// interpolated to:  collect | spread  with a barrier after each; then store.
template <typename T, typename A, int kLanes>
struct BackwardBlock {
  using TileOf = Tile<kLanes>;

  struct Thread {
    A sum[TileOf::kRun];
  };

  // The cells of a looking level (at its own size) that read from the tile, and a piece of them.
  struct Region {
    int32_t y_begin, y_end, x_begin, x_end;
  };

  const Launch& launch;
  const Place place;
  const LevelEntry& level;
  const int32_t kernel_size, padding;
  A* held;  // shared: [kHeldRows][kHeldColumns][kLanes]

  static constexpr int64_t shared_bytes() {
    return int64_t(TileOf::kHeldRows) * TileOf::kHeldColumns * kLanes * int64_t(sizeof(A));
  }

  DEFCN_D2_DEVICE BackwardBlock(const Launch& of, int64_t tile, char* shared)
      : launch(of),
        place(place_of<TileOf>(of, tile)),
        level(of.levels[place.level]),
        kernel_size(of.kernel_size),
        padding(of.kernel_size / 2),
        held(reinterpret_cast<A*>(shared)) {}

  DEFCN_D2_DEVICE void start(Thread& state) const {
#pragma unroll
    for (int32_t run = 0; run < TileOf::kRun; ++run) state.sum[run] = A(0);
  }

  DEFCN_D2_DEVICE bool looks(int32_t k) const {
    return k >= 0 && k < launch.num_levels && launch.levels[k].height > 0 &&
           launch.levels[k].width > 0;
  }

  // Same for all threads of a block.
  DEFCN_D2_DEVICE Region region_of(int32_t k) const {
    const Stretch<A> along_y(level.height, launch.levels[k].height);
    const Stretch<A> along_x(level.width, launch.levels[k].width);
    const int32_t last_y = least(place.y + TileOf::kRows, level.height) - 1;
    const int32_t last_x = least(place.x + TileOf::kColumns, level.width) - 1;
    return {along_y.begin(place.y), along_y.end(last_y), along_x.begin(place.x),
            along_x.end(last_x)};
  }

  // The region cut into pieces that fit into shared memory; false past the last one.
  DEFCN_D2_DEVICE bool piece_of(const Region& region, int32_t index, Region& piece) const {
    const int32_t columns = region.x_end - region.x_begin;
    const int32_t pieces_x = (columns + TileOf::kHeldColumns - 1) / TileOf::kHeldColumns;
    if (pieces_x <= 0) return false;
    piece.y_begin = region.y_begin + index / pieces_x * TileOf::kHeldRows;
    piece.x_begin = region.x_begin + index % pieces_x * TileOf::kHeldColumns;
    piece.y_end = least(piece.y_begin + TileOf::kHeldRows, region.y_end);
    piece.x_end = least(piece.x_begin + TileOf::kHeldColumns, region.x_end);
    return piece.y_begin < region.y_end;
  }

  // Gradient of the outputs of this very level that this level won.
  DEFCN_D2_DEVICE void own(int32_t thread, Thread& state) const {
    const int32_t lane = thread % kLanes, column = thread / kLanes % TileOf::kColumns;
    const int32_t strip = thread / (kLanes * TileOf::kColumns) * TileOf::kRun;
    const int32_t x = place.x + column;
    if (x >= level.width || place.channel + lane >= launch.channels) return;
    const Outputs outputs(*this, place.level, lane);
    for (int32_t run = 0; run < TileOf::kRun; ++run)
      if (place.y + strip + run < level.height)
        state.sum[run] += outputs.won_by(place.y + strip + run, x, launch.reach);
  }

  // held = gradient that each cell of the piece won as this level's representative at level k.
  DEFCN_D2_DEVICE void collect(int32_t thread, int32_t k, const Region& piece) const {
    const int32_t lane = thread % kLanes;
    if (place.channel + lane >= launch.channels) return;
    const Outputs outputs(*this, k, lane);
    const int32_t rows = piece.y_end - piece.y_begin, columns = piece.x_end - piece.x_begin;
    for (int32_t i = thread / kLanes; i < rows * columns; i += TileOf::kThreads / kLanes) {
      const int32_t row = i / columns, column = i % columns;
      held[(row * TileOf::kHeldColumns + column) * kLanes + lane] = outputs.won_by(
          piece.y_begin + row, piece.x_begin + column, place.level - k + launch.reach);
    }
  }

  // The transpose of the interpolation, from the piece to the thread's own cells.
  DEFCN_D2_DEVICE void spread(int32_t thread, int32_t k, const Region& piece, Thread& state) const {
    const int32_t lane = thread % kLanes, column = thread / kLanes % TileOf::kColumns;
    const int32_t strip = thread / (kLanes * TileOf::kColumns) * TileOf::kRun;
    const int32_t x = place.x + column;
    if (x >= level.width || place.channel + lane >= launch.channels) return;
    const Stretch<A> along_y(level.height, launch.levels[k].height);
    const Stretch<A> along_x(level.width, launch.levels[k].width);
    const int32_t x_begin = greatest(along_x.begin(x), piece.x_begin);
    const int32_t x_end = least(along_x.end(x), piece.x_end);
#pragma unroll
    for (int32_t run = 0; run < TileOf::kRun; ++run) {
      const int32_t y = place.y + strip + run;
      if (y >= level.height) break;
      const int32_t y_end = least(along_y.end(y), piece.y_end);
      for (int32_t row = greatest(along_y.begin(y), piece.y_begin); row < y_end; ++row) {
        const A* cells =
            held + ((row - piece.y_begin) * TileOf::kHeldColumns - piece.x_begin) * kLanes + lane;
        A sum = A(0);
        for (int32_t i = x_begin; i < x_end; ++i) sum += along_x.weight(i, x) * cells[i * kLanes];
        state.sum[run] += along_y.weight(row, y) * sum;
      }
    }
  }

  DEFCN_D2_DEVICE void store(int32_t thread, const Thread& state) const {
    const int32_t lane = thread % kLanes, column = thread / kLanes % TileOf::kColumns;
    const int32_t strip = thread / (kLanes * TileOf::kColumns) * TileOf::kRun;
    const int32_t x = place.x + column, channel = place.channel + lane;
    if (x >= level.width || channel >= launch.channels) return;
    const Map<kLanes> map(level, launch, place.image, channel);
#pragma unroll
    for (int32_t run = 0; run < TileOf::kRun; ++run) {
      const int32_t y = place.y + strip + run;
      if (y >= level.height) return;
      static_cast<T*>(level.target)[map.at(y, x)] = static_cast<T>(state.sum[run]);
    }
  }

 private:
  // Gradients and codes of the outputs of level k.
  struct Outputs {
    const T* gradient;
    const void* codes;
    const Map<kLanes> map;
    const int32_t height, width, kernel_size, padding;
    const bool wide;

    DEFCN_D2_DEVICE Outputs(const BackwardBlock& block, int32_t k, int32_t lane)
        : gradient(static_cast<const T*>(block.launch.levels[k].source)),
          codes(block.launch.levels[k].codes),
          map(block.launch.levels[k], block.launch, block.place.image, block.place.channel + lane),
          height(block.launch.levels[k].height),
          width(block.launch.levels[k].width),
          kernel_size(block.kernel_size),
          padding(block.padding),
          wide(block.launch.wide_codes) {}

    DEFCN_D2_DEVICE int32_t code(int64_t at) const {
      return wide ? static_cast<const int32_t*>(codes)[at]
                  : static_cast<int32_t>(static_cast<const uint8_t*>(codes)[at]);
    }

    // Sum of the gradients of the outputs whose winner is cell (y, x) in the given slot.
    DEFCN_D2_DEVICE A won_by(int32_t y, int32_t x, int32_t slot) const {
      A sum = A(0);
      const int32_t last_y = least(y + padding, height - 1), last_x = least(x + padding, width - 1);
      for (int32_t at_y = greatest(y - padding, 0); at_y <= last_y; ++at_y) {
        const int32_t base = (slot * kernel_size + y - at_y + padding) * kernel_size + x + padding;
        for (int32_t at_x = greatest(x - padding, 0); at_x <= last_x; ++at_x)
          if (code(map.at(at_y, at_x)) == base - at_x)
            sum += static_cast<A>(gradient[map.at(at_y, at_x)]);
      }
      return sum;
    }
  };
};

}  // namespace defcn_d2::cuda
