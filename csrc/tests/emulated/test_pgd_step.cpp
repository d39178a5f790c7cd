#include "../../kernels/pgd_step.h"
#include "cases.h"

using namespace ltat;
using namespace ltat::test;

namespace {

constexpr int64_t kBatches[] = {1, 2, 3, 7},
                  kSizes[] = {1, 3, 4, 5, 8, 31, 255, 256, 257, 341, 512, 700, 1030, 16384, 16385, 24580};

template <class Grad>
struct Case {
  Random random;
  int64_t batch, sample_size, size;
  Array<float> x_adv, x, out, expected, eps_each, step_each;
  Array<Grad> grad;
  Array<double> grad_sums, delta_sums;

  explicit Case(unsigned seed)
      : random(seed),
        batch(kBatches[random.below(std::size(kBatches))]),
        sample_size(kSizes[random.below(std::size(kSizes))]),
        size(batch * sample_size),
        x_adv(drawn<float>(random, size, random.offset(4), 1.0f)),
        x(drawn<float>(random, size, random.offset(4), 1.0f)),
        out(size, random.offset(4)),
        expected(size),
        eps_each(drawn<float>(random, batch, 0, 0.5f)),  // a negative radius makes its sample NaN
        step_each(drawn<float>(random, batch, 0, 0.5f)),
        grad(drawn<Grad>(random, size, random.offset(4), 2.0f)),
        grad_sums(batch * l2_pieces(sample_size)),
        delta_sums(batch * l2_pieces(sample_size)) {}

  PgdStepArgs args(DType dtype) {
    PgdStepArgs args{out.data(), x_adv.data(), grad.data(), x.data(), dtype, nullptr,    nullptr,
                     0.2f,       0.15f,        -0.9f,       0.9f,     batch, sample_size};
    args.grad_sums = grad_sums.data();
    args.delta_sums = delta_sums.data();
    if (random.one_in(2)) args.eps_each = eps_each.data();
    if (random.one_in(2)) args.step_each = step_each.data();
    return args;
  }
};

template <class Grad>
void compare(DType dtype, unsigned seed, bool l2) {
  Case<Grad> c(seed);
  PgdStepArgs args = c.args(dtype), reference = args;
  reference.out = c.expected.data();
  (l2 ? pgd_step_l2_cpu : pgd_step_linf_cpu)(reference, serial);
  Array<float> first;
  in_every_order(seed, c.random.below(3), [&] {
    for (int64_t i = 0; i < c.size; ++i) c.out[i] = -7.0f;
    check_launch((l2 ? pgd_step_l2_cuda : pgd_step_linf_cuda)(args, nullptr));
    CHECK(differences(c.out, c.expected, c.size, l2 ? 3e-7f : 0.0f) == 0);
    if (!first.size()) first = c.out;
    CHECK(differences(c.out, first, c.size, 0.0f) == 0);
  });
}

}  // namespace

TEST(emulated_steps_are_those_of_the_cpu_in_every_order_of_threads) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const bool l2 = seed % 2;
    compare<float>(DType::kFloat32, seed, l2);
    compare<BFloat16>(DType::kBFloat16, 1000 + seed, l2);
    compare<Float16>(DType::kFloat16, 2000 + seed, l2);
  }
}
