// Operations on rows: `n` values, cell after cell, `lanes` channels to a cell. The loops are plain
// so that the compiler turns them into vector code for the instruction set it was told (see isa.h).
#pragma once

#include <cstdint>

#include "kernels.h"

// The rows a loop reads and writes are the same or apart: there is no dependence between
// iterations.
#if defined(__clang__)
#define DEFCN_D2_VECTOR_LOOP _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define DEFCN_D2_VECTOR_LOOP _Pragma("GCC ivdep")
#else
#define DEFCN_D2_VECTOR_LOOP
#endif

namespace defcn_d2::cpu::DEFCN_D2_ISA {

// Codes are as wide as the values while they are computed: one comparison mask serves both.
template <typename A>
struct CodeOf;
template <>
struct CodeOf<float> {
  using type = int32_t;
};
template <>
struct CodeOf<double> {
  using type = int64_t;
};
template <typename A>
using Code = typename CodeOf<A>::type;

// The first of equal values stays, NaN wins over every number: the rule of PyTorch's max pooling.
template <typename A>
inline bool wins(A challenger, A best) {
  return (challenger > best) | (challenger != challenger);
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename A>
inline void copy_row(A* out, const A* in, int64_t n) {
  DEFCN_D2_VECTOR_LOOP
  for (int64_t i = 0; i < n; ++i) out[i] = in[i];
}

template <typename A>
inline void zero_row(A* out, int64_t n) {
  DEFCN_D2_VECTOR_LOOP
  for (int64_t i = 0; i < n; ++i) out[i] = A(0);
}

// Rows of Planes with several lanes have holes; pack and unpack move them to and from plain rows.
template <typename A>
inline void pack(A* out, const A* in, int64_t width, int64_t pixel, int64_t lanes) {
  for (int64_t x = 0; x < width; ++x, out += lanes, in += pixel) copy_row(out, in, lanes);
}

template <typename A>
inline void unpack(A* out, const A* in, int64_t width, int64_t pixel, int64_t lanes) {
  for (int64_t x = 0; x < width; ++x, out += pixel, in += lanes) copy_row(out, in, lanes);
}

// ---- maxima -------------------------------------------------------------------------------------

template <typename A>
inline void max_into(A* best, const A* in, int64_t n) {
  DEFCN_D2_VECTOR_LOOP
  for (int64_t i = 0; i < n; ++i) best[i] = wins(in[i], best[i]) ? in[i] : best[i];
}

template <typename A>
inline void max_of_three(A* out, const A* a, const A* b, const A* c, int64_t n) {
  DEFCN_D2_VECTOR_LOOP
  for (int64_t i = 0; i < n; ++i) {
    A best = a[i];
    best = wins(b[i], best) ? b[i] : best;
    best = wins(c[i], best) ? c[i] : best;
    out[i] = best;
  }
}

// The same with codes: `code` of each input is its own row of codes plus a constant.
template <typename A>
struct Coded {
  const A* value;
  const Code<A>* code;
  Code<A> offset;
};

template <typename A>
inline void first_into(A* best, Code<A>* code, Coded<A> in, int64_t n) {
  DEFCN_D2_VECTOR_LOOP
  for (int64_t i = 0; i < n; ++i) {
    const bool won = wins(in.value[i], best[i]);
    code[i] = won ? in.code[i] + in.offset : code[i];
    best[i] = won ? in.value[i] : best[i];
  }
}

template <typename A>
inline void first_copy(A* best, Code<A>* code, Coded<A> in, int64_t n) {
  DEFCN_D2_VECTOR_LOOP
  for (int64_t i = 0; i < n; ++i) {
    code[i] = in.code[i] + in.offset;
    best[i] = in.value[i];
  }
}

template <typename A>
inline void first_of_three_into(A* best, Code<A>* code, Coded<A> a, Coded<A> b, Coded<A> c,
                                bool begun, int64_t n) {
  if (!begun) {
    first_copy(best, code, a, n);
    first_into(best, code, b, n);
    first_into(best, code, c, n);
    return;
  }
  DEFCN_D2_VECTOR_LOOP
  for (int64_t i = 0; i < n; ++i) {
    A value = best[i];
    Code<A> winner = code[i];
    bool won = wins(a.value[i], value);
    winner = won ? a.code[i] + a.offset : winner;
    value = won ? a.value[i] : value;
    won = wins(b.value[i], value);
    winner = won ? b.code[i] + b.offset : winner;
    value = won ? b.value[i] : value;
    won = wins(c.value[i], value);
    winner = won ? c.code[i] + c.offset : winner;
    value = won ? c.value[i] : value;
    best[i] = value;
    code[i] = winner;
  }
}

// ---- the window along a row ---------------------------------------------------------------------

// Columns whose whole window lies inside the map.
struct Interior {
  int64_t begin, end;
  Interior(int64_t width, int64_t kernel_size)
      : begin(least(kernel_size / 2, width)), end(greatest(begin, width - kernel_size / 2)) {}
};

template <typename A>
inline void window_x_border(A* out, const A* in, int64_t x, int64_t width, int64_t lanes,
                            int64_t kernel_size) {
  const int64_t last = least(x + kernel_size / 2, width - 1);
  int64_t source = greatest(x - kernel_size / 2, 0);
  copy_row(out + x * lanes, in + source * lanes, lanes);
  for (++source; source <= last; ++source) max_into(out + x * lanes, in + source * lanes, lanes);
}

// out[x] = maximum of in over the columns of x's window that exist.
template <typename A>
inline void window_x(A* out, const A* in, int64_t width, int64_t lanes, int64_t kernel_size) {
  const Interior interior(width, kernel_size);
  const int64_t n = (interior.end - interior.begin) * lanes;
  A* middle = out + interior.begin * lanes;
  if (kernel_size == 1) {
    copy_row(middle, in, n);
  } else {
    max_of_three(middle, in, in + lanes, in + 2 * lanes, n);
    for (int64_t tap = 3; tap < kernel_size; ++tap) max_into(middle, in + tap * lanes, n);
  }
  for (int64_t x = 0; x < interior.begin; ++x)
    window_x_border(out, in, x, width, lanes, kernel_size);
  for (int64_t x = interior.end; x < width; ++x)
    window_x_border(out, in, x, width, lanes, kernel_size);
}

template <typename A>
inline void window_x_border(A* out, Code<A>* code, const A* in, int64_t x, int64_t width,
                            int64_t lanes, int64_t kernel_size) {
  const int64_t start = x - kernel_size / 2, last = least(x + kernel_size / 2, width - 1);
  const int64_t first = greatest(start, 0);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    A best = in[first * lanes + lane];
    int64_t tap = first - start;
    for (int64_t source = first + 1; source <= last; ++source) {
      const A value = in[source * lanes + lane];
      if (!wins(value, best)) continue;
      best = value;
      tap = source - start;
    }
    out[x * lanes + lane] = best;
    code[x * lanes + lane] = static_cast<Code<A>>(tap);
  }
}

// As above, and code[x] = offset of the winning column within the window.
template <typename A>
inline void window_x(A* out, Code<A>* code, const A* in, int64_t width, int64_t lanes,
                     int64_t kernel_size) {
  const Interior interior(width, kernel_size);
  const int64_t n = (interior.end - interior.begin) * lanes;
  A* middle = out + interior.begin * lanes;
  Code<A>* middle_code = code + interior.begin * lanes;
  const int64_t fused = least(kernel_size, 3);
  DEFCN_D2_VECTOR_LOOP
  for (int64_t i = 0; i < n; ++i) {
    A best = in[i];
    Code<A> tap = 0;
    if (fused == 3) {
      const A second = in[i + lanes], third = in[i + 2 * lanes];
      bool won = wins(second, best);
      best = won ? second : best;
      tap = won ? Code<A>(1) : tap;
      won = wins(third, best);
      best = won ? third : best;
      tap = won ? Code<A>(2) : tap;
    }
    middle[i] = best;
    middle_code[i] = tap;
  }
  for (int64_t tap = fused; tap < kernel_size; ++tap) {
    const A* source = in + tap * lanes;
    DEFCN_D2_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) {
      const bool won = wins(source[i], middle[i]);
      middle_code[i] = won ? static_cast<Code<A>>(tap) : middle_code[i];
      middle[i] = won ? source[i] : middle[i];
    }
  }
  for (int64_t x = 0; x < interior.begin; ++x)
    window_x_border(out, code, in, x, width, lanes, kernel_size);
  for (int64_t x = interior.end; x < width; ++x)
    window_x_border(out, code, in, x, width, lanes, kernel_size);
}

}  // namespace defcn_d2::cpu::DEFCN_D2_ISA
