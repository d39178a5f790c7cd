#include "channels_cuda.h"
#include "relu_grad_add.h"

namespace ltat {
namespace {

template <class T, int kElements, class Index>
__device__ Pack<T, kElements> relu_grad_add_pack(const ReluGradAddArgs& args, Index i) {
  // All is loaded before anything is computed, so that the loads wait for memory together.
  const auto output = pack_of<T, kElements>(args.output, i), grad = pack_of<T, kElements>(args.grad, i);
  Pack<T, kElements> other{}, outside{}, out;
  Pack<float, kElements> scale{};
  if (args.other) other = pack_of<T, kElements>(args.other, i);
  if (args.outside) outside = pack_of<T, kElements>(args.outside, i);
  if (args.scale) scale = values_of<kElements>(args.scale, args.channels, i * kElements);
  float value[kElements];
  for_each<kElements>([&](int j) { value[j] = to_float(grad.at[j]); });
  if (args.other) for_each<kElements>([&](int j) { value[j] += to_float(other.at[j]); });
  for_each<kElements>([&](int j) { value[j] = masked(to_float(output.at[j]), value[j]); });
  if (args.scale) for_each<kElements>([&](int j) { value[j] = product(value[j], scale.at[j]); });
  if (args.outside) for_each<kElements>([&](int j) { value[j] += to_float(outside.at[j]); });
  for_each<kElements>([&](int j) { store(value[j], out.at + j); });
  return out;
}

// Index counts the elements, and does not overflow by one more stride of the grid.
template <class T, int kElements, class Index>
__global__ void relu_grad_add_kernel(const ReluGradAddArgs args, Index packs) {
  for (Index i = static_cast<Index>(thread_index()); i < packs; i += static_cast<Index>(thread_count())) {
    static_cast<Pack<T, kElements>*>(args.out)[i] = relu_grad_add_pack<T, kElements>(args, i);
  }
}

template <class T>
bool fits_packs(const ReluGradAddArgs& args) {
  constexpr int kElements = kPack<T>;
  bool aligned = args.size % kElements == 0;
  for (const void* tensor :
       {static_cast<const void*>(args.out), args.output, args.grad, args.other, args.outside}) {
    aligned = aligned && starts_a_pack<T, kElements>(tensor);
  }
  return aligned && values_fit<kElements>(args.scale, args.channels);
}

template <class T, class Index>
const char* launch_relu_grad_add(const ReluGradAddArgs& args, void* stream) {
  const bool packed = fits_packs<T>(args);
  const int64_t items = packed ? args.size / kPack<T> : args.size;
  const auto kernel = packed ? relu_grad_add_kernel<T, kPack<T>, Index> : relu_grad_add_kernel<T, 1, Index>;
  return launch(kernel, blocks_for(items, kThreads, kMaxStridedBlocks), stream, args,
                static_cast<Index>(items));
}

}  // namespace

const char* relu_grad_add_cuda(const ReluGradAddArgs& args, void* stream) {
  return with_type(args.dtype, [&](auto type) {
    return with_index(args.size, [&](auto index) {
      return launch_relu_grad_add<decltype(type), decltype(index)>(args, stream);
    });
  });
}

}  // namespace ltat
