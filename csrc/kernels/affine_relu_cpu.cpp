// Compiled once per instruction set, into the namespace LTAT_ISA (see isa.h).
#include "affine_relu.h"
#include "channels_cpu.h"

namespace ltat::LTAT_ISA {
namespace {

template <class T>
void affine_relu_block(const T* x, const float* scale, const float* shift, int64_t size, T* out) {
  T block[kBlock];  // read before it is written, as in relu_grad_add
#pragma omp simd
  for (int64_t k = 0; k < size; ++k) {
    store(affine_relu_of(to_float(x[k]), scale[k], shift[k]), block + k);
  }
  std::memcpy(out, block, size * sizeof(T));
}

template <class T>
void affine_relu_blocks(const AffineReluArgs& args, int64_t begin, int64_t end) {
  ChannelValues scale(args.scale, args.channels), shift(args.shift, args.channels);
  const T* x = static_cast<const T*>(args.x);
  T* out = static_cast<T*>(args.out);
  for_blocks(args.channels, begin, end, [&](int64_t first, int64_t size) {
    affine_relu_block(x + first, scale.at(first), shift.at(first), size, out + first);
  });
}

}  // namespace

void affine_relu_range(const AffineReluArgs& args, int64_t begin, int64_t end) {
  with_type(args.dtype, [&](auto type) { affine_relu_blocks<decltype(type)>(args, begin, end); });
}

}  // namespace ltat::LTAT_ISA
