// Linear interpolation along a row and its transpose.
#pragma once

#include "rows.h"

namespace defcn_d2::cpu::DEFCN_D2_ISA {

template <typename A>
inline void resize_cell_x(A* out, const A* in, const Axis<A>& axis, int64_t x) {
  out[x] = axis.low_weight[x] * in[axis.low[x]] + axis.high_weight[x] * in[axis.high[x]];
}

template <typename A>
inline void resize_x(A* out, const A* in, const Axis<A>& axis, int64_t width, int64_t pixel,
                     int64_t lanes) {
  if (lanes == 1 && pixel == 1) {
    // Without the patterns, the loads of a vector are as many single ones.
    if (axis.ratio == Ratio::kHalf) {
      DEFCN_D2_VECTOR_LOOP
      for (int64_t x = 0; x < width; ++x) out[x] = A(0.5) * in[2 * x] + A(0.5) * in[2 * x + 1];
      return;
    }
    if (axis.ratio == Ratio::kDouble) {
      resize_cell_x(out, in, axis, 0);
      DEFCN_D2_VECTOR_LOOP
      for (int64_t x = 0; x < width / 2 - 1; ++x) {
        out[2 * x + 1] = A(0.75) * in[x] + A(0.25) * in[x + 1];
        out[2 * x + 2] = A(0.25) * in[x] + A(0.75) * in[x + 1];
      }
      resize_cell_x(out, in, axis, width - 1);
      return;
    }
    DEFCN_D2_VECTOR_LOOP
    for (int64_t x = 0; x < width; ++x) resize_cell_x(out, in, axis, x);
    return;
  }
  for (int64_t x = 0; x < width; ++x, out += lanes) {
    const A* low = in + axis.low[x] * pixel;
    const A* high = in + axis.high[x] * pixel;
    const A low_weight = axis.low_weight[x], high_weight = axis.high_weight[x];
    DEFCN_D2_VECTOR_LOOP
    for (int64_t lane = 0; lane < lanes; ++lane)
      out[lane] = low_weight * low[lane] + high_weight * high[lane];
  }
}

template <typename A>
inline void add_scaled(A* out, const A* in, A weight, int64_t n) {
  DEFCN_D2_VECTOR_LOOP
  for (int64_t i = 0; i < n; ++i) out[i] += weight * in[i];
}

// out[x] += sum over the target cells that read source cell x; `in` ends with a cell of zeros.
template <typename A>
inline void resize_x_adjoint(A* out, const A* in, const Adjoint<A>& adjoint, int64_t width,
                             int64_t pixel, int64_t lanes) {
  const bool plain = lanes == 1 && pixel == 1;
  if (plain && adjoint.ratio == Ratio::kHalf) {
    DEFCN_D2_VECTOR_LOOP
    for (int64_t x = 0; x < width / 2; ++x) {
      out[2 * x] += A(0.5) * in[x];
      out[2 * x + 1] += A(0.5) * in[x];
    }
    return;
  }
  if (plain && adjoint.ratio == Ratio::kDouble && width >= 2) {
    DEFCN_D2_VECTOR_LOOP
    for (int64_t x = 1; x < width - 1; ++x)
      out[x] += A(0.25) * in[2 * x - 1] + A(0.75) * in[2 * x] + A(0.75) * in[2 * x + 1] +
                A(0.25) * in[2 * x + 2];
    out[0] += in[0] + A(0.75) * in[1] + A(0.25) * in[2];
    const A* last = in + 2 * (width - 1);
    out[width - 1] += A(0.25) * last[-1] + A(0.75) * last[0] + last[1];
    return;
  }
  for (int64_t term = 0; term < adjoint.terms; ++term) {
    const int32_t* index = adjoint.index + term * width;
    const A* weight = adjoint.weight + term * width;
    if (plain) {
      DEFCN_D2_VECTOR_LOOP
      for (int64_t x = 0; x < width; ++x) out[x] += weight[x] * in[index[x]];
      continue;
    }
    for (int64_t x = 0; x < width; ++x)
      add_scaled(out + x * pixel, in + index[x] * lanes, weight[x], lanes);
  }
}

}  // namespace defcn_d2::cpu::DEFCN_D2_ISA
