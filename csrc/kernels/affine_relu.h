// ReLU of a scale and a shift per channel: batch norm in evaluation mode and what follows it. The formula
// stands here; the CPU and CUDA kernels apply it to arrays.
#pragma once

#include "channels.h"

namespace ltat {

// Tensors of `size` elements of one dtype in one dense memory order.
struct AffineReluArgs {
  void* out;
  const void* x;
  const float* scale;  // one per channel
  const float* shift;  // one per channel
  DType dtype;
  int64_t size;
  Channels channels;
};

// NaN stays NaN.
LTAT_INLINE float affine_relu_of(float x, float scale, float shift) {
  const float value = product(x, scale) + shift;
  return where(!(value <= 0.0f), value);
}

void affine_relu_cpu(const AffineReluArgs& args, ParallelFor parallel_for);

// Enqueues on `stream`, a cudaStream_t of the current device. The return value is an error message, or null.
const char* affine_relu_cuda(const AffineReluArgs& args, void* stream);

}  // namespace ltat
