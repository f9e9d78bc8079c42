// Included by kernels_*.cpp, each of which names an instruction set first.
#include "backward.h"
#include "forward.h"
#include "overlap.h"

#define DEFCN_D2_STRING_(x) #x
#define DEFCN_D2_STRING(x) DEFCN_D2_STRING_(x)
#define DEFCN_D2_JOIN_(a, b) a##b
#define DEFCN_D2_JOIN(a, b) DEFCN_D2_JOIN_(a, b)

namespace defcn_d2::cpu {

const KernelSet DEFCN_D2_JOIN(kernels_, DEFCN_D2_ISA) = {
    DEFCN_D2_STRING(DEFCN_D2_ISA),
    {DEFCN_D2_ISA::forward<float>, DEFCN_D2_ISA::forward_codes<float>,
     DEFCN_D2_ISA::backward<float>, DEFCN_D2_ISA::overlaps<float>, DEFCN_D2_ISA::raise<float>},
    {DEFCN_D2_ISA::forward<double>, DEFCN_D2_ISA::forward_codes<double>,
     DEFCN_D2_ISA::backward<double>, DEFCN_D2_ISA::overlaps<double>, DEFCN_D2_ISA::raise<double>},
};

}  // namespace defcn_d2::cpu
