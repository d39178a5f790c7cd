#include "cuda_common.h"
#include "gather_augment.h"

namespace ltat {
namespace {

__device__ float element(const GatherAugmentArgs& args, const Move& move, int64_t y, int64_t x,
                         int64_t channel) {
  const int64_t row = source_of(y + move.rows, args.height, args.reflect);
  const int64_t ahead = move.mirrored ? args.width - 1 - x : x;
  const int64_t column = source_of(ahead + move.columns, args.width, args.reflect);
  if (row < 0 || column < 0) return 0.0f;
  return scaled(move.image[(row * args.width + column) * args.channels + channel]);
}

// Each thread writes kElements neighbours of one image in memory order. Index counts the elements of an
// image: a GPU divides 32-bit integers several times faster than 64-bit ones.
template <class Out, class Index, int kElements>
__device__ void write_elements(const GatherAugmentArgs& args, const Move& move, Out* out, Index first) {
  const Index channels = static_cast<Index>(args.channels), width = static_cast<Index>(args.width);
  const Index pixel = first / channels;
  Index channel = first % channels, x = pixel % width, y = pixel / width;
  Vector<Out, kElements> values;
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    store(move.legal ? element(args, move, y, x, channel) : NAN, values.at + j);
    if (++channel < channels) continue;
    channel = 0;
    if (++x < width) continue;
    x = 0;
    ++y;
  }
  write_vector(values, out + first);
}

// Blocks along y share the images, blocks along x the elements of one image.
template <class Out, class Index, int kElements>
__global__ void gather_kernel(const GatherAugmentArgs args, int64_t size) {
  for (int64_t sample = blockIdx.y; sample < args.batch; sample += gridDim.y) {
    const Move move = move_of(args, sample);
    Out* out = static_cast<Out*>(args.out) + sample * size;
    for (int64_t i = thread_index(); i < size / kElements; i += thread_count()) {
      write_elements<Out, Index, kElements>(args, move, out, static_cast<Index>(i * kElements));
    }
  }
}

template <class Out, class Index>
const char* launch_gather(const GatherAugmentArgs& args, int64_t size, void* stream) {
  constexpr int kWide = kAccess / sizeof(Out);
  const bool vectorised = size % kWide == 0 && is_aligned<Out, kWide>(args.out);
  const auto kernel = vectorised ? gather_kernel<Out, Index, kWide> : gather_kernel<Out, Index, 1>;
  const unsigned blocks = blocks_for(vectorised ? size / kWide : size, kThreads, kMaxStridedBlocks);
  return launch(kernel, {blocks, blocks_for(args.batch, 1, kMaxBlocksY)}, stream, args, size);
}

template <class Out>
const char* launch_gather(const GatherAugmentArgs& args, void* stream) {
  const int64_t size = args.height * args.width * args.channels;
  const bool small = size <= INT32_MAX;
  return small ? launch_gather<Out, int32_t>(args, size, stream)
               : launch_gather<Out, int64_t>(args, size, stream);
}

}  // namespace

const char* gather_augment_cuda(const GatherAugmentArgs& args, void* stream) {
  const bool wide = args.out_dtype == DType::kFloat32;
  return wide ? launch_gather<float>(args, stream) : launch_gather<BFloat16>(args, stream);
}

}  // namespace ltat
