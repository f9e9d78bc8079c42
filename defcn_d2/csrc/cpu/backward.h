// Backward kernel: scatters the gradient of all levels of one group of channels to its winners.
#pragma once

#include "resize.h"

namespace defcn_d2::cpu::DEFCN_D2_ISA {

// Gradient of a level at the size of another one, row by row in ascending order: the transpose of
// ResizedLevel. Sums along y first, so that the scattered part along x runs once a source row.
template <typename A>
struct ResizedGradient {
  A* target;  // nullptr: there is no such neighbour
  const Resize<A>* resize;
  int64_t target_width, width, pixel, lanes;
  A* rows[2];
  int64_t pending[2];

  void start(const Problem<A>& problem, const Resize<A>& of, Planes<A> grad_in,
             int64_t resized_width, Scratch& scratch) {
    target = grad_in.bases[of.source];
    resize = &of;
    target_width = problem.shapes[of.source].width;
    width = resized_width;
    pixel = grad_in.pixel;
    lanes = grad_in.lanes;
    for (int64_t slot = 0; slot < 2; ++slot) {
      rows[slot] = scratch.take<A>((width + 1) * lanes);  // and the cell of zeros
      zero_row(rows[slot], (width + 1) * lanes);
      pending[slot] = -1;
    }
  }

  void flush(int64_t slot) {
    if (pending[slot] < 0) return;
    resize_x_adjoint(target + pending[slot] * target_width * pixel, rows[slot], resize->x_adjoint,
                     target_width, pixel, lanes);
    zero_row(rows[slot], width * lanes);
    pending[slot] = -1;
  }

  void add(const A* gradient, int64_t y, A weight) {
    const int64_t slot = y & 1;
    if (pending[slot] != y) {
      flush(slot);
      pending[slot] = y;
    }
    add_scaled(rows[slot], gradient, weight, width * lanes);
  }

  void add_row(const A* gradient, int64_t y) {
    add(gradient, resize->y.low[y], resize->y.low_weight[y]);
    add(gradient, resize->y.high[y], resize->y.high_weight[y]);
  }
};

// Rows of gradient at the size of one level, a ring of them for each slot. They are wider than the
// level by the window, so that no code, even one that this library never wrote, leads outside.
template <typename A>
struct GradientRings {
  int64_t slots, rows, kernel_size, padding, lanes, stride, height;
  A* memory;
  int64_t* offsets;  // of each code, for the output row at hand

  GradientRings(const Problem<A>& problem, int32_t index, int64_t lane_count, Scratch& scratch)
      : slots(2 * problem.reach + 1),
        rows(problem.kernel_size),
        kernel_size(problem.kernel_size),
        padding(kernel_size / 2),
        lanes(lane_count),
        stride((problem.shapes[index].width + 2 * padding) * lanes),
        height(problem.shapes[index].height),
        memory(scratch.take<A>(slots * rows * stride)),
        offsets(scratch.take<int64_t>(codes() > 256 ? codes() : 256)) {
    zero_row(memory, slots * rows * stride);
    for (int64_t code = codes(); code < 256; ++code) offsets[code] = 0;
  }

  int64_t codes() const { return slots * kernel_size * kernel_size; }

  A* row(int64_t slot, int64_t y) {
    return memory + (slot * rows + (y + kernel_size) % rows) * stride;
  }

  void aim(int64_t y) {
    int64_t* offset = offsets;
    for (int64_t slot = 0; slot < slots; ++slot)
      for (int64_t tap_y = 0; tap_y < kernel_size; ++tap_y) {
        const int64_t start = row(slot, y + tap_y - padding) - memory;
        for (int64_t tap_x = 0; tap_x < kernel_size; ++tap_x) *offset++ = start + tap_x * lanes;
      }
  }

  // to[winner] += gradient for n values whose codes are given.
  void scatter(const A* gradient, const uint8_t* code, int64_t n, A* to) const {
    // Neighbouring outputs often share their winner; two places at a time do not wait for each
    // other.
    const int64_t half = n / 2;
    for (int64_t i = 0; i < half; ++i) {
      to[offsets[code[i]] + i] += gradient[i];
      to[offsets[code[half + i]] + half + i] += gradient[half + i];
    }
    if (n % 2) to[offsets[code[n - 1]] + n - 1] += gradient[n - 1];
  }

  void scatter(const A* gradient, const int32_t* code, int64_t n, A* to) const {
    const uint32_t limit = static_cast<uint32_t>(codes());
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t known = static_cast<uint32_t>(code[i]);
      to[offsets[known < limit ? known : 0] + i] += gradient[i];
    }
  }
};

template <typename A>
struct LevelGradient {
  int64_t height, width, lanes, pixel;
  GradientRings<A> rings;
  ResizedGradient<A>* neighbours;  // [slot]

  LevelGradient(const Problem<A>& problem, int32_t index, Planes<A> grad_in, Scratch& scratch)
      : height(problem.shapes[index].height),
        width(problem.shapes[index].width),
        lanes(grad_in.lanes),
        pixel(grad_in.pixel),
        rings(problem, index, lanes, scratch),
        neighbours(scratch.take<ResizedGradient<A>>(rings.slots)) {
    const Resize<A>* resizes = problem.resizes + index * rings.slots;
    for (int64_t slot = 0; slot < rings.slots; ++slot) {
      neighbours[slot].target = nullptr;
      if (resizes[slot].source >= 0)
        neighbours[slot].start(problem, resizes[slot], grad_in, width, scratch);
    }
  }

  template <typename C>
  void scatter_row(const A* gradient, const C* code, int64_t code_pixel) const {
    if (lanes == pixel && lanes == code_pixel) {
      rings.scatter(gradient, code, width * lanes, rings.memory);
      return;
    }
    for (int64_t x = 0; x < width; ++x)
      rings.scatter(gradient + x * pixel, code + x * code_pixel, lanes, rings.memory + x * lanes);
  }

  void add_own_row(A* out, const A* row) const {
    const int64_t cells = lanes == pixel ? 1 : width, n = width * lanes / cells;
    for (int64_t cell = 0; cell < cells; ++cell)
      add_scaled(out + cell * pixel, row + cell * lanes, A(1), n);
  }
};

template <typename A>
void backward_level(const Problem<A>& problem, int32_t index, Planes<const A> grad_out,
                    const CodePlanes& codes, Planes<A> grad_in, Scratch scratch) {
  LevelGradient<A> level(problem, index, grad_in, scratch);
  GradientRings<A>& rings = level.rings;
  for (int64_t y = 0; y < level.height + rings.padding; ++y) {
    if (y < level.height) {
      rings.aim(y);
      const A* gradient = grad_out.bases[index] + y * level.width * grad_out.pixel;
      const int64_t start = y * level.width * codes.pixel;
      if (codes.wide)
        level.scatter_row(gradient, static_cast<const int32_t*>(codes.bases[index]) + start,
                          codes.pixel);
      else
        level.scatter_row(gradient, static_cast<const uint8_t*>(codes.bases[index]) + start,
                          codes.pixel);
    }
    const int64_t done = y - rings.padding;
    if (done < 0) continue;
    for (int64_t slot = 0; slot < rings.slots; ++slot) {
      A* ring_row = rings.row(slot, done);
      A* row = ring_row + rings.padding * level.lanes;
      if (slot == problem.reach)
        level.add_own_row(grad_in.bases[index] + done * level.width * level.pixel, row);
      else if (level.neighbours[slot].target != nullptr)
        level.neighbours[slot].add_row(row, done);
      else
        continue;
      zero_row(ring_row, rings.stride);
    }
  }
  for (int64_t slot = 0; slot < rings.slots; ++slot) {
    if (level.neighbours[slot].target == nullptr) continue;
    level.neighbours[slot].flush(0);
    level.neighbours[slot].flush(1);
  }
}

// grad_in must hold zeros.
template <typename A>
void backward(const Problem<A>& problem, Planes<const A> grad_out, CodePlanes codes,
              Planes<A> grad_in, void* memory) {
  for (int32_t index = 0; index < problem.num_levels; ++index)
    if (problem.shapes[index].width > 0 && problem.shapes[index].height > 0)
      backward_level(problem, index, grad_out, codes, grad_in, Scratch{static_cast<char*>(memory)});
}

}  // namespace defcn_d2::cpu::DEFCN_D2_ISA
