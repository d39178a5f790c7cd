#include "../../kernels/affine_relu.h"
#include "channel_case.h"

using namespace ltat;
using namespace ltat::test;

namespace {

template <class T>
void compare(DType dtype, unsigned seed) {
  ChannelCase c(seed);
  Array<T> out = c.tensor<T>(), expected(c.size), x = c.tensor<T>();
  Array<float> scale = c.per_channel(), shift = c.per_channel();
  const AffineReluArgs args{out.data(), x.data(), scale.data(), shift.data(), dtype, c.size, c.channels};
  AffineReluArgs reference = args;
  reference.out = expected.data();
  affine_relu_cpu(reference, serial);
  in_every_order(seed, c.random.below(3), [&] {
    std::memset(out.data(), 0x11, c.size * sizeof(T));
    check_launch(affine_relu_cuda(args, nullptr));
    check_bits(out, expected, c.size);
  });
}

}  // namespace

TEST(emulated_affine_relus_are_those_of_the_cpu_in_every_order_of_threads) {
  for (unsigned seed = 0; seed < 80; ++seed) {
    compare<float>(DType::kFloat32, seed);
    compare<BFloat16>(DType::kBFloat16, 1000 + seed);
    compare<Float16>(DType::kFloat16, 2000 + seed);
  }
}
