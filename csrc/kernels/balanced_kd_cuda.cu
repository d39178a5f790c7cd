#include "balanced_kd.h"
#include "cuda_common.h"

namespace ltat {
namespace {

__device__ float load(const Logits& logits, int64_t i) {
  switch (logits.dtype) {
    case DType::kBFloat16:
      return to_float(static_cast<const BFloat16*>(logits.data)[i]);
    case DType::kFloat16:
      return to_float(static_cast<const Float16*>(logits.data)[i]);
    default:
      return static_cast<const float*>(logits.data)[i];
  }
}

// Running max and sum of e^(z - max): log-sum-exp in one read of the logits.
struct LogSum {
  float max = -INFINITY;
  float sum = 0.0f;

  __device__ void add(float z) {
    if (z > max) {
      sum = sum * expf(max - z) + 1.0f;
      max = z;
    } else if (z != -INFINITY) {
      sum += expf(z - max);
    }
  }
  __device__ float value() const { return max + logf(sum); }
};

// Symmetric in its arguments to the bit, so that all lanes of a butterfly end with the same value.
__device__ LogSum merged(const LogSum& a, const LogSum& b) {
  const LogSum& high = a.max >= b.max ? a : b;
  const LogSum& low = a.max >= b.max ? b : a;
  LogSum result = high;
  if (low.sum != 0.0f) result.sum += low.sum * expf(low.max - high.max);
  return result;
}

__device__ LogSum shuffled(const LogSum& value, int mask) {
  LogSum other;
  other.max = __shfl_xor_sync(0xffffffffu, value.max, mask);
  other.sum = __shfl_xor_sync(0xffffffffu, value.sum, mask);
  return other;
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

// Logits of one row as each term of the loss sees them.
struct Row {
  const BalancedKdArgs& args;
  int64_t offset;
  float inverse_t;

  __device__ bool direct() const { return args.teacher.data; }
  __device__ bool differences() const { return args.student_minus.data; }
  __device__ float cls(int64_t k) const { return load(args.student, offset + k) + args.log_prior[k]; }
  __device__ float student(int64_t k) const {
    return (load(args.student, offset + k) + (args.on_biased ? args.log_prior[k] : 0.0f)) * inverse_t;
  }
  __device__ float teacher(int64_t k) const { return load(args.teacher, offset + k) * inverse_t; }
  __device__ float student_difference(int64_t k) const {
    return (load(args.student, offset + k) - load(args.student_minus, offset + k)) * inverse_t;
  }
  __device__ float teacher_difference(int64_t k) const {
    return (load(args.teacher_plus, offset + k) - load(args.teacher_minus, offset + k)) * inverse_t;
  }
};

// Adds the divergence at one class to `kl` and returns q - p.
__device__ float divergence(float teacher, float teacher_log_sum, float student, float student_log_sum,
                            float& kl) {
  const float p = expf(teacher - teacher_log_sum), q = expf(student - student_log_sum);
  // The difference of the logits first: where they nearly agree it is exact, and the error in the difference
  // of the sums, the same for all classes, cancels.
  kl += kl_term(p, q, (student - teacher) - (student_log_sum - teacher_log_sum));
  return q - p;
}

// Log-sum-exp of each softmax of one row; undefined for the terms that the form does not use.
struct RowSums {
  LogSum cls;
  float student = 0.0f, teacher = 0.0f, student_difference = 0.0f, teacher_difference = 0.0f;
};

template <int kLanes>
__device__ RowSums row_sums(const Row& row, int lane) {
  LogSum cls, student, teacher, student_difference, teacher_difference;
  for (int64_t k = lane; k < row.args.classes; k += kLanes) {
    cls.add(row.cls(k));
    if (row.direct()) student.add(row.student(k)), teacher.add(row.teacher(k));
    if (row.differences()) {
      student_difference.add(row.student_difference(k));
      teacher_difference.add(row.teacher_difference(k));
    }
  }
  RowSums sums{across_lanes<kLanes>(cls)};
  sums.student = across_lanes<kLanes>(student).value();
  sums.teacher = across_lanes<kLanes>(teacher).value();
  sums.student_difference = across_lanes<kLanes>(student_difference).value();
  sums.teacher_difference = across_lanes<kLanes>(teacher_difference).value();
  return sums;
}

// Writes the gradients of every kLanes-th class from `lane` on; returns the sum of their divergences.
template <int kLanes>
__device__ float write_gradients(const Row& row, const RowSums& sums, int64_t target, int lane) {
  const BalancedKdArgs& args = row.args;
  const float cls_log_sum = sums.cls.value();
  const float cls_scale = cls_grad_scale(args, target), kd_scale = kd_grad_scale(args);
  float kl = 0.0f;
  for (int64_t k = lane; k < args.classes; k += kLanes) {
    float grad = cls_scale * (expf(row.cls(k) - cls_log_sum) - (k == target ? 1.0f : 0.0f));
    if (row.direct()) {
      grad += kd_scale * divergence(row.teacher(k), sums.teacher, row.student(k), sums.student, kl);
    }
    if (row.differences()) {
      const float difference = kd_scale * divergence(row.teacher_difference(k), sums.teacher_difference,
                                                     row.student_difference(k), sums.student_difference, kl);
      grad += difference;
      if (args.grad_minus) args.grad_minus[row.offset + k] = -difference;
    }
    if (args.grad_adv) args.grad_adv[row.offset + k] = grad;
  }
  return kl;
}

template <int kLanes>
__global__ void rows_kernel(const BalancedKdArgs args) {
  const int lane = threadIdx.x % kLanes;
  // All lanes of a row leave the loop together, so that none waits for another in across_lanes.
  for (int64_t index = thread_index() / kLanes; index < args.batch; index += thread_count() / kLanes) {
    const Row row{args, index * args.classes, 1.0f / args.temperature};
    const int64_t target = args.target[index];
    const RowSums sums = row_sums<kLanes>(row, lane);
    const float kl = across_lanes<kLanes>(write_gradients<kLanes>(row, sums, target, lane));
    if (lane != 0) continue;
    // The difference first: a loss far smaller than the logits would be rounded away with them.
    args.row_cls[index] =
        target_in_range(args, target) ? logf(sums.cls.sum) + (sums.cls.max - row.cls(target)) : NAN;
    args.row_kd[index] = kl;
  }
}

// One block adds the rows in a fixed order, so that the loss is the same to the bit on every run.
__global__ void losses_kernel(const BalancedKdArgs args) {
  double cls = 0.0, kd = 0.0;
  for (int64_t row = threadIdx.x; row < args.batch; row += kThreads) {
    cls += args.row_cls[row];
    kd += args.row_kd[row];
  }
  cls = block_sum(cls);
  kd = block_sum(kd);
  if (threadIdx.x == 0) write_losses(args, cls, kd);
}

template <int kLanes>
const char* launch_rows(const BalancedKdArgs& args, void* stream) {
  return launch(rows_kernel<kLanes>, blocks_for(args.batch, kThreads / kLanes), stream, args);
}

}  // namespace

const char* balanced_kd_cuda(const BalancedKdArgs& args, void* stream) {
  constexpr int64_t kClassesPerWarp = 1024;
  const bool one_warp = args.classes <= kClassesPerWarp;
  const char* error = one_warp ? launch_rows<32>(args, stream) : launch_rows<kThreads>(args, stream);
  return error ? error : launch(losses_kernel, 1, stream, args);
}

}  // namespace ltat
