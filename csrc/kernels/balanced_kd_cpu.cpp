// Compiled once per instruction set, into the namespace LTAT_ISA (see isa.h).
//
// Rows are computed in panels of whole vectors. A long row lies along the lanes, one row per panel, padded
// with -inf, whose softmax is 0; short rows lie across them, one row per lane, with class k of row r at index
// k * kRows + r. So no loop has a tail, and every instruction set adds in the same order.
#include "balanced_kd.h"

namespace ltat::LTAT_ISA {
namespace {

constexpr int kLanes = Lanes::kCount;

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

inline float larger(float a, float b) { return b > a ? b : a; }

// Combines all values, half with half. Each half is a separate array, which the compiler keeps in a register.
template <int kValues, class Combine>
inline float folded(const float* values, Combine combine) {
  if constexpr (kValues == 1) {
    return values[0];
  } else {
    float half[kValues / 2];
#pragma omp simd
    for (int k = 0; k < kValues / 2; ++k) half[k] = combine(values[k], values[k + kValues / 2]);
    return folded<kValues / 2>(half, combine);
  }
}

// Combines the lanes of one row, and sets them all to the result; does nothing with one row per lane.
template <int kRows, class Combine>
inline void across_parts(Lanes& lanes, Combine combine) {
  static_assert(kRows == 1 || kRows == kLanes);
  if constexpr (kRows == 1) {
    const float all = folded<kLanes>(lanes.at, combine);
    for (float& lane : lanes.at) lane = all;
  }
}

template <int kRows>
inline void sum_parts(Lanes& lanes) {
  across_parts<kRows>(lanes, [](float a, float b) { return a + b; });
}

template <int kRows>
inline Lanes row_max(const Lanes* panel, int64_t vectors) {
  Lanes max = panel[0];
  for (int64_t v = 1; v < vectors; ++v) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) max.at[lane] = larger(max.at[lane], panel[v].at[lane]);
  }
  across_parts<kRows>(max, larger);
  return max;
}

inline Lanes reciprocal(const Lanes& lanes) {
  Lanes result;
  for (int lane = 0; lane < kLanes; ++lane) result.at[lane] = 1.0f / lanes.at[lane];
  return result;
}

struct Softmax {
  Lanes max, sum;  // log-softmax = logit - max - log(sum)
};

// Turns the logits of a panel into e^(logit - max).
template <int kRows>
Softmax softmax(Lanes* panel, int64_t vectors) {
  const Lanes max = row_max<kRows>(panel, vectors);
  Lanes sum{};
  for (int64_t v = 0; v < vectors; ++v) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const float e = exp_nonpositive(panel[v].at[lane] - max.at[lane]);
      panel[v].at[lane] = e;
      sum.at[lane] += e;
    }
  }
  sum_parts<kRows>(sum);
  return {max, sum};
}

// The factors that turn the exponentials of both panels into probabilities q and p, and the shift that turns
// `gap` into log q - log p.
struct Divergence {
  Lanes student_inverse, teacher_inverse, gap_shift;
};

// log(a / b) of each row.
template <int kRows>
inline Lanes log_ratio(const Lanes& a, const Lanes& b) {
  Lanes result;
  for (int lane = 0; lane < kLanes; ++lane) {
    result.at[lane] = lane < kRows ? std::log(a.at[lane] / b.at[lane]) : result.at[0];
  }
  return result;
}

// Turns the logits of both panels into e^(logit - max), and sets `gap` to the difference of the two
// exponents, student minus teacher.
template <int kRows>
Divergence divergence(Lanes* student, Lanes* teacher, Lanes* gap, int64_t vectors) {
  const Lanes student_max = row_max<kRows>(student, vectors), teacher_max = row_max<kRows>(teacher, vectors);
  Lanes student_sum{}, teacher_sum{};
  for (int64_t v = 0; v < vectors; ++v) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const float s = student[v].at[lane] - student_max.at[lane];
      const float t = teacher[v].at[lane] - teacher_max.at[lane];
      gap[v].at[lane] = s - t;
      student[v].at[lane] = exp_nonpositive(s);
      teacher[v].at[lane] = exp_nonpositive(t);
    }
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      student_sum.at[lane] += student[v].at[lane];
      teacher_sum.at[lane] += teacher[v].at[lane];
    }
  }
  sum_parts<kRows>(student_sum);
  sum_parts<kRows>(teacher_sum);
  return {reciprocal(student_sum), reciprocal(teacher_sum), log_ratio<kRows>(teacher_sum, student_sum)};
}

template <class T>
const float* converted(const T* source, int64_t classes, float* row) {
#pragma omp simd
  for (int64_t k = 0; k < classes; ++k) row[k] = to_float(source[k]);
  return row;
}
const float* converted(const float* source, int64_t, float*) { return source; }

// The logits of one row as floats, converted into `row` if they are not floats already.
const float* as_floats(const Logits& logits, int64_t offset, int64_t classes, float* row) {
  return with_type(logits.dtype, [&](auto element) {
    return converted(static_cast<const decltype(element)*>(logits.data) + offset, classes, row);
  });
}

// The loss of up to kRows rows. The panels hold logits, then exponentials, then gradients.
template <int kRows>
struct Group {
  const BalancedKdArgs& args;
  int64_t vectors;
  Lanes *cls, *student, *teacher, *gap;
  float *row_a, *row_b;
  int64_t begin = 0, rows = 0;

  Group(const BalancedKdArgs& args, Lanes* memory)
      : args(args),
        vectors(whole_vectors(args.classes * kRows)),
        cls(memory),
        student(cls + vectors),
        teacher(student + vectors),
        gap(teacher + vectors),
        row_a(gap[vectors].at),
        row_b(gap[vectors + whole_vectors(args.classes)].at) {}

  // Lanes beyond the last row repeat it, so that all hold valid values.
  int64_t offset(int64_t r) const { return (begin + (r < rows ? r : rows - 1)) * args.classes; }

  // panel = (plus - minus + bias) * scale; minus and bias may be null.
  void lay_out(Lanes* panel, const Logits& plus, const Logits& minus, const float* bias, float scale) const {
    float* z = panel->at;
    for (int64_t r = 0; r < kRows; ++r) {
      const float* a = as_floats(plus, offset(r), args.classes, row_a);
      if (minus.data) {
        const float* b = as_floats(minus, offset(r), args.classes, row_b);
        for (int64_t k = 0; k < args.classes; ++k) z[k * kRows + r] = (a[k] - b[k]) * scale;
      } else if (bias) {
        for (int64_t k = 0; k < args.classes; ++k) z[k * kRows + r] = (a[k] + bias[k]) * scale;
      } else {
        for (int64_t k = 0; k < args.classes; ++k) z[k * kRows + r] = a[k] * scale;
      }
    }
    for (int64_t i = args.classes * kRows; i < vectors * kLanes; ++i) z[i] = -INFINITY;
  }

  void write(const Lanes* panel, float* grad) const {
    const float* values = panel->at;
    for (int64_t r = 0; r < rows; ++r) {
      float* out = grad + offset(r);
      for (int64_t k = 0; k < args.classes; ++k) out[k] = values[k * kRows + r];
    }
  }

  void cross_entropy() const {
    lay_out(cls, args.student, {}, args.log_prior, 1.0f);
    float chosen[kRows];  // the target's logit
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t target = args.target[begin + r];
      chosen[r] = target_in_range(args, target) ? cls->at[target * kRows + r] : NAN;
    }
    const Softmax q = softmax<kRows>(cls, vectors);
    for (int64_t r = 0; r < rows; ++r) {
      args.row_cls[begin + r] = std::log(q.sum.at[r]) + (q.max.at[r] - chosen[r]);
    }
    if (args.grad_adv) cross_entropy_gradient(reciprocal(q.sum));
  }

  void cross_entropy_gradient(const Lanes& inverse_sum) const {
    Lanes scale{};
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t r = lane % kRows;
      if (r < rows) scale.at[lane] = cls_grad_scale(args, args.target[begin + r]);
    }
    for (int64_t v = 0; v < vectors; ++v) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        cls[v].at[lane] = scale.at[lane] * (cls[v].at[lane] * inverse_sum.at[lane]);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t target = args.target[begin + r];
      if (target_in_range(args, target)) cls->at[target * kRows + r] -= scale.at[r];
    }
  }

  // Adds the divergence of the two panels to the rows, and its gradient to `cls`; the student's panel then
  // holds the gradient's negative.
  void add_divergence() const {
    const Divergence d = divergence<kRows>(student, teacher, gap, vectors);
    Lanes kl{};
    for (int64_t v = 0; v < vectors; ++v) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const float q = student[v].at[lane] * d.student_inverse.at[lane];
        const float p = teacher[v].at[lane] * d.teacher_inverse.at[lane];
        kl.at[lane] += kl_term(p, q, gap[v].at[lane] + d.gap_shift.at[lane]);
        student[v].at[lane] = q;
        teacher[v].at[lane] = p;
      }
    }
    sum_parts<kRows>(kl);
    for (int64_t r = 0; r < rows; ++r) args.row_kd[begin + r] += kl.at[r];
    if (args.grad_adv) add_divergence_gradient();
  }

  void add_divergence_gradient() const {
    const float scale = kd_grad_scale(args);
    for (int64_t v = 0; v < vectors; ++v) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const float grad = scale * (student[v].at[lane] - teacher[v].at[lane]);
        cls[v].at[lane] += grad;
        student[v].at[lane] = -grad;
      }
    }
  }

  void run(int64_t first, int64_t count) {
    begin = first;
    rows = count;
    const float inverse_t = 1.0f / args.temperature;
    cross_entropy();
    for (int64_t r = 0; r < rows; ++r) args.row_kd[begin + r] = 0.0f;
    if (args.teacher.data) {
      lay_out(student, args.student, {}, args.on_biased ? args.log_prior : nullptr, inverse_t);
      lay_out(teacher, args.teacher, {}, nullptr, inverse_t);
      add_divergence();
    }
    if (args.student_minus.data) {
      lay_out(student, args.student, args.student_minus, nullptr, inverse_t);
      lay_out(teacher, args.teacher_plus, args.teacher_minus, nullptr, inverse_t);
      add_divergence();
      if (args.grad_minus) write(student, args.grad_minus);
    }
    if (args.grad_adv) write(cls, args.grad_adv);
  }
};

template <int kRows>
void run_rows(const BalancedKdArgs& args, int64_t begin, int64_t end, Lanes* memory) {
  Group<kRows> group(args, memory);
  for (; begin < end; begin += kRows) group.run(begin, end - begin < kRows ? end - begin : kRows);
}

}  // namespace

void balanced_kd_rows(const BalancedKdArgs& args, int64_t begin, int64_t end, Lanes* memory) {
  (rows_lie_across(args.classes) ? run_rows<kLanes> : run_rows<1>)(args, begin, end, memory);
}

}  // namespace ltat::LTAT_ISA
