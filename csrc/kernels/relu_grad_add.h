// The gradient at the input of a ReLU, from its output and the gradients of the one or two that read it. The
// formula stands here; the CPU and CUDA kernels apply it to arrays.
#pragma once

#include "channels.h"

namespace ltat {

// Tensors of `size` elements of one dtype in one dense memory order.
struct ReluGradAddArgs {
  void* out;
  const void* output;   // of the ReLU
  const void* grad;     // of one that reads it
  const void* other;    // of another, or null
  const float* scale;   // one per channel, or null: multiplies what passes the mask
  const void* outside;  // added after that, or null
  DType dtype;
  int64_t size;
  Channels channels;
};

// The gradient passes a NaN in the output, as in torch.
LTAT_INLINE float masked(float output, float grad) { return where(!(output <= 0.0f), grad); }

void relu_grad_add_cpu(const ReluGradAddArgs& args, ParallelFor parallel_for);

// Enqueues on `stream`, a cudaStream_t of the current device. The return value is an error message, or null.
const char* relu_grad_add_cuda(const ReluGradAddArgs& args, void* stream);

}  // namespace ltat
