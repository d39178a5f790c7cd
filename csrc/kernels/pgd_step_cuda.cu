#include <cuda_runtime.h>

#include "pgd_step.h"

namespace ltat {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;

template <class T>
struct alignas(sizeof(T) * kVector) Vector {
  T at[kVector];
};

__device__ float linf_element(const PgdStepArgs& args, int64_t i, float x_adv, float grad, float x) {
  const int64_t sample = args.eps_each || args.step_each ? i / args.sample_size : 0;
  return linf_step(x_adv, grad, x, linf_radius_of(args, sample), step_of(args, sample), args.lo, args.hi);
}

template <class Grad>
__global__ void linf_kernel(const PgdStepArgs args, int64_t size) {
  const auto* grad = static_cast<const Grad*>(args.grad);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += stride) {
    args.out[i] = linf_element(args, i, args.x_adv[i], to_float(grad[i]), args.x[i]);
  }
}

template <class Grad>
__global__ void linf_vector_kernel(const PgdStepArgs args, int64_t vectors) {
  const auto* x_advs = reinterpret_cast<const Vector<float>*>(args.x_adv);
  const auto* grads = static_cast<const Vector<Grad>*>(args.grad);
  const auto* xs = reinterpret_cast<const Vector<float>*>(args.x);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < vectors; i += stride) {
    const Vector<float> x_adv = x_advs[i], x = xs[i];
    const Vector<Grad> grad = grads[i];
    Vector<float> out;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      out.at[j] = linf_element(args, i * kVector + j, x_adv.at[j], to_float(grad.at[j]), x.at[j]);
    }
    reinterpret_cast<Vector<float>*>(args.out)[i] = out;
  }
}

// Sum over the block in a fixed order; every thread gets it.
__device__ double block_sum(double value) {
  __shared__ double partial[kThreads];
  __syncthreads();
  partial[threadIdx.x] = value;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) partial[threadIdx.x] += partial[threadIdx.x + width];
    __syncthreads();
  }
  return partial[0];
}

// One block per sample.
template <class Grad>
__global__ void l2_kernel(const PgdStepArgs args) {
  const int64_t sample = blockIdx.x, offset = sample * args.sample_size;
  const float *x_adv = args.x_adv + offset, *x = args.x + offset;
  const auto* grad = static_cast<const Grad*>(args.grad) + offset;
  float* out = args.out + offset;

  double squared = 0.0;
  for (int64_t i = threadIdx.x; i < args.sample_size; i += kThreads) squared += square(to_float(grad[i]));
  const double scale = l2_move_scale(block_sum(squared), step_of(args, sample));

  squared = 0.0;
  for (int64_t i = threadIdx.x; i < args.sample_size; i += kThreads) {
    squared += square(l2_delta(x_adv[i], to_float(grad[i]), x[i], scale));
  }
  const float shrink = l2_shrink(block_sum(squared), eps_of(args, sample));

  for (int64_t i = threadIdx.x; i < args.sample_size; i += kThreads) {
    out[i] = l2_apply(x[i], l2_delta(x_adv[i], to_float(grad[i]), x[i], scale), shrink, args.lo, args.hi);
  }
}

bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

bool can_vectorise(const PgdStepArgs& args, size_t grad_bytes) {
  return args.batch * args.sample_size % kVector == 0 && aligned(args.out, sizeof(Vector<float>)) &&
         aligned(args.x_adv, sizeof(Vector<float>)) && aligned(args.x, sizeof(Vector<float>)) &&
         aligned(args.grad, kVector * grad_bytes);
}

unsigned blocks_for(int64_t items) {
  constexpr int64_t kMaxBlocks = 1 << 16;
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <class Grad>
void launch_linf(const PgdStepArgs& args, cudaStream_t stream) {
  const int64_t size = args.batch * args.sample_size;
  if (can_vectorise(args, sizeof(Grad))) {
    linf_vector_kernel<Grad><<<blocks_for(size / kVector), kThreads, 0, stream>>>(args, size / kVector);
  } else {
    linf_kernel<Grad><<<blocks_for(size), kThreads, 0, stream>>>(args, size);
  }
}

template <class Grad>
void launch_l2(const PgdStepArgs& args, cudaStream_t stream) {
  l2_kernel<Grad><<<static_cast<unsigned>(args.batch), kThreads, 0, stream>>>(args);
}

const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* pgd_step_linf_cuda(const PgdStepArgs& args, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (args.grad_dtype) {
    case DType::kFloat32:
      launch_linf<float>(args, cuda_stream);
      break;
    case DType::kBFloat16:
      launch_linf<BFloat16>(args, cuda_stream);
      break;
    case DType::kFloat16:
      launch_linf<Float16>(args, cuda_stream);
      break;
  }
  return launch_error();
}

const char* pgd_step_l2_cuda(const PgdStepArgs& args, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (args.grad_dtype) {
    case DType::kFloat32:
      launch_l2<float>(args, cuda_stream);
      break;
    case DType::kBFloat16:
      launch_l2<BFloat16>(args, cuda_stream);
      break;
    case DType::kFloat16:
      launch_l2<Float16>(args, cuda_stream);
      break;
  }
  return launch_error();
}

}  // namespace ltat
