// One step of projected gradient ascent: move along the gradient, project onto the eps-ball, clamp to the box
// [lo, hi]. The formula stands here; the CPU and CUDA kernels apply it to arrays. B images of N elements
// each.
#pragma once

#include <cfloat>
#include <cmath>

#include "common.h"

namespace ltat {

struct PgdStepArgs {
  float* out;          // [B, N]; may be x_adv itself
  const float* x_adv;  // [B, N]
  const void* grad;    // [B, N] of grad_dtype
  const float* x;      // [B, N]
  DType grad_dtype;
  const float* eps_each;   // [B], or null: eps for all
  const float* step_each;  // [B], or null: step for all
  float eps, step;
  float lo, hi;
  int64_t batch, sample_size;                          // B, N
  double *grad_sums = nullptr, *delta_sums = nullptr;  // [B, l2_pieces], scratch of the CUDA l2 step
};

// A negative or NaN radius makes its sample NaN: the host cannot check the values of a CUDA tensor without
// waiting for them.
LTAT_INLINE float eps_of(const PgdStepArgs& args, int64_t sample) {
  const float eps = args.eps_each ? args.eps_each[sample] : args.eps;
  return eps >= 0.0f ? eps : NAN;
}

// The largest float stands for an infinite radius: it reaches as far, and x + eps is never inf - inf.
LTAT_INLINE float linf_radius_of(const PgdStepArgs& args, int64_t sample) {
  const float eps = eps_of(args, sample);
  return eps > FLT_MAX ? FLT_MAX : eps;
}

LTAT_INLINE float step_of(const PgdStepArgs& args, int64_t sample) {
  return args.step_each ? args.step_each[sample] : args.step;
}

// step * sign(grad) without a product: the step with the gradient's sign bit. A NaN in grad is lost here.
LTAT_INLINE float signed_step(float step, float grad) {
  const float along = float_from_bits(bits_from_float(step) ^ (bits_from_float(grad) & 0x80000000u));
  return grad != 0.0f ? along : step * 0.0f;
}

// One vector instruction on the CPU; gcc compiles the two comparisons to three.
LTAT_INLINE bool either_is_nan(float a, float b) {
#ifdef __CUDA_ARCH__
  return a != a || b != b;
#else
  return __builtin_isunordered(a, b);
#endif
}

LTAT_INLINE float clamp_keeping_nan(float value, float lo, float hi) {
  const float raised = value < lo ? lo : value;
  return raised > hi ? hi : raised;
}

LTAT_INLINE float linf_step(float x_adv, float grad, float x, float eps, float step, float lo, float hi) {
  const float low = x - eps;
  const float high = x + eps;
  // One test covers a NaN in grad, x and eps, and each test has one condition: each is one vector
  // instruction, and the step runs at the speed of memory.
  const float moved = either_is_nan(grad, low) ? NAN : x_adv + signed_step(step, grad);
  return clamp_keeping_nan(moved, low < lo ? lo : low, high > hi ? hi : high);
}

// Squares and norms are double: the square of a gradient of 1e-25 underflows in float.
LTAT_INLINE double square(float value) { return static_cast<double>(value) * static_cast<double>(value); }

// Factor of the gradient in an l2 step; a zero gradient does not move the sample.
LTAT_INLINE double l2_move_scale(double squared_grad, float step) {
  return squared_grad == 0.0 ? 0.0 : static_cast<double>(step) / sqrt(squared_grad);
}

LTAT_INLINE float l2_delta(float x_adv, float grad, float x, double move_scale) {
  return (x_adv - x) + static_cast<float>(static_cast<double>(grad) * move_scale);
}

// Factor that projects a perturbation onto the ball; written so that a NaN on either side stays NaN.
LTAT_INLINE float l2_shrink(double squared_delta, float eps) {
  const double norm = sqrt(squared_delta);
  return norm <= eps ? 1.0f : static_cast<float>(eps / norm);
}

LTAT_INLINE float l2_apply(float x, float delta, float shrink, float lo, float hi) {
  return clamp_keeping_nan(x + delta * shrink, lo, hi);
}

// Pieces of a sample that blocks of the CUDA l2 step share, at most as many as a block has threads; 1: no scratch
// is needed. The size alone decides, so that a sample is the same among any number of others.
LTAT_INLINE int64_t l2_pieces(int64_t sample_size) {
  constexpr int64_t kPiece = 1 << 13, kMost = 256;
  if (sample_size <= 2 * kPiece) return 1;
  const int64_t pieces = (sample_size + kPiece - 1) / kPiece;
  return pieces < kMost ? pieces : kMost;
}

void pgd_step_linf_cpu(const PgdStepArgs& args, ParallelFor parallel_for);
void pgd_step_l2_cpu(const PgdStepArgs& args, ParallelFor parallel_for);

// Enqueue on `stream`, a cudaStream_t of the current device. The return value is an error message, or null.
const char* pgd_step_linf_cuda(const PgdStepArgs& args, void* stream);
const char* pgd_step_l2_cuda(const PgdStepArgs& args, void* stream);

}  // namespace ltat
