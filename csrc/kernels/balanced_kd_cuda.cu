#include <cuda_runtime.h>

#include "balanced_kd.h"

namespace ltat {
namespace {

constexpr int kThreads = 256;

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

// Symmetric in its arguments to the bit, so that every lane of a butterfly ends with the same value.
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

// Combines the values of the kLanes threads that share a row (one warp, or the whole block); all get the
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
  // The logits first: where they nearly agree their difference is exact, and an error of the sums'
  // difference, the same for all classes, cancels.
  kl += kl_term(p, q, (student - teacher) - (student_log_sum - teacher_log_sum));
  return q - p;
}

template <int kLanes>
__global__ void rows_kernel(const BalancedKdArgs args) {
  const int64_t row_index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (row_index >= args.batch) return;  // whole warps leave: a row never shares one
  const Row row{args, row_index * args.classes, 1.0f / args.temperature};
  const bool direct = args.teacher.data, differences = args.student_minus.data;

  LogSum cls, student, teacher, student_difference, teacher_difference;
  for (int64_t k = lane; k < args.classes; k += kLanes) {
    cls.add(row.cls(k));
    if (direct) student.add(row.student(k)), teacher.add(row.teacher(k));
    if (differences) {
      student_difference.add(row.student_difference(k));
      teacher_difference.add(row.teacher_difference(k));
    }
  }
  cls = across_lanes<kLanes>(cls);
  const float cls_log_sum = cls.value();
  const float student_log_sum = across_lanes<kLanes>(student).value();
  const float teacher_log_sum = across_lanes<kLanes>(teacher).value();
  const float student_difference_log_sum = across_lanes<kLanes>(student_difference).value();
  const float teacher_difference_log_sum = across_lanes<kLanes>(teacher_difference).value();

  const int64_t target = args.target[row_index];
  const float cls_scale = cls_grad_scale(args, target), kd_scale = kd_grad_scale(args);
  float kl = 0.0f;
  for (int64_t k = lane; k < args.classes; k += kLanes) {
    float grad = cls_scale * (expf(row.cls(k) - cls_log_sum) - (k == target ? 1.0f : 0.0f));
    if (direct) {
      grad += kd_scale * divergence(row.teacher(k), teacher_log_sum, row.student(k), student_log_sum, kl);
    }
    if (differences) {
      const float difference =
          kd_scale * divergence(row.teacher_difference(k), teacher_difference_log_sum,
                                row.student_difference(k), student_difference_log_sum, kl);
      grad += difference;
      if (args.grad_minus) args.grad_minus[row.offset + k] = -difference;
    }
    if (args.grad_adv) args.grad_adv[row.offset + k] = grad;
  }
  kl = across_lanes<kLanes>(kl);
  if (lane == 0) {
    // The difference first: a loss far smaller than the logits would be rounded away with them.
    args.row_cls[row_index] =
        target_in_range(args, target) ? logf(cls.sum) + (cls.max - row.cls(target)) : NAN;
    args.row_kd[row_index] = kl;
  }
}

// One block adds the rows in a fixed order, so that the loss is the same to the bit on every run.
__global__ void losses_kernel(const BalancedKdArgs args) {
  __shared__ double cls[kThreads], kd[kThreads];
  cls[threadIdx.x] = kd[threadIdx.x] = 0.0;
  for (int64_t row = threadIdx.x; row < args.batch; row += kThreads) {
    cls[threadIdx.x] += args.row_cls[row];
    kd[threadIdx.x] += args.row_kd[row];
  }
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) {
      cls[threadIdx.x] += cls[threadIdx.x + width];
      kd[threadIdx.x] += kd[threadIdx.x + width];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) write_losses(args, cls[0], kd[0]);
}

template <int kLanes>
void launch_rows(const BalancedKdArgs& args, cudaStream_t stream) {
  constexpr int kRows = kThreads / kLanes;
  rows_kernel<kLanes><<<static_cast<unsigned>((args.batch + kRows - 1) / kRows), kThreads, 0, stream>>>(args);
}

}  // namespace

const char* balanced_kd_cuda(const BalancedKdArgs& args, void* stream) {
  constexpr int64_t kClassesPerWarp = 1024;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (args.classes <= kClassesPerWarp) {
    launch_rows<32>(args, cuda_stream);
  } else {
    launch_rows<kThreads>(args, cuda_stream);
  }
  losses_kernel<<<1, kThreads, 0, cuda_stream>>>(args);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ltat
