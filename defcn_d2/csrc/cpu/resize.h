// A level seen at the size of another one, row by row.
#pragma once

#include "interpolate.h"

namespace defcn_d2::cpu::DEFCN_D2_ISA {

// Hands out consecutive pieces of the scratch memory, each at the start of a cache line.
struct Scratch {
  char* next;
  template <typename T>
  T* take(int64_t n) {
    T* piece = reinterpret_cast<T*>(next);
    next += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
};

// Keeps the two source rows last resized along x: consecutive rows mostly lie between the same two.
template <typename A>
struct ResizedLevel {
  const A* source;  // nullptr: there is no such neighbour
  const Resize<A>* resize;
  int64_t source_row;  // elements
  int64_t width, pixel, lanes;
  A* rows[2];
  int64_t cached[2];

  void start(const Problem<A>& problem, const Resize<A>& of, Planes<const A> in,
             int64_t target_width, Scratch& scratch) {
    source = in.bases[of.source];
    resize = &of;
    source_row = problem.shapes[of.source].width * in.pixel;
    width = target_width;
    pixel = in.pixel;
    lanes = in.lanes;
    for (int64_t slot = 0; slot < 2; ++slot) {
      rows[slot] = scratch.take<A>(width * lanes);
      cached[slot] = -1;
    }
  }

  const A* resized_x(int64_t y) {
    const int64_t slot = y & 1;
    if (cached[slot] != y) {
      resize_x(rows[slot], source + y * source_row, resize->x, width, pixel, lanes);
      cached[slot] = y;
    }
    return rows[slot];
  }

  // out = row y
  void row(A* out, int64_t y) {
    const A* low = resized_x(resize->y.low[y]);
    const A* high = resized_x(resize->y.high[y]);
    const A low_weight = resize->y.low_weight[y], high_weight = resize->y.high_weight[y];
    DEFCN_D2_VECTOR_LOOP
    for (int64_t i = 0; i < width * lanes; ++i)
      out[i] = low_weight * low[i] + high_weight * high[i];
  }

  // out = max(best, row y)
  void max_row(A* out, const A* best, int64_t y) {
    const A* low = resized_x(resize->y.low[y]);
    const A* high = resized_x(resize->y.high[y]);
    const A low_weight = resize->y.low_weight[y], high_weight = resize->y.high_weight[y];
    DEFCN_D2_VECTOR_LOOP
    for (int64_t i = 0; i < width * lanes; ++i) {
      const A value = low_weight * low[i] + high_weight * high[i];
      out[i] = wins(value, best[i]) ? value : best[i];
    }
  }
};

}  // namespace defcn_d2::cpu::DEFCN_D2_ISA
