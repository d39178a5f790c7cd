#include <cuda_runtime.h>

#include "gather_augment.h"

namespace ltat {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;

template <class Out>
struct alignas(sizeof(Out) * kVector) Numbers {
  Out at[kVector];
};

__device__ float element(const GatherAugmentArgs& args, const Move& move, int64_t y, int64_t x,
                         int64_t channel) {
  const int64_t row = source_of(y + move.rows, args.height, args.reflect);
  const int64_t ahead = move.mirrored ? args.width - 1 - x : x;
  const int64_t column = source_of(ahead + move.columns, args.width, args.reflect);
  if (row < 0 || column < 0) return 0.0f;
  return scaled(move.image[(row * args.width + column) * args.channels + channel]);
}

// Each thread writes kNumbers neighbours of one image in memory order. Index holds the numbers of an image:
// dividing 64-bit integers costs a GPU several times what dividing 32-bit ones does.
template <class Out, class Index, int kNumbers>
__device__ void write_numbers(const GatherAugmentArgs& args, const Move& move, Out* out, Index first) {
  const Index channels = static_cast<Index>(args.channels), width = static_cast<Index>(args.width);
  const Index pixel = first / channels;
  Index channel = first % channels, x = pixel % width, y = pixel / width;
  Numbers<Out> numbers;
#pragma unroll
  for (int j = 0; j < kNumbers; ++j) {
    store(move.legal ? element(args, move, y, x, channel) : NAN, numbers.at + j);
    if (++channel < channels) continue;
    channel = 0;
    if (++x < width) continue;
    x = 0;
    ++y;
  }
  if constexpr (kNumbers == kVector) {
    *reinterpret_cast<Numbers<Out>*>(out + first) = numbers;
  } else {
    out[first] = numbers.at[0];
  }
}

// Blocks along y share the images, blocks along x the numbers of one image.
template <class Out, class Index, int kNumbers>
__global__ void gather_kernel(const GatherAugmentArgs args, int64_t size) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t sample = blockIdx.y; sample < args.batch; sample += gridDim.y) {
    const Move move = move_of(args, sample);
    Out* out = static_cast<Out*>(args.out) + sample * size;
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size / kNumbers; i += stride) {
      write_numbers<Out, Index, kNumbers>(args, move, out, static_cast<Index>(i * kNumbers));
    }
  }
}

unsigned at_most(int64_t blocks, int64_t limit) {
  return static_cast<unsigned>(blocks < limit ? blocks : limit);
}

template <class Out, class Index, int kNumbers>
void launch(const GatherAugmentArgs& args, int64_t size, cudaStream_t stream) {
  const int64_t blocks = (size / kNumbers + kThreads - 1) / kThreads;
  const dim3 grid(at_most(blocks, 1 << 16), at_most(args.batch, 65535));
  gather_kernel<Out, Index, kNumbers><<<grid, kThreads, 0, stream>>>(args, size);
}

template <class Out, class Index>
void launch(const GatherAugmentArgs& args, int64_t size, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(args.out) % sizeof(Numbers<Out>) == 0;
  if (aligned && size % kVector == 0) {
    launch<Out, Index, kVector>(args, size, stream);
  } else {
    launch<Out, Index, 1>(args, size, stream);
  }
}

template <class Out>
void launch(const GatherAugmentArgs& args, cudaStream_t stream) {
  const int64_t size = args.height * args.width * args.channels;
  if (size <= INT32_MAX) {
    launch<Out, int32_t>(args, size, stream);
  } else {
    launch<Out, int64_t>(args, size, stream);
  }
}

}  // namespace

const char* gather_augment_cuda(const GatherAugmentArgs& args, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (args.out_dtype == DType::kFloat32) {
    launch<float>(args, cuda_stream);
  } else {
    launch<BFloat16>(args, cuda_stream);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ltat
