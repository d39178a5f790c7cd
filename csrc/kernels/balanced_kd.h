// Balanced softmax cross-entropy plus up to two distillation divergences, value and gradient in one pass.
//
//   loss = cls_weight * cls + kd_weight * kd
//   cls  = 1/B * sum_b CE(s + log_prior, y)
//   kd   = unit * sum_b [ KL(p(t) || p(s')) + KL(p(t+ - t-) || p(s - s-)) ],   p(z) = softmax(z / T)
//
// s are the student's logits, t the teacher's, of B images and C classes; + and - stand for the images at
// x + delta and x - delta. s' is s, or s + log_prior if on_biased; unit is T^2 / B, or T^2 / (B * C) if
// elementmean. A teacher probability of exactly 0 contributes 0.
#pragma once

#include <cmath>

#include "common.h"

namespace ltat {

struct Logits {
  const void* data;  // [B, C], contiguous; null when the form does not use it
  DType dtype;
};

struct BalancedKdArgs {
  Logits student;
  Logits teacher;                                     // the direct divergence, or null
  Logits student_minus, teacher_plus, teacher_minus;  // the divergence of differences, or all null
  const int64_t* target;                              // [B]
  const float* log_prior;                             // [C]
  float cls_weight, kd_weight, temperature;
  bool elementmean, on_biased;
  int64_t batch, classes;  // B, C
  float* row_cls;          // [B]
  float* row_kd;           // [B]
  float *loss, *cls, *kd;  // [1] each
  float* grad_adv;         // [B, C], or null: no gradient wanted
  float* grad_minus;       // [B, C], or null
};

LTAT_INLINE bool target_in_range(const BalancedKdArgs& args, int64_t target) {
  return target >= 0 && target < args.classes;
}

LTAT_INLINE double kd_unit(const BalancedKdArgs& args) {
  const double temperature = args.temperature;
  const double count = static_cast<double>(args.batch) * (args.elementmean ? args.classes : 1);
  return temperature * temperature / count;
}

// d loss / d (logit + log_prior) is this times (softmax - onehot); a target out of range makes the row NaN.
LTAT_INLINE float cls_grad_scale(const BalancedKdArgs& args, int64_t target) {
  return target_in_range(args, target) ? args.cls_weight / static_cast<float>(args.batch) : NAN;
}

// d loss / d (student logit of a divergence) is this times (q - p): T^2 of the loss over T of the softmax.
LTAT_INLINE float kd_grad_scale(const BalancedKdArgs& args) {
  return static_cast<float>(args.kd_weight * kd_unit(args) / args.temperature);
}

// (e^d - 1 - d) / d^2 for |d| <= 1, within 1e-7 of itself.
LTAT_INLINE float exp_remainder(float d) {
  float sum = 2.76907281e-6f;
  sum = sum * d + 2.53332312e-5f;
  sum = sum * d + 1.98444090e-4f;
  sum = sum * d + 1.38858228e-3f;
  sum = sum * d + 8.33330955e-3f;
  sum = sum * d + 4.16667163e-2f;
  sum = sum * d + 1.66666672e-1f;
  return sum * d + 0.5f;
}

// The term of one class in KL(p || q), with d = log q - log p: p * (e^d - 1 - d) = q - p - p * d. Over the
// classes q - p sums to 0, so the sum equals that of p * (log p - log q). Those terms are of the order of d
// and of both signs, while the divergence is of the order of d^2: at a high temperature, where d is small,
// T^2 would enlarge nothing but their rounding errors. Here no term is negative, and none is the difference
// of two nearly equal numbers.
LTAT_INLINE float kl_term(float p, float q, float d) {
  const float small = p * (d * d * exp_remainder(d));
  const float large = q - p - p * d;
  const float term = d * d <= 1.0f ? small : large;
  return p == 0.0f ? q : term;
}

LTAT_INLINE void write_losses(const BalancedKdArgs& args, double cls_sum, double kd_sum) {
  const float cls = static_cast<float>(cls_sum / static_cast<double>(args.batch));
  const float kd = static_cast<float>(kd_sum * kd_unit(args));
  *args.cls = cls;
  *args.kd = kd;
  *args.loss = args.cls_weight * cls + args.kd_weight * kd;
}

// The floats that the CPU computes on at once: a fixed number, so that every instruction set adds in the same
// order.
struct alignas(64) Lanes {
  static constexpr int kCount = 16;
  float at[kCount];
};

LTAT_INLINE int64_t whole_vectors(int64_t floats) { return (floats + Lanes::kCount - 1) / Lanes::kCount; }

// Whether each row has one lane on the CPU: that saves sums across lanes, at the price of strided access.
LTAT_INLINE bool rows_lie_across(int64_t classes) { return classes <= 64; }

// Vectors of scratch that a thread of the CPU kernel needs: four panels and two rows.
LTAT_INLINE int64_t balanced_kd_scratch_size(int64_t classes) {
  return 4 * (rows_lie_across(classes) ? classes : whole_vectors(classes)) + 2 * whole_vectors(classes);
}

void balanced_kd_cpu(const BalancedKdArgs& args, ParallelFor parallel_for);

// Enqueues on `stream`, a cudaStream_t of the current device. The return value is an error message, or null.
const char* balanced_kd_cuda(const BalancedKdArgs& args, void* stream);

}  // namespace ltat
