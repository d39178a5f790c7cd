#include "../kernels/affine_relu.h"
#include "channel_orders.h"
#include "check.h"

using namespace ltat;
using namespace ltat::test;

namespace {

constexpr int64_t kSize = 2100;

struct Case {
  std::vector<float> x = noise(kSize, 1), scale = noise(1050, 2), shift = noise(1050, 3);
  std::vector<float> out = std::vector<float>(kSize, 7.0f);

  AffineReluArgs args(Channels channels) {
    return {out.data(), x.data(), scale.data(), shift.data(), DType::kFloat32, kSize, channels};
  }
};

}  // namespace

TEST(affine_relu_is_its_formula_in_every_memory_order) {
  for (const Channels& channels : channel_orders()) {
    Case c;
    affine_relu_cpu(c.args(channels), serial);
    for (int64_t i = 0; i < kSize; ++i) {
      const int64_t channel = i / channels.inner % channels.count;
      const float product = c.x[i] * c.scale[channel];
      CHECK(c.out[i] == std::fmax(product + c.shift[channel], 0.0f));
    }
    absorb(c.out);
  }
}

TEST(affine_relu_gives_the_same_bits_on_every_schedule_of_threads) {
  for (const Channels& channels : channel_orders()) {
    Case a, b;
    affine_relu_cpu(a.args(channels), serial);
    affine_relu_cpu(b.args(channels), scattered);
    CHECK(a.out == b.out);
  }
}

TEST(affine_relu_keeps_nan) {
  Case c;
  c.x[3] = NAN;
  affine_relu_cpu(c.args({1, kSize}), serial);
  CHECK(std::isnan(c.out[3]) && !std::isnan(c.out[4]));
}
