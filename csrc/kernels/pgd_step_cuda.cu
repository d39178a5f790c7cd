#include "cuda_common.h"
#include "pgd_step.h"

namespace ltat {
namespace {

constexpr int kCount = kAccess / sizeof(float);  // elements that a thread moves at once

using Values = Vector<float, kCount>;

// Consecutive elements of one sample, or of the whole batch. Where they are not `aligned` they are read one by
// one, by the same threads in the same order: no sum depends on where the tensors lie.
template <class Grad>
struct Piece {
  float* out;
  const float *x_adv, *x;
  const Grad* grad;
  int64_t size;
  bool aligned;

  __device__ Piece(const PgdStepArgs& args, int64_t begin, int64_t size, bool aligned)
      : out(args.out + begin),
        x_adv(args.x_adv + begin),
        x(args.x + begin),
        grad(static_cast<const Grad*>(args.grad) + begin),
        size(size),
        aligned(aligned) {}

  template <class T>
  __device__ Values at(const T* values, int64_t i) const {
    return read_floats<kCount>(values + i, size - i, aligned);
  }

  // Sum of term(x_adv, grad, x) over all elements, by the whole block.
  template <class Term>
  __device__ double sum(const Term& term) const {
    double total = 0.0;
    for (int64_t i = int64_t{threadIdx.x} * kCount; i < size; i += kThreads * kCount) {
      const Values from = at(x_adv, i), along = at(grad, i), around = at(x, i);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (i + j < size) total += term(from.at[j], along.at[j], around.at[j]);
      }
    }
    return block_sum(total);
  }

  // Writes step(x_adv, grad, x) for the elements of one of `threads` threads.
  template <class Step>
  __device__ void write(int64_t thread, int64_t threads, const Step& step) const {
    for (int64_t i = thread * kCount; i < size; i += threads * kCount) {
      const Values from = at(x_adv, i), along = at(grad, i), around = at(x, i);
      Values stepped;
#pragma unroll
      for (int j = 0; j < kCount; ++j) stepped.at[j] = step(from.at[j], along.at[j], around.at[j]);
      write_floats<kCount>(stepped, out + i, size - i, aligned);
    }
  }
};

// Blocks along y share the samples, blocks along x the elements of one sample.
template <class Grad>
__global__ void linf_kernel(const PgdStepArgs args, int64_t samples, int64_t size, bool aligned) {
  for (int64_t sample = blockIdx.y; sample < samples; sample += gridDim.y) {
    const float eps = linf_radius_of(args, sample), step = step_of(args, sample);
    const Piece<Grad> piece(args, sample * size, size, aligned);
    piece.write(thread_index(), thread_count(), [&](float x_adv, float grad, float x) {
      return linf_step(x_adv, grad, x, eps, step, args.lo, args.hi);
    });
  }
}

template <class Grad>
__device__ double squared_grad(const Piece<Grad>& piece) {
  return piece.sum([](float, float grad, float) { return square(grad); });
}

template <class Grad>
__device__ double squared_delta(const Piece<Grad>& piece, double scale) {
  return piece.sum([=](float x_adv, float grad, float x) { return square(l2_delta(x_adv, grad, x, scale)); });
}

template <class Grad>
__device__ void write_l2(const PgdStepArgs& args, const Piece<Grad>& piece, double scale, float shrink) {
  piece.write(threadIdx.x, kThreads, [&](float x_adv, float grad, float x) {
    return l2_apply(x, l2_delta(x_adv, grad, x, scale), shrink, args.lo, args.hi);
  });
}

// A whole sample by one block.
template <class Grad>
__global__ void l2_kernel(const PgdStepArgs args, bool aligned) {
  for (int64_t sample = blockIdx.y; sample < args.batch; sample += gridDim.y) {
    const Piece<Grad> piece(args, sample * args.sample_size, args.sample_size, aligned);
    const double scale = l2_move_scale(squared_grad(piece), step_of(args, sample));
    write_l2(args, piece, scale, l2_shrink(squared_delta(piece, scale), eps_of(args, sample)));
  }
}

// A large sample by all blocks along x, a piece each, in three kernels: a norm needs the whole sample. Each
// adds the sums of the pieces by itself, in their order.
template <class Grad>
__device__ Piece<Grad> piece_of(const PgdStepArgs& args, int64_t sample, bool aligned) {
  const int64_t vectors = (args.sample_size + kCount - 1) / kCount;
  const int64_t most = (vectors + gridDim.x - 1) / gridDim.x * kCount;
  const int64_t begin = blockIdx.x * most, left = args.sample_size - begin;
  return Piece<Grad>(args, sample * args.sample_size + begin, left < most ? left : most, aligned);
}

__device__ double* piece_sums(double* sums, int64_t sample) { return sums + sample * gridDim.x; }

__device__ double whole_sum(double* sums, int64_t sample) {
  return block_sum(threadIdx.x < gridDim.x ? piece_sums(sums, sample)[threadIdx.x] : 0.0);
}

template <class Grad>
__global__ void l2_grad_kernel(const PgdStepArgs args, bool aligned) {
  for (int64_t sample = blockIdx.y; sample < args.batch; sample += gridDim.y) {
    const double sum = squared_grad(piece_of<Grad>(args, sample, aligned));
    if (threadIdx.x == 0) piece_sums(args.grad_sums, sample)[blockIdx.x] = sum;
  }
}

template <class Grad>
__global__ void l2_delta_kernel(const PgdStepArgs args, bool aligned) {
  for (int64_t sample = blockIdx.y; sample < args.batch; sample += gridDim.y) {
    const double scale = l2_move_scale(whole_sum(args.grad_sums, sample), step_of(args, sample));
    const double sum = squared_delta(piece_of<Grad>(args, sample, aligned), scale);
    if (threadIdx.x == 0) piece_sums(args.delta_sums, sample)[blockIdx.x] = sum;
  }
}

template <class Grad>
__global__ void l2_write_kernel(const PgdStepArgs args, bool aligned) {
  for (int64_t sample = blockIdx.y; sample < args.batch; sample += gridDim.y) {
    const double scale = l2_move_scale(whole_sum(args.grad_sums, sample), step_of(args, sample));
    const float shrink = l2_shrink(whole_sum(args.delta_sums, sample), eps_of(args, sample));
    write_l2(args, piece_of<Grad>(args, sample, aligned), scale, shrink);
  }
}

// Whether the samples, of `size` elements each, can be moved as vectors.
template <class Grad>
bool can_vectorise(const PgdStepArgs& args, int64_t size) {
  return size % kCount == 0 && is_aligned<float, kCount>(args.out) && is_aligned<float, kCount>(args.x_adv) &&
         is_aligned<float, kCount>(args.x) && is_aligned<Grad, kCount>(args.grad);
}

template <class Grad>
const char* launch_linf(const PgdStepArgs& args, void* stream) {
  // With one radius and one step for all, the batch is one long sample.
  const int64_t samples = args.eps_each || args.step_each ? args.batch : 1;
  const int64_t size = args.batch * args.sample_size / samples;
  const dim3 grid(blocks_for(size, kThreads * kCount, kMaxStridedBlocks),
                  blocks_for(samples, 1, kMaxBlocksY));
  return launch(linf_kernel<Grad>, grid, stream, args, samples, size, can_vectorise<Grad>(args, size));
}

template <class Grad>
const char* launch_l2(const PgdStepArgs& args, void* stream) {
  const bool aligned = can_vectorise<Grad>(args, args.sample_size);
  const dim3 grid(static_cast<unsigned>(l2_pieces(args.sample_size)), blocks_for(args.batch, 1, kMaxBlocksY));
  if (grid.x == 1) return launch(l2_kernel<Grad>, grid, stream, args, aligned);
  for (const auto kernel : {l2_grad_kernel<Grad>, l2_delta_kernel<Grad>, l2_write_kernel<Grad>}) {
    if (const char* error = launch(kernel, grid, stream, args, aligned)) return error;
  }
  return nullptr;
}

}  // namespace

const char* pgd_step_linf_cuda(const PgdStepArgs& args, void* stream) {
  return with_type(args.grad_dtype, [&](auto grad) { return launch_linf<decltype(grad)>(args, stream); });
}

const char* pgd_step_l2_cuda(const PgdStepArgs& args, void* stream) {
  return with_type(args.grad_dtype, [&](auto grad) { return launch_l2<decltype(grad)>(args, stream); });
}

}  // namespace ltat
