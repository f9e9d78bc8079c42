// The kernels of overlap_with_better: a run of cells of one row against one neighbour of each.
#pragma once

#include "kernels.h"

namespace defcn_d2::cpu::DEFCN_D2_ISA {

// Corners are compared so that a NaN may be lost: it is in the area as well.
template <typename A, int kOwnStep, int kNearStep>
void overlaps_of(const BoxRun<A>& own, const BoxRun<A>& near, int64_t count, A* overlaps) {
  const A *left = own.first, *top = left + own.plane, *right = top + own.plane;
  const A *bottom = right + own.plane, *area = bottom + own.plane;
  const A *near_left = near.first, *near_top = near_left + near.plane;
  const A *near_right = near_top + near.plane, *near_bottom = near_right + near.plane;
  const A* near_area = near_bottom + near.plane;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t a = i * kOwnStep, b = i * kNearStep;
    const A x1 = left[a] > near_left[b] ? left[a] : near_left[b];
    const A y1 = top[a] > near_top[b] ? top[a] : near_top[b];
    const A x2 = right[a] < near_right[b] ? right[a] : near_right[b];
    const A y2 = bottom[a] < near_bottom[b] ? bottom[a] : near_bottom[b];
    const A width = x2 - x1 > 0 ? x2 - x1 : A(0), height = y2 - y1 > 0 ? y2 - y1 : A(0);
    const A inter = width * height;
    const A both = area[a] + near_area[b] - inter;
    overlaps[i] = both > 0 ? inter / both : A(0);
  }
}

template <typename A>
void overlaps(const BoxRun<A>& own, const BoxRun<A>& near, int64_t count, A* overlaps) {
  if (own.step == 2)
    overlaps_of<A, 2, 1>(own, near, count, overlaps);
  else if (near.step == 2)
    overlaps_of<A, 1, 2>(own, near, count, overlaps);
  else
    overlaps_of<A, 1, 1>(own, near, count, overlaps);
}

template <typename T, typename Better>
void raise_where(Better better, const T* own, const T* near, int64_t classes, T overlap, T* out) {
  for (int64_t k = 0; k < classes; ++k) {
    const T candidate = better(own[k], near[k]) ? overlap : T(0);
    out[k] = candidate > out[k] ? candidate : out[k];
  }
}

// Raises the largest overlap of an entry where its neighbour is better. `first`: the neighbour
// comes before the cell, and is better where they are equal.
template <typename T>
void raise(const LogitRun<T>& own, const LogitRun<T>& near, int64_t count, int64_t classes,
           bool first, const T* overlaps, T* largest, int64_t largest_step) {
  if (classes == 1) {
    for (int64_t i = 0; i < count; ++i) {
      const T a = own.first[i * own.step], b = near.first[i * near.step];
      const T overlap = (b > a) | (first & (b == a)) ? overlaps[i] : T(0);
      T& out = largest[i * largest_step];
      out = overlap > out ? overlap : out;
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (overlaps[i] == 0) continue;
    const T* a = own.first + i * own.step;
    const T* b = near.first + i * near.step;
    T* out = largest + i * largest_step;
    if (first)
      raise_where([](T x, T y) { return y >= x; }, a, b, classes, overlaps[i], out);
    else
      raise_where([](T x, T y) { return y > x; }, a, b, classes, overlaps[i], out);
  }
}

}  // namespace defcn_d2::cpu::DEFCN_D2_ISA
