// Host side: cuts a pyramid into the launches of one call (a single one up to kMaxLevels levels).
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "launch.h"

namespace defcn_d2::cuda {

struct LevelMemory {
  const void* source;
  void* target;
  void* codes;
  int64_t height, width;
};

template <typename TileOf>
std::vector<Launch> plan(const std::vector<LevelMemory>& levels, int64_t batch, int64_t channels,
                         int32_t reach, int32_t kernel_size, bool wide_codes) {
  const int64_t count = static_cast<int64_t>(levels.size());
  const int64_t step = count <= kMaxLevels ? count : kMaxLevels - 2 * int64_t(reach);
  std::vector<Launch> launches;
  for (int64_t begin = 0; step > 0 && begin < count; begin += step) {
    const int64_t end = std::min(begin + step, count);
    const int64_t table_begin = std::max<int64_t>(begin - reach, 0);
    const int64_t table_end = std::min(end + reach, count);
    Launch launch{};
    int64_t tiles = 0;
    for (int64_t index = table_begin; index < table_end; ++index) {
      const LevelMemory& level = levels[index];
      LevelEntry& entry = launch.levels[index - table_begin];
      const int64_t tiles_x = (level.width + TileOf::kColumns - 1) / TileOf::kColumns;
      const int64_t tiles_y = (level.height + TileOf::kRows - 1) / TileOf::kRows;
      entry = {level.source,
               level.target,
               level.codes,
               static_cast<int32_t>(level.height),
               static_cast<int32_t>(level.width),
               static_cast<int32_t>(tiles_x),
               static_cast<int32_t>(tiles)};
      if (begin <= index && index < end) tiles += tiles_x * tiles_y;
    }
    launch.tiles_per_group = static_cast<int32_t>(tiles);
    launch.groups_per_image =
        static_cast<int32_t>((channels + TileOf::kLanes - 1) / TileOf::kLanes);
    launch.tiles = tiles * launch.groups_per_image * batch;
    launch.channels = static_cast<int32_t>(channels);
    launch.num_levels = static_cast<int32_t>(table_end - table_begin);
    launch.first_level = static_cast<int32_t>(begin - table_begin);
    launch.last_level = static_cast<int32_t>(end - 1 - table_begin);
    launch.reach = reach;
    launch.kernel_size = kernel_size;
    launch.wide_codes = wide_codes;
    if (launch.tiles > 0) launches.push_back(launch);
  }
  return launches;
}

}  // namespace defcn_d2::cuda
