// Compiled once per instruction set, into the namespace LTAT_ISA (see isa.h).
#include "pgd_step.h"

namespace ltat::LTAT_ISA {
namespace {

// A fixed number of partial sums, so that every instruction set adds in the same order.
constexpr int kLanes = 8;
constexpr int kBlock = 128;

template <class Term>
double lane_sum(int64_t size, Term term) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (int lane = 0; i < size; ++i, ++lane) lanes[lane] += term(i);
  double sum = 0.0;
  for (double lane : lanes) sum += lane;
  return sum;
}

template <class Grad>
void linf_segment(const PgdStepArgs& args, int64_t sample, int64_t begin, int64_t end) {
  const float eps = linf_radius_of(args, sample), step = step_of(args, sample), lo = args.lo, hi = args.hi;
  const float *x_adv = args.x_adv, *x = args.x;
  const Grad* grad = static_cast<const Grad*>(args.grad);
  float* out = args.out;
  const auto stepped = [=](int64_t i) {
    return linf_step(x_adv[i], to_float(grad[i]), x[i], eps, step, lo, hi);
  };
  // A block is read before it is written: a load waits for an earlier store whose address is the same modulo
  // a page, and tensors often lie so.
  int64_t i = begin;
  for (; i + kBlock <= end; i += kBlock) {
    float block[kBlock];
#pragma omp simd
    for (int64_t k = 0; k < kBlock; ++k) block[k] = stepped(i + k);
    std::memcpy(out + i, block, sizeof(block));
  }
#pragma omp simd
  for (int64_t k = i; k < end; ++k) out[k] = stepped(k);
}

template <class Grad>
void linf_range(const PgdStepArgs& args, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t sample = begin / args.sample_size;
    const int64_t sample_end = (sample + 1) * args.sample_size;
    const int64_t stop = sample_end < end ? sample_end : end;
    linf_segment<Grad>(args, sample, begin, stop);
    begin = stop;
  }
}

template <class Grad>
void l2_sample(const PgdStepArgs& args, int64_t sample) {
  const int64_t offset = sample * args.sample_size, size = args.sample_size;
  const float lo = args.lo, hi = args.hi;
  const float *x_adv = args.x_adv + offset, *x = args.x + offset;
  const Grad* grad = static_cast<const Grad*>(args.grad) + offset;
  float* out = args.out + offset;

  const double squared_grad = lane_sum(size, [=](int64_t i) { return square(to_float(grad[i])); });
  const double scale = l2_move_scale(squared_grad, step_of(args, sample));
  const double squared_delta =
      lane_sum(size, [=](int64_t i) { return square(l2_delta(x_adv[i], to_float(grad[i]), x[i], scale)); });
  const float shrink = l2_shrink(squared_delta, eps_of(args, sample));
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    out[i] = l2_apply(x[i], l2_delta(x_adv[i], to_float(grad[i]), x[i], scale), shrink, lo, hi);
  }
}

template <class Grad>
void l2_range(const PgdStepArgs& args, int64_t begin, int64_t end) {
  for (int64_t sample = begin; sample < end; ++sample) l2_sample<Grad>(args, sample);
}

}  // namespace

void pgd_step_linf_range(const PgdStepArgs& args, int64_t begin, int64_t end) {
  with_type(args.grad_dtype, [&](auto grad) { linf_range<decltype(grad)>(args, begin, end); });
}

void pgd_step_l2_range(const PgdStepArgs& args, int64_t begin, int64_t end) {
  with_type(args.grad_dtype, [&](auto grad) { l2_range<decltype(grad)>(args, begin, end); });
}

}  // namespace ltat::LTAT_ISA
