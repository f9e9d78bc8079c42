// Forward kernel: a block writes one tile of one level for one group of channels.
#pragma once

#include "launch.h"

namespace defcn_d2::cuda {

// One block. The phases are separated by barriers:
//   for each neighbour: tabulate | fill | (codes: reduce), then (inference: reduce), store
template <typename T, typename A, int kLanes, bool kCodes>
struct ForwardBlock {
  using TileOf = Tile<kLanes>;

  // What a thread keeps from phase to phase.
  struct Thread {
    A best[TileOf::kRun];
    int32_t code[TileOf::kRun];
    bool begun = false;
  };

  const Launch& launch;
  const Place place;
  const LevelEntry& level;
  const int32_t kernel_size, padding;
  const int32_t rows, columns;  // of the tile and its border
  A* cells;                     // shared: [rows][columns][kLanes]
  A* y_weight;                  // shared: [rows], of the higher source row
  A* x_weight;                  // shared: [columns]
  int32_t* y_low;
  int32_t* x_low;

  static constexpr int64_t shared_bytes(int64_t kernel_size) {
    const int64_t rows = TileOf::kRows + kernel_size - 1;
    const int64_t columns = TileOf::kColumns + kernel_size - 1;
    return (rows * columns * kLanes + rows + columns) * int64_t(sizeof(A)) + (rows + columns) * 4;
  }

  DEFCN_D2_DEVICE ForwardBlock(const Launch& of, int64_t tile, char* shared)
      : launch(of),
        place(place_of<TileOf>(of, tile)),
        level(of.levels[place.level]),
        kernel_size(of.kernel_size),
        padding(of.kernel_size / 2),
        rows(TileOf::kRows + of.kernel_size - 1),
        columns(TileOf::kColumns + of.kernel_size - 1),
        cells(reinterpret_cast<A*>(shared)),
        y_weight(cells + rows * columns * kLanes),
        x_weight(y_weight + rows),
        y_low(reinterpret_cast<int32_t*>(x_weight + columns)),
        x_low(y_low + rows) {}

  DEFCN_D2_DEVICE int32_t slots() const { return 2 * launch.reach + 1; }

  // Whether the neighbour of this slot exists. The same for all threads of a block.
  DEFCN_D2_DEVICE bool has(int32_t slot) const {
    const int32_t k = place.level + slot - launch.reach;
    return k >= 0 && k < launch.num_levels && launch.levels[k].height > 0 &&
           launch.levels[k].width > 0;
  }

  // Interpolation tables of the tile's rows and columns.
  DEFCN_D2_DEVICE void tabulate(int32_t thread, int32_t slot) const {
    if (slot == launch.reach) return;
    const LevelEntry& neighbour = launch.levels[place.level + slot - launch.reach];
    const Stretch<A> along_y(neighbour.height, level.height);
    const Stretch<A> along_x(neighbour.width, level.width);
    for (int32_t row = thread; row < rows; row += TileOf::kThreads) {
      const int32_t y = greatest(least(place.y + row - padding, level.height - 1), 0);
      y_low[row] = along_y.low(y);
      y_weight[row] = along_y.high_weight(y);
    }
    for (int32_t column = thread; column < columns; column += TileOf::kThreads) {
      const int32_t x = greatest(least(place.x + column - padding, level.width - 1), 0);
      x_low[column] = along_x.low(x);
      x_weight[column] = along_x.high_weight(x);
    }
  }

  // The neighbour's values at this level's size; in inference their maximum with those before.
  DEFCN_D2_DEVICE void fill(int32_t thread, int32_t slot, bool first) const {
    const int32_t lane = thread % kLanes;
    if (place.channel + lane >= launch.channels) return;
    const LevelEntry& neighbour = launch.levels[place.level + slot - launch.reach];
    const T* in = static_cast<const T*>(neighbour.source);
    const Map<kLanes> map(neighbour, launch, place.image, place.channel + lane);
    for (int32_t i = thread / kLanes; i < rows * columns; i += TileOf::kThreads / kLanes) {
      const int32_t row = i / columns, column = i % columns;
      const int32_t y = place.y + row - padding, x = place.x + column - padding;
      if (y < 0 || y >= level.height || x < 0 || x >= level.width) continue;
      const A value = slot == launch.reach ? static_cast<A>(in[map.at(y, x)])
                                           : interpolate(in, map, neighbour, row, column);
      A& cell = cells[i * kLanes + lane];
      if (kCodes || first || wins(value, cell)) cell = value;
    }
  }

  // Running maximum over the window, in the order slot, row, column.
  DEFCN_D2_DEVICE void reduce(int32_t thread, int32_t slot, Thread& state) const {
    const int32_t lane = thread % kLanes, column = thread / kLanes % TileOf::kColumns;
    const int32_t strip = thread / (kLanes * TileOf::kColumns) * TileOf::kRun;
    const int32_t x = place.x + column;
    if (x >= level.width || place.channel + lane >= launch.channels) return;
    const int32_t first_tap = greatest(padding - x, 0);
    const int32_t last_tap = least(kernel_size - 1, level.width - 1 - x + padding);
    const int32_t window_rows = TileOf::kRun + kernel_size - 1;
    for (int32_t row = 0; row < window_rows; ++row) {
      const int32_t y = place.y + strip + row - padding;
      if (y < 0 || y >= level.height) continue;
      const A* cell = cells + ((strip + row) * columns + column) * kLanes + lane;
      int32_t winner = first_tap;
      A row_best = cell[first_tap * kLanes];
      for (int32_t tap = first_tap + 1; tap <= last_tap; ++tap) {
        const A value = cell[tap * kLanes];
        if (!wins(value, row_best)) continue;
        row_best = value;
        winner = tap;
      }
#pragma unroll
      for (int32_t run = 0; run < TileOf::kRun; ++run) {
        const int32_t tap_y = row - run;  // this row's place in the window of output `run`
        if (tap_y < 0 || tap_y >= kernel_size) continue;
        const bool opens = !state.begun && (tap_y == 0 || y == 0);
        if (!opens && !wins(row_best, state.best[run])) continue;
        state.best[run] = row_best;
        if (kCodes) state.code[run] = (slot * kernel_size + tap_y) * kernel_size + winner;
      }
    }
    state.begun = true;
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
      const int64_t at = map.at(y, x);
      static_cast<T*>(level.target)[at] = static_cast<T>(state.best[run]);
      if (!kCodes) continue;
      if (launch.wide_codes)
        static_cast<int32_t*>(level.codes)[at] = state.code[run];
      else
        static_cast<uint8_t*>(level.codes)[at] = static_cast<uint8_t>(state.code[run]);
    }
  }

 private:
  DEFCN_D2_DEVICE A interpolate(const T* in, const Map<kLanes>& map, const LevelEntry& neighbour,
                                int32_t row, int32_t column) const {
    const int32_t y = y_low[row], x = x_low[column];
    const int32_t next_y = least(y + 1, neighbour.height - 1);
    const int32_t next_x = least(x + 1, neighbour.width - 1);
    const A weight_y = y_weight[row], weight_x = x_weight[column];
    const A low = (A(1) - weight_x) * static_cast<A>(in[map.at(y, x)]) +
                  weight_x * static_cast<A>(in[map.at(y, next_x)]);
    const A high = (A(1) - weight_x) * static_cast<A>(in[map.at(next_y, x)]) +
                   weight_x * static_cast<A>(in[map.at(next_y, next_x)]);
    return (A(1) - weight_y) * low + weight_y * high;
  }
};

}  // namespace defcn_d2::cuda
