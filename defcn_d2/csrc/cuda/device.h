// The device that a call runs on.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace defcn_d2::cuda {

// Sets the device of the tensors for the time of a call, and knows its current stream.
struct OnDevice {
  int32_t index;
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit OnDevice(const torch::stable::Tensor& tensor)
      : index(tensor.get_device_index()), guard(index), stream(nullptr) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
    stream = static_cast<cudaStream_t>(current);
  }
};

}  // namespace defcn_d2::cuda
