// Groups of half-precision planes as float32 planes and back (the kernels compute in float32).
#pragma once

#include <cstdint>

namespace defcn_d2::cpu {

// `cells` cells of `lanes` values: packed on the float32 side, `pixel` apart on the other one.
template <typename T>
void widen(float* out, const T* in, int64_t cells, int64_t pixel, int64_t lanes) {
  for (int64_t cell = 0; cell < cells; ++cell)
    for (int64_t lane = 0; lane < lanes; ++lane)
      out[cell * lanes + lane] = static_cast<float>(in[cell * pixel + lane]);
}

template <typename T>
void narrow(T* out, const float* in, int64_t cells, int64_t pixel, int64_t lanes) {
  for (int64_t cell = 0; cell < cells; ++cell)
    for (int64_t lane = 0; lane < lanes; ++lane)
      out[cell * pixel + lane] = static_cast<T>(in[cell * lanes + lane]);
}

}  // namespace defcn_d2::cpu
