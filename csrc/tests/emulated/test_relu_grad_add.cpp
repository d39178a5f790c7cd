#include "../../kernels/relu_grad_add.h"
#include "channel_case.h"

using namespace ltat;
using namespace ltat::test;

namespace {

template <class T>
void compare(DType dtype, unsigned seed) {
  ChannelCase c(seed);
  Array<T> out = c.tensor<T>(), expected(c.size), output = c.tensor<T>(), grad = c.tensor<T>();
  Array<T> other = c.tensor<T>(), outside = c.tensor<T>();
  Array<float> scale = c.per_channel();
  ReluGradAddArgs args{out.data(), output.data(), grad.data(), nullptr,   nullptr,
                       nullptr,    dtype,         c.size,      c.channels};
  if (c.random.one_in(2)) args.other = other.data();
  if (c.random.one_in(2)) args.outside = outside.data();
  if (!c.random.one_in(3)) args.scale = scale.data();
  ReluGradAddArgs reference = args;
  reference.out = expected.data();
  relu_grad_add_cpu(reference, serial);
  in_every_order(seed, c.random.below(3), [&] {
    std::memset(out.data(), 0x11, c.size * sizeof(T));
    check_launch(relu_grad_add_cuda(args, nullptr));
    check_bits(out, expected, c.size);
  });
}

}  // namespace

TEST(emulated_gradients_of_a_relu_are_those_of_the_cpu_in_every_order_of_threads) {
  for (unsigned seed = 0; seed < 80; ++seed) {
    compare<float>(DType::kFloat32, seed);
    compare<BFloat16>(DType::kBFloat16, 1000 + seed);
    compare<Float16>(DType::kFloat16, 2000 + seed);
  }
}
