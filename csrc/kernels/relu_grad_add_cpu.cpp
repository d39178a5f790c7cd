// Compiled once per instruction set, into the namespace LTAT_ISA (see isa.h).
#include <type_traits>

#include "channels_cpu.h"
#include "relu_grad_add.h"

namespace ltat::LTAT_ISA {
namespace {

template <class Visit>
void with_flag(bool flag, const Visit& visit) {
  flag ? visit(std::true_type{}) : visit(std::false_type{});
}

template <class T, bool kOther, bool kScale, bool kOutside>
void relu_grad_add_block(const ReluGradAddArgs& args, int64_t begin, int64_t size, const float* scale) {
  const T* output = static_cast<const T*>(args.output) + begin;
  const T* grad = static_cast<const T*>(args.grad) + begin;
  const T* other = kOther ? static_cast<const T*>(args.other) + begin : nullptr;
  const T* outside = kOutside ? static_cast<const T*>(args.outside) + begin : nullptr;
  // A block is read before it is written: a load waits for an earlier store whose address is the same modulo
  // a page, and tensors often lie so.
  T block[kBlock];
#pragma omp simd
  for (int64_t k = 0; k < size; ++k) {
    float value = to_float(grad[k]);
    if constexpr (kOther) value += to_float(other[k]);
    value = masked(to_float(output[k]), value);
    if constexpr (kScale) value = product(value, scale[k]);
    if constexpr (kOutside) value += to_float(outside[k]);
    store(value, block + k);
  }
  std::memcpy(static_cast<T*>(args.out) + begin, block, size * sizeof(T));
}

template <class T, bool kOther, bool kScale, bool kOutside>
void relu_grad_add_blocks(const ReluGradAddArgs& args, int64_t begin, int64_t end) {
  ChannelValues scale(args.scale, args.channels);
  for_blocks(args.channels, begin, end, [&](int64_t first, int64_t size) {
    const float* of_block = kScale ? scale.at(first) : nullptr;
    relu_grad_add_block<T, kOther, kScale, kOutside>(args, first, size, of_block);
  });
}

}  // namespace

void relu_grad_add_range(const ReluGradAddArgs& args, int64_t begin, int64_t end) {
  with_type(args.dtype, [&](auto type) {
    with_flag(args.other, [&](auto other) {
      with_flag(args.scale, [&](auto scale) {
        with_flag(args.outside, [&](auto outside) {
          relu_grad_add_blocks<decltype(type), decltype(other)::value, decltype(scale)::value,
                               decltype(outside)::value>(args, begin, end);
        });
      });
    });
  });
}

}  // namespace ltat::LTAT_ISA
