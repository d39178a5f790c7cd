// Compiled once per instruction set, into the namespace LTAT_ISA (see isa.h).
#include "channels_cpu.h"
#include "relu_grad_add.h"

namespace ltat::LTAT_ISA {
namespace {

template <class Visit>
void with_flag(bool flag, const Visit& visit) {
  flag ? visit(std::true_type{}) : visit(std::false_type{});
}

template <class T, bool kOther, bool kScale, bool kOutside>
void relu_grad_add_block(const ReluGradAddArgs& args, int64_t begin, int64_t size, Beside<T> scale) {
  const T* output = static_cast<const T*>(args.output) + begin;
  const T* grad = static_cast<const T*>(args.grad) + begin;
  const T* other = kOther ? static_cast<const T*>(args.other) + begin : nullptr;
  const T* outside = kOutside ? static_cast<const T*>(args.outside) + begin : nullptr;
  for_elements(static_cast<T*>(args.out) + begin, size, [=](const auto& read) {
    float value = read(grad);
    if constexpr (kOther) value += read(other);
    value = masked(read(output), value);
    if constexpr (kScale) value = product(value, read(scale));
    if constexpr (kOutside) value += read(outside);
    return value;
  });
}

template <class T, bool kOther, bool kScale, bool kOutside>
void relu_grad_add_blocks(const ReluGradAddArgs& args, int64_t begin, int64_t end) {
  ChannelValues<T> scale(args.scale, args.channels);
  for_blocks(args.channels, begin, end, [&](int64_t first, int64_t size) {
    const Beside<T> of_block = kScale ? scale.at(first, size) : Beside<T>{};
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
