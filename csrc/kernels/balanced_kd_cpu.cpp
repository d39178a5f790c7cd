// Compiled once per instruction set, each time into its own namespace (see isa.h).
#include "isa.h"

namespace ltat::LTAT_ISA {
namespace {

// Rows are padded to whole vectors of kLanes with -inf, whose softmax is 0: no loop has a tail, and the order
// of every sum is the same for each instruction set.
constexpr int kLanes = 16;

// e^x for x <= 0 (and NaN), within 2 ulp; below -87 the result, no longer a normal float, is 0.
inline float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = clamped - n * 0.693359375f - n * -2.12194440e-4f;
  float tail = 1.9875691500e-4f;
  tail = tail * r + 1.3981999507e-3f;
  tail = tail * r + 8.3334519073e-3f;
  tail = tail * r + 4.1665795894e-2f;
  tail = tail * r + 1.6666665459e-1f;
  tail = tail * r + 5.0000001201e-1f;
  const float mantissa = tail * r * r + r + 1.0f;
  const float power = float_from_bits((bits_from_float(shifted) + 127u) << 23);
  return x < -87.0f ? 0.0f : mantissa * power;
}

inline float sum_lanes(const float (&lanes)[kLanes]) {
  float sum = 0.0f;
  for (float lane : lanes) sum += lane;
  return sum;
}

inline float row_max(const float* row, int64_t padded) {
  float lanes[kLanes];
  for (float& lane : lanes) lane = -INFINITY;
  for (int64_t k = 0; k < padded; k += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = row[k + lane];
      lanes[lane] = value > lanes[lane] ? value : lanes[lane];
    }
  }
  float max = -INFINITY;
  for (float lane : lanes) max = lane > max ? lane : max;
  return max;
}

struct Softmax {
  float log_sum;      // log-softmax = logit - log_sum
  float inverse_sum;  // softmax = exponential * inverse_sum
};

// Fills `exponentials` with e^(logit - max).
inline Softmax softmax(const float* logits, float* exponentials, int64_t padded) {
  const float max = row_max(logits, padded);
  float lanes[kLanes] = {};
  for (int64_t k = 0; k < padded; k += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const float e = exp_nonpositive(logits[k + lane] - max);
      exponentials[k + lane] = e;
      lanes[lane] += e;
    }
  }
  const float sum = sum_lanes(lanes);
  return {max + std::log(sum), 1.0f / sum};
}

template <class T>
void add_scaled_typed(const void* data, int64_t offset, int64_t classes, float scale, float* row) {
  const T* source = static_cast<const T*>(data) + offset;
#pragma omp simd
  for (int64_t k = 0; k < classes; ++k) row[k] += scale * to_float(source[k]);
}

void add_scaled(const Logits& logits, int64_t offset, int64_t classes, float scale, float* row) {
  switch (logits.dtype) {
    case DType::kFloat32:
      return add_scaled_typed<float>(logits.data, offset, classes, scale, row);
    case DType::kBFloat16:
      return add_scaled_typed<BFloat16>(logits.data, offset, classes, scale, row);
    case DType::kFloat16:
      return add_scaled_typed<Float16>(logits.data, offset, classes, scale, row);
  }
}

void clear(float* row, int64_t classes, int64_t padded) {
  for (int64_t k = 0; k < classes; ++k) row[k] = 0.0f;
  for (int64_t k = classes; k < padded; ++k) row[k] = -INFINITY;
}

struct Scratch {
  float *student, *teacher, *student_exp, *teacher_exp;
  int64_t padded;

  Scratch(float* memory, int64_t classes)
      : student(memory),
        teacher(memory + padded_classes(classes)),
        student_exp(memory + 2 * padded_classes(classes)),
        teacher_exp(memory + 3 * padded_classes(classes)),
        padded(padded_classes(classes)) {}
};

float cls_row(const BalancedKdArgs& args, int64_t row, const Scratch& scratch) {
  const int64_t offset = row * args.classes, target = args.target[row];
  clear(scratch.student, args.classes, scratch.padded);
  add_scaled(args.student, offset, args.classes, 1.0f, scratch.student);
  for (int64_t k = 0; k < args.classes; ++k) scratch.student[k] += args.log_prior[k];
  const Softmax q = softmax(scratch.student, scratch.student_exp, scratch.padded);
  if (args.grad_adv) {
    const float scale = cls_grad_scale(args, target);
    float* grad = args.grad_adv + offset;
#pragma omp simd
    for (int64_t k = 0; k < args.classes; ++k) grad[k] = scale * (scratch.student_exp[k] * q.inverse_sum);
    if (target_in_range(args, target)) grad[target] -= scale;
  }
  return target_in_range(args, target) ? q.log_sum - scratch.student[target] : NAN;
}

// KL of the rows prepared in `scratch`; leaves q - p in scratch.student_exp.
float kl_row(const Scratch& scratch) {
  const Softmax q = softmax(scratch.student, scratch.student_exp, scratch.padded);
  const Softmax p = softmax(scratch.teacher, scratch.teacher_exp, scratch.padded);
  const float *student = scratch.student, *teacher = scratch.teacher, *teacher_exp = scratch.teacher_exp;
  float* difference = scratch.student_exp;
  float lanes[kLanes] = {};
  for (int64_t k = 0; k < scratch.padded; k += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t i = k + lane;
      const float p_i = teacher_exp[i] * p.inverse_sum;
      lanes[lane] += kl_term(p_i, teacher[i] - p.log_sum, student[i] - q.log_sum);
      difference[i] = difference[i] * q.inverse_sum - p_i;
    }
  }
  return sum_lanes(lanes);
}

float direct_kl_row(const BalancedKdArgs& args, int64_t row, const Scratch& scratch) {
  const int64_t offset = row * args.classes;
  const float inverse_t = 1.0f / args.temperature;
  clear(scratch.student, args.classes, scratch.padded);
  clear(scratch.teacher, args.classes, scratch.padded);
  add_scaled(args.student, offset, args.classes, inverse_t, scratch.student);
  add_scaled(args.teacher, offset, args.classes, inverse_t, scratch.teacher);
  if (args.on_biased) {
    for (int64_t k = 0; k < args.classes; ++k) scratch.student[k] += inverse_t * args.log_prior[k];
  }
  const float kl = kl_row(scratch);
  if (args.grad_adv) {
    const float scale = kd_grad_scale(args);
    float* grad = args.grad_adv + offset;
    for (int64_t k = 0; k < args.classes; ++k) grad[k] += scale * scratch.student_exp[k];
  }
  return kl;
}

float difference_kl_row(const BalancedKdArgs& args, int64_t row, const Scratch& scratch) {
  const int64_t offset = row * args.classes;
  const float inverse_t = 1.0f / args.temperature;
  clear(scratch.student, args.classes, scratch.padded);
  clear(scratch.teacher, args.classes, scratch.padded);
  add_scaled(args.student, offset, args.classes, inverse_t, scratch.student);
  add_scaled(args.student_minus, offset, args.classes, -inverse_t, scratch.student);
  add_scaled(args.teacher_plus, offset, args.classes, inverse_t, scratch.teacher);
  add_scaled(args.teacher_minus, offset, args.classes, -inverse_t, scratch.teacher);
  const float kl = kl_row(scratch);
  if (args.grad_adv) {
    const float scale = kd_grad_scale(args);
    float *grad_adv = args.grad_adv + offset, *grad_minus = args.grad_minus + offset;
    for (int64_t k = 0; k < args.classes; ++k) {
      const float grad = scale * scratch.student_exp[k];
      grad_adv[k] += grad;
      grad_minus[k] = -grad;
    }
  }
  return kl;
}

}  // namespace

void balanced_kd_rows(const BalancedKdArgs& args, int64_t begin, int64_t end, float* memory) {
  const Scratch scratch(memory, args.classes);
  for (int64_t row = begin; row < end; ++row) {
    args.row_cls[row] = cls_row(args, row, scratch);
    float kd = 0.0f;
    if (args.teacher.data) kd += direct_kl_row(args, row, scratch);
    if (args.student_minus.data) kd += difference_kl_row(args, row, scratch);
    args.row_kd[row] = kd;
  }
}

}  // namespace ltat::LTAT_ISA
