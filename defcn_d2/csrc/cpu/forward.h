// Forward kernels: all levels of one group of channels. docs/performance.md explains the design.
#pragma once

#include "resize.h"

namespace defcn_d2::cpu::DEFCN_D2_ISA {

// Level `index` as the forward kernels walk it, and the rows they need for it.
template <typename A>
struct Level {
  int64_t height, width, lanes, n;
  int64_t row;  // elements from a row to the next in memory
  int64_t kernel_size, padding;
  int64_t ring_rows;  // windowed rows that must be held at a time
  int64_t slots, own_slot;
  bool packed;  // rows in memory have no holes
  const A* in;
  A* out;
  A* in_row;  // where a row with holes is packed to
  A* out_row;
  ResizedLevel<A>* neighbours;  // [slot]

  Level(const Problem<A>& problem, int32_t index, Planes<const A> planes, Planes<A> outputs,
        Scratch& scratch)
      : height(problem.shapes[index].height),
        width(problem.shapes[index].width),
        lanes(planes.lanes),
        n(width * lanes),
        row(width * planes.pixel),
        kernel_size(problem.kernel_size),
        padding(kernel_size / 2),
        ring_rows(least(kernel_size, height)),
        slots(2 * problem.reach + 1),
        own_slot(problem.reach),
        packed(lanes == planes.pixel),
        in(planes.bases[index]),
        out(outputs.bases[index]),
        in_row(scratch.take<A>(n)),
        out_row(scratch.take<A>(n)),
        neighbours(scratch.take<ResizedLevel<A>>(slots)),
        pixel(planes.pixel) {
    const Resize<A>* resizes = problem.resizes + index * slots;
    for (int64_t slot = 0; slot < slots; ++slot) {
      if (resizes[slot].source < 0) {
        neighbours[slot].source = nullptr;
        continue;
      }
      neighbours[slot].start(problem, resizes[slot], planes, width, scratch);
    }
  }

  const A* own_row(int64_t y) {
    if (packed) return in + y * row;
    pack(in_row, in + y * row, width, pixel, lanes);
    return in_row;
  }

  // The row to compute output y in, and its way to memory.
  A* output_row(int64_t y) { return packed ? out + y * row : out_row; }
  void finish_row(int64_t y) {
    if (!packed) unpack(out + y * row, out_row, width, pixel, lanes);
  }

 private:
  int64_t pixel;
};

// Inference: the maximum over the levels first, then along x, then along y.
template <typename A>
void filter_level(const Problem<A>& problem, int32_t index, Planes<const A> in, Planes<A> out,
                  Scratch scratch) {
  Level<A> level(problem, index, in, out, scratch);
  const int64_t n = level.n;
  A* ring = scratch.take<A>(level.ring_rows * n);
  A* merged = scratch.take<A>(n);
  for (int64_t y = 0; y < level.height + level.padding; ++y) {
    if (y < level.height) {
      const A* best = level.own_row(y);
      for (int64_t slot = 0; slot < level.slots; ++slot) {
        if (level.neighbours[slot].source == nullptr) continue;
        level.neighbours[slot].max_row(merged, best, y);
        best = merged;
      }
      window_x(ring + y % level.ring_rows * n, best, level.width, level.lanes, level.kernel_size);
    }
    const int64_t output = y - level.padding;
    if (output < 0) continue;
    const int64_t first = greatest(output - level.padding, 0);
    const int64_t last = least(y, level.height - 1);
    const auto ring_row = [&](int64_t source) { return ring + source % level.ring_rows * n; };
    A* best = level.output_row(output);
    int64_t next = first + 1;
    if (last - first >= 2) {
      max_of_three(best, ring_row(first), ring_row(first + 1), ring_row(first + 2), n);
      next = first + 3;
    } else {
      copy_row(best, ring_row(first), n);
    }
    for (; next <= last; ++next) max_into(best, ring_row(next), n);
    level.finish_row(output);
  }
}

template <typename A>
void store_codes(const CodePlanes& codes, int32_t index, int64_t y, const Code<A>* code,
                 int64_t width, int64_t lanes) {
  const int64_t start = y * width * codes.pixel;
  const int64_t cells = lanes == codes.pixel ? 1 : width,
                n = lanes == codes.pixel ? width * lanes : lanes;
  for (int64_t cell = 0; cell < cells; ++cell) {
    const Code<A>* from = code + cell * lanes;
    if (codes.wide) {
      int32_t* to = static_cast<int32_t*>(codes.bases[index]) + start + cell * codes.pixel;
      DEFCN_D2_VECTOR_LOOP
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int32_t>(from[i]);
    } else {
      uint8_t* to = static_cast<uint8_t*>(codes.bases[index]) + start + cell * codes.pixel;
      DEFCN_D2_VECTOR_LOOP
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint8_t>(from[i]);
    }
  }
}

// Training: the window of each level on its own, since the first of equal values in the order
// level, row, column must win, and the code of the winner beside the maximum.
template <typename A>
void filter_level_codes(const Problem<A>& problem, int32_t index, Planes<const A> in, Planes<A> out,
                        const CodePlanes& codes, Scratch scratch) {
  Level<A> level(problem, index, in, out, scratch);
  const int64_t n = level.n, ring_size = level.ring_rows * n;
  A* rings = scratch.take<A>(level.slots * ring_size);
  Code<A>* code_rings = scratch.take<Code<A>>(level.slots * ring_size);
  A* resized = scratch.take<A>(n);
  Code<A>* code = scratch.take<Code<A>>(n);
  for (int64_t y = 0; y < level.height + level.padding; ++y) {
    for (int64_t slot = 0; y < level.height && slot < level.slots; ++slot) {
      const A* row = resized;
      if (slot == level.own_slot) {
        row = level.own_row(y);
      } else if (level.neighbours[slot].source != nullptr) {
        level.neighbours[slot].row(resized, y);
      } else {
        continue;
      }
      const int64_t place = slot * ring_size + y % level.ring_rows * n;
      window_x(rings + place, code_rings + place, row, level.width, level.lanes, level.kernel_size);
    }
    const int64_t output = y - level.padding;
    if (output < 0) continue;
    const int64_t start = output - level.padding, last = least(y, level.height - 1);
    A* best = level.output_row(output);
    bool begun = false;
    for (int64_t slot = 0; slot < level.slots; ++slot) {
      if (slot != level.own_slot && level.neighbours[slot].source == nullptr) continue;
      const auto candidate_row = [&](int64_t source) {
        const int64_t place = slot * ring_size + source % level.ring_rows * n;
        const int64_t tap_row = slot * level.kernel_size + source - start;
        return Coded<A>{rings + place, code_rings + place,
                        static_cast<Code<A>>(tap_row * level.kernel_size)};
      };
      int64_t source = greatest(start, 0);
      if (last - source >= 2) {
        first_of_three_into(best, code, candidate_row(source), candidate_row(source + 1),
                            candidate_row(source + 2), begun, n);
        begun = true;
        source += 3;
      }
      for (; source <= last; ++source) {
        const Coded<A> candidate = candidate_row(source);
        if (begun)
          first_into(best, code, candidate, n);
        else
          first_copy(best, code, candidate, n);
        begun = true;
      }
    }
    level.finish_row(output);
    store_codes<A>(codes, index, output, code, level.width, level.lanes);
  }
}

template <typename A>
void forward(const Problem<A>& problem, Planes<const A> in, Planes<A> out, void* memory) {
  for (int32_t index = 0; index < problem.num_levels; ++index)
    if (problem.shapes[index].width > 0 && problem.shapes[index].height > 0)
      filter_level(problem, index, in, out, Scratch{static_cast<char*>(memory)});
}

template <typename A>
void forward_codes(const Problem<A>& problem, Planes<const A> in, Planes<A> out, CodePlanes codes,
                   void* memory) {
  for (int32_t index = 0; index < problem.num_levels; ++index)
    if (problem.shapes[index].width > 0 && problem.shapes[index].height > 0)
      filter_level_codes(problem, index, in, out, codes, Scratch{static_cast<char*>(memory)});
}

}  // namespace defcn_d2::cpu::DEFCN_D2_ISA
