// The kernels for the processor at hand.
#pragma once

#include "kernels.h"

namespace defcn_d2::cpu {

const KernelSet& kernels();

}  // namespace defcn_d2::cpu
