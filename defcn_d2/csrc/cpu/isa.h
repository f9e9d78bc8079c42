// Which instruction sets the kernels are built for beside the compiler's default. No -march flag:
// the library must start on any processor, the choice is made at run time (dispatch.cpp).
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DEFCN_D2_X86_DISPATCH 1
#else
#define DEFCN_D2_X86_DISPATCH 0
#endif
