// Balanced softmax cross-entropy plus up to two distillation divergences, value and gradient in one pass.
//
//   cls = 1/B sum_b CE(s + log_prior, y)
//   kd  = unit * sum_b [ KL(softmax(t / T) || softmax(s' / T)) + KL(softmax((t+ - t-) / T) || softmax((s -
//   s-) / T)) ] loss = cls_weight * cls + kd_weight * kd
//
// s' is s, or s + log_prior where the student is compared with its bias on; unit is T^2 / B or T^2 / (B * C).
// A target probability of exactly 0 contributes 0, whatever its logarithm.
#pragma once

#include <cmath>

#include "common.h"

namespace ltat {

struct Logits {
  const void* data;  // [batch, classes], contiguous; null when the form does not use it
  DType dtype;
};

struct BalancedKdArgs {
  Logits student;
  Logits teacher;                                     // the direct divergence, or null
  Logits student_minus, teacher_plus, teacher_minus;  // the divergence of differences, or all null
  const int64_t* target;                              // [batch]
  const float* log_prior;                             // [classes]
  float cls_weight, kd_weight, temperature;
  bool elementmean, on_biased;
  int64_t batch, classes;
  float* row_cls;          // [batch]
  float* row_kd;           // [batch]
  float *loss, *cls, *kd;  // [1] each
  float* grad_adv;         // [batch, classes], or null: no gradient wanted
  float* grad_minus;       // [batch, classes], or null
};

LTAT_INLINE bool target_in_range(const BalancedKdArgs& args, int64_t target) {
  return target >= 0 && target < args.classes;
}

LTAT_INLINE double kd_unit(const BalancedKdArgs& args) {
  const double temperature = args.temperature;
  const double count = static_cast<double>(args.batch) * (args.elementmean ? args.classes : 1);
  return temperature * temperature / count;
}

// d loss / d (logit + log_prior) is this times (softmax - onehot); a target out of range poisons the row.
LTAT_INLINE float cls_grad_scale(const BalancedKdArgs& args, int64_t target) {
  return target_in_range(args, target) ? args.cls_weight / static_cast<float>(args.batch) : NAN;
}

// d loss / d (student logit of a divergence) is this times (q - p): T^2 of the loss against 1/T of the
// softmax.
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

// The part of one class in KL(p || q), with d = log q - log p: p * (e^d - 1 - d) = q - p - p * d. Summed over
// the classes q - p is 0, so the sum is that of p * (log p - log q), whose parts are of the order of d and of
// both signs, while the divergence is of the order of d^2: at a high temperature, where d is small, their
// rounding would be all that T^2 enlarges. Here no part is negative, and none is the difference of two nearly
// equal numbers.
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

// What the CPU computes on at a time; a fixed number, so that every instruction set adds in the same order.
struct alignas(64) Lanes {
  static constexpr int kCount = 16;
  float at[kCount];
};

LTAT_INLINE int64_t whole_vectors(int64_t numbers) { return (numbers + Lanes::kCount - 1) / Lanes::kCount; }

// Whether the CPU gives each row a lane of its own: it saves sums across lanes, at the price of strided
// access.
LTAT_INLINE bool rows_lie_across(int64_t classes) { return classes <= 64; }

// Vectors of scratch one thread needs on the CPU: four panels and two rows.
LTAT_INLINE int64_t balanced_kd_scratch_size(int64_t classes) {
  return 4 * (rows_lie_across(classes) ? classes : whole_vectors(classes)) + 2 * whole_vectors(classes);
}

void balanced_kd_cpu(const BalancedKdArgs& args, ParallelFor parallel_for);

// Enqueue on a CUDA stream; the return value is an error message, or null.
const char* balanced_kd_cuda(const BalancedKdArgs& args, void* stream);

}  // namespace ltat
