// What the ops need of LibTorch's stable ABI: element types, torch's threads, the current CUDA stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "../kernels/common.h"

// Defined only where torch itself was built with CUDA; weak, so that one binary loads in either.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace ltat {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
      return DType::kFloat32;
  }
}

inline void check_dtype(const Tensor& tensor, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
}

inline void check_same_device(const Tensor& tensor, const Tensor& reference, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() == reference.is_cuda() && tensor.get_device() == reference.get_device(),
                  name, " lies on another device");
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A contiguous, uninitialised tensor on the device of `like`; the dtype is a code of aoti_torch_dtype_*().
// torch::stable::new_empty looks its operator up by name, which costs three times the allocation itself.
inline Tensor empty_on(const Tensor& like, std::initializer_list<int64_t> shape, int32_t dtype) {
  constexpr size_t kMaxDims = 4;
  STD_TORCH_CHECK(shape.size() <= kMaxDims, "too many dimensions");
  int64_t strides[kMaxDims], stride = 1;
  for (size_t dim = shape.size(); dim-- > 0; stride *= shape.begin()[dim]) strides[dim] = stride;
  int32_t device_type = 0;
  AtenTensorHandle handle = nullptr;
  const bool made = aoti_torch_get_device_type(like.get(), &device_type) == 0 &&
                    aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(), strides,
                                             dtype, device_type, like.get_device(), &handle) == 0;
  STD_TORCH_CHECK(made, "torch could not allocate a tensor");
  return Tensor(handle);
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// The threads of torch: a second OpenMP runtime would compete with them for the cores.
inline void torch_threads(int64_t size, int64_t grain, void* context, RangeBody body) {
  torch::stable::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

inline void* current_stream(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream,
                  "this torch has no CUDA; install a CUDA build of torch");
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream) == 0,
                  "torch returned no current CUDA stream");
  return stream;
}

// Calls a launcher for the device of `on` and its current stream.
template <class Args>
void enqueue(const char* (*launcher)(const Args& args, void* stream), const Args& args, const Tensor& on) {
  const torch::stable::accelerator::DeviceGuard guard(on.get_device());
  const char* error = launcher(args, current_stream(on));
  STD_TORCH_CHECK(error == nullptr, "CUDA kernel launch failed: ", error);
}

}  // namespace ltat
