// Schemas of the operators. Fake tensors and autograd are registered in Python
// (ops/registration.py).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(defcn_d2, m) {
  m.def("max_filter_3d(Tensor[] levels, int tau, int kernel_size) -> Tensor[]");
  // Also the winner of every output, for the backward.
  m.def(
      "max_filter_3d_with_codes(Tensor[] levels, int tau, int kernel_size) -> (Tensor[], "
      "Tensor[])");
  m.def(
      "max_filter_3d_backward(Tensor[] grads, Tensor[] codes, int tau, int kernel_size) -> "
      "Tensor[]");
  m.def(
      "overlap_with_better(Tensor logits, Tensor boxes, SymInt[] heights, SymInt[] widths, int "
      "tau) -> Tensor");
  m.def("cpu_capability() -> str");  // the instruction set the CPU kernels run with
}
