// The kernels for every processor that the compiler's own default allows.
#define DEFCN_D2_ISA baseline
#include "kernels_impl.h"
