// Groups of channels: what one thread works on at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../pyramid.h"
#include "convert.h"
#include "kernels.h"

namespace defcn_d2::cpu {

// Bytes of channels_last memory handled at a time: whole cache lines, and few enough for the rows
// of all levels to stay in the second-level cache. A single line where there are many threads.
constexpr int64_t kGroupBytes = 128, kLineBytes = 64;

// How the channels are cut into groups, and where a group lies in the memory of each level.
struct Groups {
  int64_t channels, lanes, per_image, count, pixel;

  template <typename T>
  static Groups of(const Pyramid& pyramid) {
    const bool last = pyramid.format == MemoryFormat::ChannelsLast;
    Groups groups;
    groups.channels = pyramid.channels;
    const int64_t line_bytes = pyramid.batch * pyramid.channels * int64_t(sizeof(Compute<T>));
    const bool few = line_bytes / kGroupBytes < 2 * int64_t(torch::stable::get_num_threads());
    const int64_t wanted = (few ? kLineBytes : kGroupBytes) / int64_t(sizeof(Compute<T>));
    groups.lanes = last ? std::min(wanted, pyramid.channels) : 1;
    groups.per_image = (pyramid.channels + groups.lanes - 1) / groups.lanes;
    groups.count = groups.per_image * pyramid.batch;
    groups.pixel = last ? pyramid.channels : 1;
    return groups;
  }

  int32_t lanes_of(int64_t group) const {
    return static_cast<int32_t>(std::min(lanes, channels - group % per_image * lanes));
  }
  int64_t offset(int64_t group, int64_t cells) const {
    const int64_t channel = group % per_image * lanes;
    return group / per_image * channels * cells + (pixel == 1 ? channel * cells : channel);
  }
};

// One group of planes of each level, in the precision of the computation: in place, or a copy.
template <typename T>
class GroupPlanes {
  using A = Compute<T>;
  static constexpr bool kCopies = !std::is_same_v<T, A>;

 public:
  GroupPlanes(const Tensors& tensors, const Groups& groups) : tensors_(tensors), groups_(groups) {
    int64_t elements = 0;
    for (const Tensor& tensor : tensors) {
      cells_.push_back(tensor.size(2) * tensor.size(3));
      memory_.push_back(static_cast<T*>(tensor.data_ptr()));
      elements += cells_.back() * groups.lanes;
    }
    if (kCopies) copies_.resize(elements);
    bases_.resize(tensors.size());
  }

  void select(int64_t group) {
    group_ = group;
    lanes_ = groups_.lanes_of(group);
    A* copy = copies_.data();
    for (size_t level = 0; level < bases_.size(); ++level) {
      if constexpr (kCopies) {
        bases_[level] = copy;
        copy += cells_[level] * lanes_;
      } else {
        bases_[level] = place(level);
      }
    }
  }
  void load() {
    if constexpr (kCopies)
      for (size_t level = 0; level < bases_.size(); ++level)
        widen(bases_[level], place(level), cells_[level], groups_.pixel, lanes_);
  }
  void store() {
    if constexpr (kCopies)
      for (size_t level = 0; level < bases_.size(); ++level)
        narrow(place(level), bases_[level], cells_[level], groups_.pixel, lanes_);
  }
  void zero() {
    for (size_t level = 0; level < bases_.size(); ++level) {
      const bool whole = pixel() == lanes_;
      const int64_t runs = whole ? 1 : cells_[level],
                    length = whole ? cells_[level] * lanes_ : lanes_;
      for (int64_t run = 0; run < runs; ++run)
        std::fill_n(bases_[level] + run * pixel(), length, A(0));
    }
  }

  Planes<A> view() const { return {bases_.data(), pixel(), lanes_}; }
  Planes<const A> const_view() const {
    return {const_cast<const A* const*>(bases_.data()), pixel(), lanes_};
  }

 private:
  T* place(size_t level) const { return memory_[level] + groups_.offset(group_, cells_[level]); }
  int64_t pixel() const { return kCopies ? lanes_ : groups_.pixel; }

  const Tensors& tensors_;
  const Groups& groups_;
  int64_t group_ = 0;
  int32_t lanes_ = 0;
  std::vector<int64_t> cells_;
  std::vector<T*> memory_;
  std::vector<A*> bases_;
  std::vector<A> copies_;
};

class GroupCodes {
 public:
  GroupCodes(const Tensors& codes, const Groups& groups, bool wide)
      : codes_(codes), groups_(groups), wide_(wide), bases_(codes.size()) {}

  CodePlanes select(int64_t group) {
    for (size_t level = 0; level < codes_.size(); ++level) {
      const int64_t offset =
          groups_.offset(group, codes_[level].size(2) * codes_[level].size(3)) * (wide_ ? 4 : 1);
      bases_[level] = static_cast<char*>(codes_[level].data_ptr()) + offset;
    }
    return {bases_.data(), groups_.pixel, wide_};
  }

 private:
  const Tensors& codes_;
  const Groups& groups_;
  const bool wide_;
  std::vector<void*> bases_;
};

}  // namespace defcn_d2::cpu
