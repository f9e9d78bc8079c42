// What the host tells the kernels, and how a block's threads share a tile. Also compiled by a plain
// C++ compiler: tests/support/cuda_emulation.cpp runs the kernels' phases thread after thread.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DEFCN_D2_DEVICE __device__ __forceinline__
#else
#define DEFCN_D2_DEVICE inline
#endif

namespace defcn_d2::cuda {

// The table travels as a kernel argument (4 KiB): no copy to the device, nothing to keep alive.
constexpr int32_t kMaxLevels = 64;

struct LevelEntry {
  const void* source;  // forward: input;  backward: gradient of the output
  void* target;        // forward: output; backward: gradient of the input
  void* codes;         // nullptr in inference
  int32_t height, width;
  int32_t tiles_x;     // tiles in a row of tiles of this level
  int32_t first_tile;  // of the tiles of one group of channels; levels without own work have none
};

struct Launch {
  LevelEntry levels[kMaxLevels];
  int64_t tiles;            // of all groups of channels
  int32_t tiles_per_group;  // over the levels that this launch writes
  int32_t groups_per_image;
  int32_t channels;
  int32_t num_levels;
  int32_t first_level, last_level;  // levels written; the others are their neighbours
  int32_t reach, kernel_size;
  bool wide_codes;  // int32, else uint8
};

// kLanes channels beside each other (1: contiguous, 32: channels_last), kColumns columns, and
// kStrips strips of kRun rows. A thread owns one lane of one column of one strip.
template <int kLanesOf>
struct Tile;
template <>
struct Tile<1> {
  static constexpr int kLanes = 1, kColumns = 32, kStrips = 4, kRun = 4;
  static constexpr int kThreads = kLanes * kColumns * kStrips, kRows = kStrips * kRun;
  // Gradient cells held at a time: those of a level twice as fine fit at once.
  static constexpr int kHeldRows = 2 * kRows + 4, kHeldColumns = 2 * kColumns + 4;
};
template <>
struct Tile<32> {
  static constexpr int kLanes = 32, kColumns = 8, kStrips = 1, kRun = 8;
  static constexpr int kThreads = kLanes * kColumns * kStrips, kRows = kStrips * kRun;
  static constexpr int kHeldRows = 12, kHeldColumns = 12;
};

// Where a block works.
struct Place {
  int32_t level;
  int32_t y, x;  // first row and column of the tile
  int64_t image;
  int32_t channel;  // first channel of the group
};

template <typename TileOf>
DEFCN_D2_DEVICE Place place_of(const Launch& launch, int64_t tile) {
  const int64_t group = tile / launch.tiles_per_group;
  const int32_t within = static_cast<int32_t>(tile % launch.tiles_per_group);
  Place place;
  place.level = launch.first_level;
  while (place.level < launch.last_level && within >= launch.levels[place.level + 1].first_tile)
    ++place.level;
  const LevelEntry& level = launch.levels[place.level];
  const int32_t tile_of_level = within - level.first_tile;
  place.y = tile_of_level / level.tiles_x * TileOf::kRows;
  place.x = tile_of_level % level.tiles_x * TileOf::kColumns;
  place.image = group / launch.groups_per_image;
  place.channel = static_cast<int32_t>(group % launch.groups_per_image) * TileOf::kLanes;
  return place;
}

// Where one channel of one image lies in memory, in elements; 64 bits, since a tensor may have more
// than 2^31 of them.
template <int kLanes>
struct Map {
  int64_t first, row;
  int32_t pixel;

  DEFCN_D2_DEVICE Map(const LevelEntry& level, const Launch& launch, int64_t image, int32_t channel)
      : row(int64_t(level.width) * (kLanes == 1 ? 1 : launch.channels)),
        pixel(kLanes == 1 ? 1 : launch.channels) {
    const int64_t cells = int64_t(level.height) * level.width;
    first = image * launch.channels * cells + (kLanes == 1 ? channel * cells : channel);
  }
  DEFCN_D2_DEVICE int64_t at(int32_t y, int32_t x) const {
    return first + y * row + int64_t(x) * pixel;
  }
};

// Linear interpolation along one axis, from `source` cells to `target` cells: where PyTorch's
// bilinear resize (align_corners=False) reads, computed as on the CPU.
template <typename A>
struct Stretch {
  int32_t source, target;
  A scale;

  DEFCN_D2_DEVICE Stretch(int32_t from, int32_t to)
      : source(from), target(to), scale(static_cast<A>(from) / static_cast<A>(to)) {}

  DEFCN_D2_DEVICE A position(int32_t i) const {
    const A position = scale * (static_cast<A>(i) + A(0.5)) - A(0.5);
    return position > A(0) ? position : A(0);
  }
  DEFCN_D2_DEVICE int32_t low(int32_t i) const {
    const int32_t cell = static_cast<int32_t>(position(i));
    return cell < source - 1 ? cell : source - 1;
  }
  DEFCN_D2_DEVICE A high_weight(int32_t i) const {
    const A weight = position(i) - static_cast<A>(low(i));
    return weight < A(1) ? weight : A(1);
  }
  DEFCN_D2_DEVICE int32_t high(int32_t i) const {
    const int32_t cell = low(i);
    return cell < source - 1 ? cell + 1 : cell;
  }
  // How much target cell i reads from source cell s.
  DEFCN_D2_DEVICE A weight(int32_t i, int32_t s) const {
    const A weight = high_weight(i);
    return (low(i) == s ? A(1) - weight : A(0)) + (high(i) == s ? weight : A(0));
  }

  // First target cell that reads source cell s or a later one, and one past the last that reads s
  // or an earlier one. low() never decreases: start near and walk.
  DEFCN_D2_DEVICE int32_t begin(int32_t s) const { return first_with_low(s - 1); }
  DEFCN_D2_DEVICE int32_t end(int32_t s) const { return first_with_low(s + 1); }

 private:
  DEFCN_D2_DEVICE int32_t first_with_low(int32_t s) const {
    if (s <= 0) return 0;
    if (s >= source) return target;
    A guess = (static_cast<A>(s) + A(0.5)) / scale - A(0.5);
    guess = guess < static_cast<A>(target) ? guess : static_cast<A>(target);
    int32_t i = static_cast<int32_t>(guess);
    while (i > 0 && low(i - 1) >= s) --i;
    while (i < target && low(i) < s) ++i;
    return i;
  }
};

template <typename A>
DEFCN_D2_DEVICE bool wins(A challenger, A best) {
  return challenger > best || challenger != challenger;
}

DEFCN_D2_DEVICE int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

DEFCN_D2_DEVICE int32_t greatest(int32_t a, int32_t b) { return a > b ? a : b; }

}  // namespace defcn_d2::cuda
