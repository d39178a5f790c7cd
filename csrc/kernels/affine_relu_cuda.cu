#include "affine_relu.h"
#include "channels_cuda.h"

namespace ltat {
namespace {

template <class T, int kElements, class Index>
__device__ Pack<T, kElements> affine_relu_pack(const AffineReluArgs& args, Index i) {
  const auto x = pack_of<T, kElements>(args.x, i);
  const auto scale = values_of<kElements>(args.scale, args.channels, i * kElements);
  const auto shift = values_of<kElements>(args.shift, args.channels, i * kElements);
  Pack<T, kElements> out;
  for_each<kElements>(
      [&](int j) { store(affine_relu_of(to_float(x.at[j]), scale.at[j], shift.at[j]), out.at + j); });
  return out;
}

// Index counts the elements, and does not overflow by one more stride of the grid.
template <class T, int kElements, class Index>
__global__ void affine_relu_kernel(const AffineReluArgs args, Index packs) {
  for (Index i = static_cast<Index>(thread_index()); i < packs; i += static_cast<Index>(thread_count())) {
    static_cast<Pack<T, kElements>*>(args.out)[i] = affine_relu_pack<T, kElements>(args, i);
  }
}

template <class T>
bool fits_packs(const AffineReluArgs& args) {
  constexpr int kElements = kPack<T>;
  return args.size % kElements == 0 && starts_a_pack<T, kElements>(args.out) &&
         starts_a_pack<T, kElements>(args.x) && values_fit<kElements>(args.scale, args.channels) &&
         values_fit<kElements>(args.shift, args.channels);
}

template <class T, class Index>
const char* launch_affine_relu(const AffineReluArgs& args, void* stream) {
  const bool packed = fits_packs<T>(args);
  const int64_t items = packed ? args.size / kPack<T> : args.size;
  const auto kernel = packed ? affine_relu_kernel<T, kPack<T>, Index> : affine_relu_kernel<T, 1, Index>;
  return launch(kernel, blocks_for(items, kThreads, kMaxStridedBlocks), stream, args,
                static_cast<Index>(items));
}

}  // namespace

const char* affine_relu_cuda(const AffineReluArgs& args, void* stream) {
  return with_type(args.dtype, [&](auto type) {
    return with_index(args.size, [&](auto index) {
      return launch_affine_relu<decltype(type), decltype(index)>(args, stream);
    });
  });
}

}  // namespace ltat
