// What the CUDA kernels share: the launch, the index of a thread, vectors of elements and the sum over a
// block.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "common.h"

namespace ltat {

constexpr int kThreads = 256;                                   // per block, of every kernel
constexpr int kAccess = 16;                                     // bytes, the widest access of a thread
constexpr int64_t kMaxBlocks = INT32_MAX, kMaxBlocksY = 65535;  // of a grid, along x and along y
constexpr int64_t kMaxStridedBlocks = 1 << 16;                  // enough to fill a GPU with elementwise work

// Blocks for `items`, `items_per_block` each, and at most `limit`. A kernel strides over the items beyond its
// grid, so that no number of items overflows it.
inline unsigned blocks_for(int64_t items, int64_t items_per_block, int64_t limit = kMaxBlocks) {
  const int64_t blocks = items / items_per_block + (items % items_per_block != 0);
  return static_cast<unsigned>(blocks < limit ? blocks : limit);
}

// Enqueues a kernel on `stream`, a cudaStream_t of the current device. The return value is an error message,
// or null.
template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), dim3 grid, void* stream,
                   const std::type_identity_t<Parameters>&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  // A function and not the triple brackets, which only nvcc understands: the tests compile the kernels as C++.
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  cudaGetLastError();  // reported here, and not again by some later operation of torch
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Index of this thread among all threads along x, and their number: start and stride of a loop over items.
static __device__ __forceinline__ int64_t thread_index() {
  return int64_t{blockIdx.x} * kThreads + threadIdx.x;
}
static __device__ __forceinline__ int64_t thread_count() { return int64_t{gridDim.x} * kThreads; }

// Consecutive elements that a thread moves at once, in accesses of up to kAccess bytes.
template <class T, int kCount>
struct alignas(kCount * sizeof(T) < kAccess ? kCount * sizeof(T) : kAccess) Vector {
  T at[kCount];
};

template <class T, int kCount>
bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(Vector<T, kCount>) == 0;
}

// kCount elements from `from` on, as floats, of which `count` exist; `beyond` stands for the others. Where
// `aligned`, they all exist and are read by the widest accesses; the numbers are the same either way.
template <int kCount, class T>
static __device__ __forceinline__ Vector<float, kCount> read_floats(const T* from, int64_t count,
                                                                    bool aligned, float beyond = 0.0f) {
  Vector<float, kCount> values;
  if (aligned) {
    const auto whole = *reinterpret_cast<const Vector<T, kCount>*>(from);
#pragma unroll
    for (int j = 0; j < kCount; ++j) values.at[j] = to_float(whole.at[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) values.at[j] = j < count ? to_float(from[j]) : beyond;
  }
  return values;
}

// By whole accesses for certain: of a plain assignment nvcc often makes one store for each element.
template <class T, int kCount>
static __device__ __forceinline__ void write_vector(const Vector<T, kCount>& values, T* to) {
  if constexpr (sizeof(values) % kAccess == 0) {
    uint4 words[sizeof(values) / kAccess];
    memcpy(words, &values, sizeof(values));
#pragma unroll
    for (size_t i = 0; i < sizeof(values) / kAccess; ++i) __stwb(reinterpret_cast<uint4*>(to) + i, words[i]);
  } else {
    *reinterpret_cast<Vector<T, kCount>*>(to) = values;
  }
}

// Writes those of the values that exist.
template <int kCount>
static __device__ __forceinline__ void write_floats(const Vector<float, kCount>& values, float* to,
                                                    int64_t count, bool aligned) {
  if (aligned) {
    write_vector(values, to);
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (j < count) to[j] = values.at[j];
    }
  }
}

// Sum over the block in a fixed order; every thread gets it.
static __device__ __forceinline__ double block_sum(double value) {
  __shared__ double partial[kThreads];
  __syncthreads();
  partial[threadIdx.x] = value;
  __syncthreads();
  for (unsigned width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) partial[threadIdx.x] += partial[threadIdx.x + width];
    __syncthreads();
  }
  return partial[0];
}

}  // namespace ltat
