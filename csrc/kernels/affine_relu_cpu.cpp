// Compiled once per instruction set, into the namespace LTAT_ISA (see isa.h).
#include "affine_relu.h"
#include "channels_cpu.h"

namespace ltat::LTAT_ISA {
namespace {

template <class T>
void affine_relu_blocks(const AffineReluArgs& args, int64_t begin, int64_t end) {
  ChannelValues<T> scale(args.scale, args.channels), shift(args.shift, args.channels);
  const T* x = static_cast<const T*>(args.x);
  T* out = static_cast<T*>(args.out);
  for_blocks(args.channels, begin, end, [&](int64_t first, int64_t size) {
    const Beside<T> of_scale = scale.at(first, size), of_shift = shift.at(first, size);
    for_elements(out + first, size, [=, from = x + first](const auto& read) {
      return affine_relu_of(read(from), read(of_scale), read(of_shift));
    });
  });
}

}  // namespace

void affine_relu_range(const AffineReluArgs& args, int64_t begin, int64_t end) {
  with_type(args.dtype, [&](auto type) { affine_relu_blocks<decltype(type)>(args, begin, end); });
}

}  // namespace ltat::LTAT_ISA
