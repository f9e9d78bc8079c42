// The CPU implementation: spreads groups of channels over PyTorch's threads.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <string>
#include <tuple>

#include "convert.h"
#include "dispatch.h"
#include "tables.h"

namespace defcn_d2::cpu {
namespace {

// Bytes of channels_last memory handled at a time: whole cache lines, and few enough for the rows
// of all levels to stay in the second-level cache.
constexpr int64_t kGroupBytes = 128;
constexpr int64_t kElementsPerTask = 32768;  // below that a second thread costs more than it gains

template <typename A>
const Kernels<A>& kernels_for() {
  if constexpr (std::is_same_v<A, float>)
    return kernels().single;
  else
    return kernels().twice;
}

// Upper bound of what a kernel takes from its scratch memory, over all levels.
template <typename A>
int64_t scratch_bytes(const Pyramid& pyramid, int64_t lanes) {
  int64_t width = 1;
  for (const Tensor& level : pyramid.levels) width = std::max(width, level.size(3));
  const int64_t slots = pyramid.slots(), kernel = pyramid.kernel_size;
  const int64_t row = (width + kernel) * lanes * static_cast<int64_t>(sizeof(A)) + 64;
  return 64 + row * (slots * (2 * kernel + 2) + 5) + slots * 128 +
         (std::max<int64_t>(pyramid.codes(), 256) + 8) * 8;
}

// How the channels are cut into groups, and where a group lies in the memory of each level.
struct Groups {
  int64_t channels, lanes, per_image, count, pixel;

  template <typename T>
  static Groups of(const Pyramid& pyramid) {
    const bool last = pyramid.format == MemoryFormat::ChannelsLast;
    Groups groups;
    groups.channels = pyramid.channels;
    groups.lanes =
        last ? std::min<int64_t>(kGroupBytes / sizeof(Compute<T>), pyramid.channels) : 1;
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
      const int64_t runs = whole ? 1 : cells_[level], length = whole ? cells_[level] * lanes_ : lanes_;
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

// Calls body(group range, scratch memory) on PyTorch's threads.
template <typename T, typename Body>
void for_each_group(const Pyramid& pyramid, const Groups& groups, const Body& body) {
  int64_t elements = 1;
  for (const Tensor& level : pyramid.levels)
    elements += level.size(2) * level.size(3) * groups.lanes;
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / elements);
  const int64_t bytes = scratch_bytes<Compute<T>>(pyramid, groups.lanes);
  torch::stable::parallel_for(0, groups.count, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> memory(new char[bytes + 64]);
    const auto address = reinterpret_cast<uintptr_t>(memory.get());
    body(begin, end, memory.get() + (64 - address % 64) % 64);
  });
}

template <typename T>
void run_forward(const Pyramid& pyramid, const Tensors& outputs, const Tensors* codes) {
  using A = Compute<T>;
  const Tables<A> tables(pyramid, false);
  const Groups groups = Groups::of<T>(pyramid);
  for_each_group<T>(pyramid, groups, [&](int64_t begin, int64_t end, char* scratch) {
    GroupPlanes<T> in(pyramid.levels, groups), out(outputs, groups);
    std::optional<GroupCodes> group_codes;
    if (codes != nullptr) group_codes.emplace(*codes, groups, pyramid.wide);
    for (int64_t group = begin; group < end; ++group) {
      in.select(group);
      in.load();
      out.select(group);
      if (group_codes)
        kernels_for<A>().forward_codes(tables.problem, in.const_view(), out.view(),
                                       group_codes->select(group), scratch);
      else
        kernels_for<A>().forward(tables.problem, in.const_view(), out.view(), scratch);
      out.store();
    }
  });
}

template <typename T>
void run_backward(const Pyramid& grads, const Tensors& codes, const Tensors& grad_inputs) {
  using A = Compute<T>;
  const Tables<A> tables(grads, true);
  const Groups groups = Groups::of<T>(grads);
  for_each_group<T>(grads, groups, [&](int64_t begin, int64_t end, char* scratch) {
    GroupPlanes<T> grad_out(grads.levels, groups), grad_in(grad_inputs, groups);
    GroupCodes group_codes(codes, groups, grads.wide);
    for (int64_t group = begin; group < end; ++group) {
      grad_out.select(group);
      grad_out.load();
      grad_in.select(group);
      grad_in.zero();
      kernels_for<A>().backward(tables.problem, grad_out.const_view(), group_codes.select(group),
                                grad_in.view(), scratch);
      grad_in.store();
    }
  });
}

// Calls run with a null pointer to the element type.
template <typename Run>
void with_dtype(ScalarType dtype, const Run& run) {
  switch (dtype) {
    case ScalarType::Float:
      return run(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return run(static_cast<double*>(nullptr));
    case ScalarType::Half:
      return run(static_cast<torch::headeronly::Half*>(nullptr));
    default:
      return run(static_cast<torch::headeronly::BFloat16*>(nullptr));
  }
}

Tensors forward(const Pyramid& pyramid, const Tensors* codes) {
  Tensors outputs = pyramid.new_tensors(pyramid.dtype());
  if (!pyramid.empty())
    with_dtype(pyramid.dtype(), [&](auto* type) {
      run_forward<std::remove_pointer_t<decltype(type)>>(pyramid, outputs, codes);
    });
  return outputs;
}

Tensors max_filter_3d(Tensors levels, int64_t tau, int64_t kernel_size) {
  const Pyramid pyramid(levels, tau, kernel_size);
  return in_formats_of(levels, pyramid, forward(pyramid, nullptr));
}

std::tuple<Tensors, Tensors> max_filter_3d_with_codes(Tensors levels, int64_t tau,
                                                      int64_t kernel_size) {
  const Pyramid pyramid(levels, tau, kernel_size);
  const Tensors codes = pyramid.new_tensors(pyramid.code_dtype());
  return {in_formats_of(levels, pyramid, forward(pyramid, &codes)), codes};
}

Tensors max_filter_3d_backward(Tensors grads, Tensors codes, int64_t tau, int64_t kernel_size) {
  const Pyramid pyramid = gradient_pyramid(grads, codes, tau, kernel_size);
  Tensors grad_inputs = pyramid.new_tensors(pyramid.dtype());
  if (!pyramid.empty())
    with_dtype(pyramid.dtype(), [&](auto* type) {
      run_backward<std::remove_pointer_t<decltype(type)>>(pyramid, codes, grad_inputs);
    });
  return grad_inputs;
}

std::string cpu_capability() {
  return kernels().name;
}

}  // namespace
}  // namespace defcn_d2::cpu

STABLE_TORCH_LIBRARY_IMPL(defcn_d2, CPU, m) {
  m.impl("max_filter_3d", TORCH_BOX(&defcn_d2::cpu::max_filter_3d));
  m.impl("max_filter_3d_with_codes", TORCH_BOX(&defcn_d2::cpu::max_filter_3d_with_codes));
  m.impl("max_filter_3d_backward", TORCH_BOX(&defcn_d2::cpu::max_filter_3d_backward));
}

STABLE_TORCH_LIBRARY_IMPL(defcn_d2, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&defcn_d2::cpu::cpu_capability));
}
