// The kernels for the processor at hand.
#pragma once

#include <type_traits>

#include "kernels.h"

namespace defcn_d2::cpu {

const KernelSet& kernels();

template <typename A>
const Kernels<A>& kernels_for() {
  if constexpr (std::is_same_v<A, float>)
    return kernels().single;
  else
    return kernels().twice;
}

}  // namespace defcn_d2::cpu
