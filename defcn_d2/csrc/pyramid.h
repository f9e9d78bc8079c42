// The operator's arguments, checked and brought into one memory format; shared by CPU and CUDA.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

namespace defcn_d2 {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// Half precision is computed in float32.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

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

// Dense in the order N, H, W, C. Maps of one cell, one channel or no element are so in both orders.
inline bool fits_channels_last(const Tensor& level) {
  if (level.numel() == 0) return true;
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (level.size(dim) == 1) continue;
    if (level.stride(dim) != expected) return false;
    expected *= level.size(dim);
  }
  return true;
}

inline bool is_channels_last(const Tensor& level) {
  return fits_channels_last(level) && !level.is_contiguous();
}

inline bool is_floating(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

inline void check_level(const Tensor& level, const Tensor& first, size_t index) {
  STD_TORCH_CHECK(level.dim() == 4, "levels[", index, "] must be (N, C, H, W), got ", level.dim(),
                  " dimensions");
  STD_TORCH_CHECK(is_floating(level), "levels[", index,
                  "] must be float32, float64, float16 or bfloat16, got another dtype");
  STD_TORCH_CHECK(level.scalar_type() == first.scalar_type(),
                  "levels must share one dtype: levels[", index, "] differs from levels[0]");
  STD_TORCH_CHECK(level.device() == first.device(), "levels must be on one device: levels[", index,
                  "] differs from levels[0]");
  STD_TORCH_CHECK(level.size(0) == first.size(0) && level.size(1) == first.size(1),
                  "levels must share N and C: levels[0] has (", first.size(0), ", ", first.size(1),
                  "), levels[", index, "] (", level.size(0), ", ", level.size(1), ")");
  STD_TORCH_CHECK(std::max(level.size(2), level.size(3)) <= int64_t(1) << 30, "levels[", index,
                  "] is too large: ", level.size(2), " x ", level.size(3));
}

// channels_last only where all tensors are.
inline MemoryFormat common_format(const Tensors& tensors) {
  bool any = false, all = true;
  for (const Tensor& tensor : tensors) {
    any |= is_channels_last(tensor);
    all &= fits_channels_last(tensor);
  }
  return any && all ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensors in_format(const Tensors& tensors, MemoryFormat format) {
  Tensors result;
  for (const Tensor& tensor : tensors) result.push_back(torch::stable::contiguous(tensor, format));
  return result;
}

struct Pyramid {
  Tensors levels;  // all in `format`
  MemoryFormat format;
  int64_t batch = 0, channels = 0;
  int32_t reach = 0;        // levels looked at on each side
  int32_t kernel_size = 1;  // no wider than the widest map can make use of
  bool wide = false;        // codes need more than one byte

  Pyramid(const Tensors& given, int64_t tau, int64_t kernel, const Tensors* like = nullptr) {
    STD_TORCH_CHECK(tau >= 0 && tau % 2 == 0, "tau must be even and >= 0, got ", tau);
    STD_TORCH_CHECK(kernel >= 1 && kernel % 2 == 1, "kernel_size must be odd and >= 1, got ",
                    kernel);
    STD_TORCH_CHECK(!given.empty(), "levels must hold at least one tensor");
    int64_t longest = 1;
    for (size_t index = 0; index < given.size(); ++index) {
      check_level(given[index], given[0], index);
      longest = std::max({longest, given[index].size(2), given[index].size(3)});
    }
    format = common_format(like != nullptr ? *like : given);
    levels = in_format(given, format);
    batch = given[0].size(0);
    channels = given[0].size(1);
    reach = static_cast<int32_t>(std::min<int64_t>(tau / 2, given.size() - 1));
    kernel_size = static_cast<int32_t>(std::min(kernel, 2 * longest - 1));
    wide = codes() > 256;
    STD_TORCH_CHECK(codes() <= std::numeric_limits<int32_t>::max(), "tau = ", tau,
                    " with kernel_size = ", kernel, " has more candidates than int32 can number");
  }

  int64_t slots() const { return 2 * int64_t(reach) + 1; }
  int64_t codes() const { return slots() * kernel_size * kernel_size; }
  ScalarType dtype() const { return levels[0].scalar_type(); }
  ScalarType code_dtype() const { return wide ? ScalarType::Int : ScalarType::Byte; }
  bool empty() const { return batch == 0 || channels == 0; }

  // Uninitialised tensors shaped like the levels, in the common format.
  Tensors new_tensors(ScalarType dtype) const {
    Tensors tensors;
    for (const Tensor& level : levels)
      tensors.push_back(torch::stable::empty(level.sizes(), dtype, std::nullopt, level.device(),
                                             std::nullopt, format));
    return tensors;
  }
};

// The gradients in the format of the codes, which tells how the forward ran.
inline Pyramid gradient_pyramid(const Tensors& grads, Tensors& codes, int64_t tau,
                                int64_t kernel_size) {
  STD_TORCH_CHECK(grads.size() == codes.size(), "got ", grads.size(), " gradients for ",
                  codes.size(), " levels of codes");
  for (size_t index = 0; index < codes.size(); ++index) {
    bool same = codes[index].dim() == 4 && grads[index].dim() == 4;
    for (int64_t dim = 0; same && dim < 4; ++dim)
      same = codes[index].size(dim) == grads[index].size(dim);
    STD_TORCH_CHECK(same, "grads[", index, "] and codes[", index, "] must have one shape");
  }
  const Pyramid pyramid(grads, tau, kernel_size, &codes);
  for (size_t index = 0; index < codes.size(); ++index)
    STD_TORCH_CHECK(codes[index].scalar_type() == pyramid.code_dtype() &&
                        codes[index].device() == grads[index].device(),
                    "codes[", index, "] does not come from this tau and kernel_size");
  codes = in_format(codes, pyramid.format);
  return pyramid;
}

// Every output in the format of its own input, where the levels came in several.
inline Tensors in_formats_of(const Tensors& given, const Pyramid& pyramid, Tensors outputs) {
  for (size_t index = 0; index < given.size(); ++index)
    if (pyramid.format == MemoryFormat::Contiguous && is_channels_last(given[index]))
      outputs[index] = torch::stable::contiguous(outputs[index], MemoryFormat::ChannelsLast);
  return outputs;
}

}  // namespace defcn_d2
