// The kernels of overlap_peaks: a run of cells of one row against one neighbour of each.
#pragma once

#include "kernels.h"

namespace defcn_d2::cpu::DEFCN_D2_ISA {

// Corners are compared so that a NaN may be lost: it is in the area as well.
template <typename A, int kOwnStep, int kNearStep>
void overlaps_of(const BoxRun<A>& own, const BoxRun<A>& near, int64_t count, A threshold,
                 uint8_t* overlaps) {
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
    overlaps[i] = (both > 0) & (inter / both > threshold);
  }
}

template <typename A>
void overlaps(const BoxRun<A>& own, const BoxRun<A>& near, int64_t count, A threshold,
              uint8_t* overlaps) {
  if (own.step == 2)
    overlaps_of<A, 2, 1>(own, near, count, threshold, overlaps);
  else if (near.step == 2)
    overlaps_of<A, 1, 2>(own, near, count, threshold, overlaps);
  else
    overlaps_of<A, 1, 1>(own, near, count, threshold, overlaps);
}

// `first`: the neighbour comes before the cell, and wins where they are equal.
template <typename T>
void beat(const LogitRun<T>& own, const LogitRun<T>& near, int64_t count, int64_t classes,
          bool first, const uint8_t* overlaps, uint8_t* beaten, int64_t beaten_step) {
  if (classes == 1) {
    for (int64_t i = 0; i < count; ++i) {
      const T a = own.first[i * own.step], b = near.first[i * near.step];
      beaten[i * beaten_step] |= overlaps[i] & ((b > a) | (first & (b == a)));
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (!overlaps[i]) continue;
    const T* a = own.first + i * own.step;
    const T* b = near.first + i * near.step;
    uint8_t* out = beaten + i * beaten_step;
    if (first)
      for (int64_t k = 0; k < classes; ++k) out[k] |= b[k] >= a[k];
    else
      for (int64_t k = 0; k < classes; ++k) out[k] |= b[k] > a[k];
  }
}

}  // namespace defcn_d2::cpu::DEFCN_D2_ISA
