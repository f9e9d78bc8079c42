#include "dispatch.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>

#include "isa.h"

namespace defcn_d2::cpu {
namespace {

const KernelSet& best_supported() {
#if DEFCN_D2_X86_DISPATCH
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  // For tests and for measuring: a lower instruction set than the processor has.
  const char* limit = std::getenv("DEFCN_D2_OPS_SIMD");
  const auto allowed = [&](const char* name) {
    return limit == nullptr || std::strcmp(limit, name) == 0;
  };
  if (avx512 && allowed("avx512")) return kernels_avx512;
  if (avx2 && (allowed("avx2") || allowed("avx512"))) return kernels_avx2;
#endif
  return kernels_baseline;
}

}  // namespace

const KernelSet& kernels() {
  static const KernelSet& chosen = best_supported();
  return chosen;
}

}  // namespace defcn_d2::cpu
