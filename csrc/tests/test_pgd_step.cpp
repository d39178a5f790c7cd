#include "../kernels/pgd_step.h"
#include "check.h"

using namespace ltat;
using namespace ltat::test;

namespace {

struct Case {
  int64_t batch = 3, sample_size = 21;
  std::vector<float> x_adv = noise(63, 1), grad = noise(63, 2), x = noise(63, 3), out = noise(63, 4);
  std::vector<float> eps_each{0.1f, 0.4f, 0.0f};

  PgdStepArgs args() {
    return {out.data(), x_adv.data(), grad.data(), x.data(), DType::kFloat32, eps_each.data(), nullptr,
            0.0f,       0.25f,        -0.9f,       0.9f,     batch,           sample_size};
  }
};

}  // namespace

TEST(linf_stays_in_each_samples_ball_and_in_the_box) {
  Case c;
  pgd_step_linf_cpu(c.args(), serial);
  for (int i = 0; i < 63; ++i) {
    if (std::fabs(c.x[i]) > 0.9f) continue;
    CHECK(std::fabs(c.out[i] - c.x[i]) <= c.eps_each[i / 21] * 1.000001f + 1e-7f);
    CHECK(std::fabs(c.out[i]) <= 0.9f);
  }
}

TEST(the_schedule_of_threads_does_not_change_a_bit) {
  Case a, b;
  pgd_step_linf_cpu(a.args(), serial);
  pgd_step_linf_cpu(b.args(), scattered);
  CHECK(a.out == b.out);
  absorb(a.out);
  pgd_step_l2_cpu(a.args(), serial);
  pgd_step_l2_cpu(b.args(), scattered);
  CHECK(a.out == b.out);
  absorb(a.out);
}

TEST(l2_perturbation_has_at_most_the_radius) {
  Case c;
  pgd_step_l2_cpu(c.args(), serial);
  for (int sample = 0; sample < 3; ++sample) {
    double squared = 0.0;
    for (int i = sample * 21; i < (sample + 1) * 21; ++i) {
      if (std::fabs(c.x[i]) <= 0.9f) squared += square(c.out[i] - c.x[i]);
    }
    CHECK(std::sqrt(squared) <= c.eps_each[sample] * (1 + 1e-6) + 1e-7);
  }
}

TEST(nan_gradient_is_seen_and_zero_gradient_does_not_move) {
  Case c;
  c.x_adv = c.x = std::vector<float>(63, 0.5f);
  c.grad.assign(63, 0.0f);
  c.grad[5] = NAN;
  pgd_step_linf_cpu(c.args(), serial);
  CHECK(std::isnan(c.out[5]));
  CHECK(c.out[6] == 0.5f);
}

TEST(half_precision_numbers_are_read_exactly) {
  CHECK(to_float(Float16{0x3c00}) == 1.0f);
  CHECK(to_float(Float16{0x0001}) == 0x1p-24f);
  CHECK(to_float(Float16{0xfbff}) == -65504.0f);
  CHECK(std::isinf(to_float(Float16{0x7c00})) && std::isnan(to_float(Float16{0x7e00})));
  CHECK(to_float(BFloat16{0x4049}) == 3.140625f);
}
