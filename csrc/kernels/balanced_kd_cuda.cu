#include "arrivals.h"
#include "balanced_kd.h"
#include "cuda_common.h"

namespace ltat {
namespace {

// Values of consecutive classes of one row.
template <int kWidth>
using Values = Vector<float, kWidth>;

// `beyond` stands for the classes past the end of the row.
template <int kWidth>
__device__ Values<kWidth> load(const Logits& logits, int64_t i, int64_t count, bool aligned, float beyond) {
  switch (logits.dtype) {
    case DType::kBFloat16:
      return read_floats<kWidth>(static_cast<const BFloat16*>(logits.data) + i, count, aligned, beyond);
    case DType::kFloat16:
      return read_floats<kWidth>(static_cast<const Float16*>(logits.data) + i, count, aligned, beyond);
    default:
      return read_floats<kWidth>(static_cast<const float*>(logits.data) + i, count, aligned, beyond);
  }
}

// Running max and sum of e^(z - max): log-sum-exp in one read of the logits. The max is never NaN; the sum is
// where a logit is.
struct LogSum {
  float max = -INFINITY;
  float sum = 0.0f;

  template <int kWidth>
  __device__ void add(const Values<kWidth>& z) {
    float highest = max;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) highest = fmaxf(highest, z.at[j]);
    // While all are -inf their exponentials are 0, and not those of -inf - -inf.
    const float shift = highest == -INFINITY ? 0.0f : highest;
    sum *= expf(max - shift);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += expf(z.at[j] - shift);
    max = highest;
  }
  __device__ float value() const { return max + logf(sum); }
};

// Symmetric in its arguments to the bit, so that all lanes of a butterfly end with the same value.
__device__ LogSum merged(LogSum a, LogSum b) {
  const bool swapped = a.max < b.max;
  const float high = swapped ? b.max : a.max, low = swapped ? a.max : b.max;
  const float high_sum = swapped ? b.sum : a.sum, low_sum = swapped ? a.sum : b.sum;
  return {high, low_sum != 0.0f ? high_sum + low_sum * expf(low - high) : high_sum};
}

__device__ LogSum shuffled(LogSum value, int mask) {
  return {__shfl_xor_sync(0xffffffffu, value.max, mask), __shfl_xor_sync(0xffffffffu, value.sum, mask)};
}
__device__ float merged(float a, float b) { return a + b; }
__device__ float shuffled(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Combines the values of the kLanes threads of one row, a warp or the whole block; every thread gets the
// result.
template <int kLanes, class T>
__device__ T across_lanes(T value) {
  for (int mask = 16; mask > 0; mask /= 2) value = merged(value, shuffled(value, mask));
  if constexpr (kLanes > 32) {
    __shared__ char memory[kLanes / 32 * sizeof(T)] __attribute__((aligned(16)));
    T* warps = reinterpret_cast<T*>(memory);
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = warps[0];
    for (int warp = 1; warp < kLanes / 32; ++warp) value = merged(value, warps[warp]);
  }
  return value;
}

template <int kWidth, class Combine>
__device__ Values<kWidth> combined(const Values<kWidth>& a, const Values<kWidth>& b, const Combine& combine) {
  Values<kWidth> result;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) result.at[j] = combine(a.at[j], b.at[j]);
  return result;
}

// Logits of one row as each term of the loss sees them, those of consecutive classes from k on: -inf, of
// probability 0, past the end of the row.
template <int kWidth>
struct Row {
  const BalancedKdArgs& args;
  int64_t offset;
  float inverse_t;
  bool aligned;

  __device__ bool direct() const { return args.teacher.data; }
  __device__ bool differences() const { return args.student_minus.data; }
  __device__ float cls(int64_t k) const {
    return load<1>(args.student, offset + k, 1, true, 0.0f).at[0] + args.log_prior[k];
  }

  __device__ Values<kWidth> logits(const Logits& of, int64_t k, float beyond = -INFINITY) const {
    return load<kWidth>(of, offset + k, args.classes - k, aligned, beyond);
  }
  __device__ Values<kWidth> prior(int64_t k) const {
    return read_floats<kWidth>(args.log_prior + k, args.classes - k, aligned);
  }
  __device__ Values<kWidth> cls(const Values<kWidth>& student, const Values<kWidth>& prior) const {
    return combined(student, prior, [](float s, float bias) { return s + bias; });
  }
  __device__ Values<kWidth> student(const Values<kWidth>& student, const Values<kWidth>& prior) const {
    return combined(student, prior,
                    [&](float s, float bias) { return (s + (args.on_biased ? bias : 0.0f)) * inverse_t; });
  }
  __device__ Values<kWidth> teacher(int64_t k) const {
    const Values<kWidth> teacher = logits(args.teacher, k);
    return combined(teacher, teacher, [&](float t, float) { return t * inverse_t; });
  }
  __device__ Values<kWidth> student_difference(const Values<kWidth>& student, int64_t k) const {
    return difference(student, logits(args.student_minus, k, 0.0f));
  }
  __device__ Values<kWidth> teacher_difference(int64_t k) const {
    return difference(logits(args.teacher_plus, k), logits(args.teacher_minus, k, 0.0f));
  }
  __device__ Values<kWidth> difference(const Values<kWidth>& plus, const Values<kWidth>& minus) const {
    return combined(plus, minus, [&](float p, float m) { return (p - m) * inverse_t; });
  }
};

// Log-sum-exp of each softmax of one row; undefined for the terms that the form does not use.
struct RowSums {
  LogSum cls;
  float student = 0.0f, teacher = 0.0f, student_difference = 0.0f, teacher_difference = 0.0f;
};

template <int kLanes, int kWidth>
__device__ RowSums row_sums(const Row<kWidth>& row, int lane) {
  LogSum cls, student, teacher, student_difference, teacher_difference;
  for (int64_t k = lane * kWidth; k < row.args.classes; k += kLanes * kWidth) {
    const Values<kWidth> s = row.logits(row.args.student, k), prior = row.prior(k);
    cls.add<kWidth>(row.cls(s, prior));
    if (row.direct()) {
      student.add<kWidth>(row.student(s, prior));
      teacher.add<kWidth>(row.teacher(k));
    }
    if (row.differences()) {
      student_difference.add<kWidth>(row.student_difference(s, k));
      teacher_difference.add<kWidth>(row.teacher_difference(k));
    }
  }
  RowSums sums{across_lanes<kLanes>(cls)};
  if (row.direct()) {
    sums.student = across_lanes<kLanes>(student).value();
    sums.teacher = across_lanes<kLanes>(teacher).value();
  }
  if (row.differences()) {
    sums.student_difference = across_lanes<kLanes>(student_difference).value();
    sums.teacher_difference = across_lanes<kLanes>(teacher_difference).value();
  }
  return sums;
}

// Adds the divergence at some classes to `kl` and returns q - p.
template <int kWidth>
__device__ Values<kWidth> divergence(const Values<kWidth>& teacher, float teacher_log_sum,
                                     const Values<kWidth>& student, float student_log_sum, float& kl) {
  return combined(teacher, student, [&](float t, float s) {
    const float p = expf(t - teacher_log_sum), q = expf(s - student_log_sum);
    // The difference of the logits first: where they nearly agree it is exact, and the error in the difference
    // of the sums, the same for all classes, cancels.
    kl += kl_term(p, q, (s - t) - (student_log_sum - teacher_log_sum));
    return q - p;
  });
}

// Writes the gradients of the classes of one lane; returns the sum of their divergences.
template <int kLanes, int kWidth>
__device__ float write_gradients(const Row<kWidth>& row, const RowSums& sums, int64_t target, int lane) {
  const BalancedKdArgs& args = row.args;
  const float cls_log_sum = sums.cls.value();
  const float cls_scale = cls_grad_scale(args, target), kd_scale = kd_grad_scale(args);
  float kl = 0.0f;
  for (int64_t k = lane * kWidth; k < args.classes; k += kLanes * kWidth) {
    const int64_t count = args.classes - k;
    const Values<kWidth> s = row.logits(args.student, k), prior = row.prior(k);
    Values<kWidth> grad = row.cls(s, prior);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      grad.at[j] = cls_scale * (expf(grad.at[j] - cls_log_sum) - (k + j == target ? 1.0f : 0.0f));
    }
    if (row.direct()) {
      const auto gap = divergence(row.teacher(k), sums.teacher, row.student(s, prior), sums.student, kl);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) grad.at[j] += kd_scale * gap.at[j];
    }
    if (row.differences()) {
      auto gap = divergence(row.teacher_difference(k), sums.teacher_difference, row.student_difference(s, k),
                            sums.student_difference, kl);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        gap.at[j] *= kd_scale;
        grad.at[j] += gap.at[j];
        gap.at[j] = -gap.at[j];
      }
      if (args.grad_minus) write_floats<kWidth>(gap, args.grad_minus + row.offset + k, count, row.aligned);
    }
    if (args.grad_adv) write_floats<kWidth>(grad, args.grad_adv + row.offset + k, count, row.aligned);
  }
  return kl;
}

// Adds the rows in a fixed order, so that the loss is the same to the bit on every run.
__device__ void reduce_rows(const BalancedKdArgs& args) {
  double cls = 0.0, kd = 0.0;
  for (int64_t row = threadIdx.x; row < args.batch; row += kThreads) {
    cls += args.row_cls[row];
    kd += args.row_kd[row];
  }
  cls = block_sum(cls);
  kd = block_sum(kd);
  if (threadIdx.x == 0) write_losses(args, cls, kd);
}

template <int kLanes, int kWidth>
__global__ void rows_kernel(const BalancedKdArgs args, bool aligned, int counter) {
  const int lane = threadIdx.x % kLanes;
  // All lanes of a row leave the loop together, so that none waits for another in across_lanes.
  for (int64_t index = thread_index() / kLanes; index < args.batch; index += thread_count() / kLanes) {
    const Row<kWidth> row{args, index * args.classes, 1.0f / args.temperature, aligned};
    const int64_t target = args.target[index];
    const RowSums sums = row_sums<kLanes>(row, lane);
    const float kl = across_lanes<kLanes>(write_gradients<kLanes>(row, sums, target, lane));
    if (lane != 0) continue;
    // The difference first: a loss far smaller than the logits would be rounded away with them.
    args.row_cls[index] =
        target_in_range(args, target) ? logf(sums.cls.sum) + (sums.cls.max - row.cls(target)) : NAN;
    args.row_kd[index] = kl;
  }
  if (is_last_block(counter)) reduce_rows(args);
}

template <int kWidth>
bool can_vectorise(const BalancedKdArgs& args) {
  const auto fits = [](const Logits& logits) {
    return with_type(logits.dtype,
                     [&](auto type) { return is_aligned<decltype(type), kWidth>(logits.data); });
  };
  return args.classes % kWidth == 0 && fits(args.student) && fits(args.teacher) && fits(args.student_minus) &&
         fits(args.teacher_plus) && fits(args.teacher_minus) && is_aligned<float, kWidth>(args.log_prior) &&
         is_aligned<float, kWidth>(args.grad_adv) && is_aligned<float, kWidth>(args.grad_minus);
}

template <int kLanes, int kWidth>
const char* launch_rows(const BalancedKdArgs& args, void* stream) {
  const unsigned blocks = blocks_for(args.batch, kThreads / kLanes);
  const int counter = blocks == 1 ? kNoCounter : counter_for(stream);
  return launch(rows_kernel<kLanes, kWidth>, counter == kNoCounter ? 1 : blocks, stream, args,
                can_vectorise<kWidth>(args), counter);
}

}  // namespace

const char* balanced_kd_cuda(const BalancedKdArgs& args, void* stream) {
  constexpr int kWide = kAccess / sizeof(BFloat16);
  // Fewer classes would leave lanes of the warp without work.
  if (args.classes < 32 * kWide) return launch_rows<32, 1>(args, stream);
  constexpr int64_t kClassesPerWarp = 1024;
  return args.classes <= kClassesPerWarp ? launch_rows<32, kWide>(args, stream)
                                         : launch_rows<kThreads, kWide>(args, stream);
}

}  // namespace ltat
