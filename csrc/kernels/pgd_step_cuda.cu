#include "cuda_common.h"
#include "pgd_step.h"

namespace ltat {
namespace {

__device__ float linf_element(const PgdStepArgs& args, int64_t i, float x_adv, float grad, float x) {
  const int64_t sample = args.eps_each || args.step_each ? i / args.sample_size : 0;
  return linf_step(x_adv, grad, x, linf_radius_of(args, sample), step_of(args, sample), args.lo, args.hi);
}

template <class Grad>
__global__ void linf_kernel(const PgdStepArgs args, int64_t size) {
  const auto* grad = static_cast<const Grad*>(args.grad);
  for (int64_t i = thread_index(); i < size; i += thread_count()) {
    args.out[i] = linf_element(args, i, args.x_adv[i], to_float(grad[i]), args.x[i]);
  }
}

template <class Grad>
__global__ void linf_vector_kernel(const PgdStepArgs args, int64_t vectors) {
  const auto* x_advs = reinterpret_cast<const Vector<float>*>(args.x_adv);
  const auto* grads = static_cast<const Vector<Grad>*>(args.grad);
  const auto* xs = reinterpret_cast<const Vector<float>*>(args.x);
  for (int64_t i = thread_index(); i < vectors; i += thread_count()) {
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

// The whole block computes one sample.
template <class Grad>
__device__ void l2_sample(const PgdStepArgs& args, int64_t sample) {
  const int64_t offset = sample * args.sample_size;
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

template <class Grad>
__global__ void l2_kernel(const PgdStepArgs args) {
  for (int64_t sample = blockIdx.x; sample < args.batch; sample += gridDim.x) l2_sample<Grad>(args, sample);
}

template <class Grad>
bool can_vectorise(const PgdStepArgs& args) {
  return args.batch * args.sample_size % kVector == 0 && is_aligned<float>(args.out) &&
         is_aligned<float>(args.x_adv) && is_aligned<float>(args.x) && is_aligned<Grad>(args.grad);
}

template <class Grad>
const char* launch_linf(const PgdStepArgs& args, void* stream) {
  const bool vectorised = can_vectorise<Grad>(args);
  const int64_t items = args.batch * args.sample_size / (vectorised ? kVector : 1);
  const unsigned blocks = blocks_for(items, kThreads, kMaxStridedBlocks);
  return launch(vectorised ? linf_vector_kernel<Grad> : linf_kernel<Grad>, blocks, stream, args, items);
}

}  // namespace

const char* pgd_step_linf_cuda(const PgdStepArgs& args, void* stream) {
  return with_type(args.grad_dtype, [&](auto grad) { return launch_linf<decltype(grad)>(args, stream); });
}

const char* pgd_step_l2_cuda(const PgdStepArgs& args, void* stream) {
  return with_type(args.grad_dtype, [&](auto grad) {
    return launch(l2_kernel<decltype(grad)>, blocks_for(args.batch, 1), stream, args);
  });
}

}  // namespace ltat
