// The CPU implementation: spreads groups of channels over PyTorch's threads.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <string>
#include <tuple>

#include "dispatch.h"
#include "groups.h"
#include "tables.h"

namespace defcn_d2::cpu {
namespace {

constexpr int64_t kElementsPerTask = 32768;  // below that a second thread costs more than it gains

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

std::string cpu_capability() { return kernels().name; }

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
