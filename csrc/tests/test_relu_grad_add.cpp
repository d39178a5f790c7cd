#include "../kernels/relu_grad_add.h"
#include "channel_orders.h"
#include "check.h"

using namespace ltat;
using namespace ltat::test;

namespace {

constexpr int64_t kSize = 2100;

struct Case {
  std::vector<float> output = noise(kSize, 1), grad = noise(kSize, 2), other = noise(kSize, 3);
  std::vector<float> outside = noise(kSize, 4), scale = noise(1050, 5), out = std::vector<float>(kSize, 7.0f);

  ReluGradAddArgs args(Channels channels) {
    return {out.data(),     output.data(),   grad.data(), other.data(), scale.data(),
            outside.data(), DType::kFloat32, kSize,       channels};
  }
};

}  // namespace

TEST(relu_grad_add_is_its_formula_in_every_memory_order) {
  for (const Channels& channels : channel_orders()) {
    Case c;
    relu_grad_add_cpu(c.args(channels), serial);
    for (int64_t i = 0; i < kSize; ++i) {
      const float sum = c.grad[i] + c.other[i];
      const float scaled = (c.output[i] <= 0 ? 0.0f : sum) * c.scale[i / channels.inner % channels.count];
      CHECK(c.out[i] == scaled + c.outside[i]);
    }
    absorb(c.out);
  }
}

TEST(relu_grad_add_gives_the_same_bits_on_every_schedule_of_threads) {
  for (const Channels& channels : channel_orders()) {
    Case a, b;
    relu_grad_add_cpu(a.args(channels), serial);
    relu_grad_add_cpu(b.args(channels), scattered);
    CHECK(a.out == b.out);
  }
}

// Rows of an odd number of channels, and ranges that begin at an odd element: still every element is found.
TEST(relu_grad_add_of_half_precision_is_that_of_float_rounded_wherever_a_range_begins) {
  const auto halved = [](const std::vector<float>& values) {
    std::vector<BFloat16> halves;
    for (float value : values) halves.push_back(bfloat16_from(value));
    return halves;
  };
  for (const Channels& channels : channel_orders()) {
    Case c;
    std::vector<BFloat16> output = halved(c.output), grad = halved(c.grad), other = halved(c.other);
    std::vector<BFloat16> outside = halved(c.outside), out(kSize);
    ReluGradAddArgs args{out.data(),     output.data(),    grad.data(), other.data(), c.scale.data(),
                         outside.data(), DType::kBFloat16, kSize,       channels};
    for (ParallelFor schedule : {serial, scattered, in_odd_pieces}) {
      out.assign(kSize, BFloat16{0});
      relu_grad_add_cpu(args, schedule);
      for (int64_t i = 0; i < kSize; ++i) {
        const float sum = to_float(grad[i]) + to_float(other[i]);
        const float scale = c.scale[i / channels.inner % channels.count];
        const float scaled = (to_float(output[i]) <= 0 ? 0.0f : sum) * scale;
        CHECK(out[i].bits == bfloat16_from(scaled + to_float(outside[i])).bits);
      }
    }
  }
}

TEST(relu_grad_add_leaves_out_what_is_null) {
  Case c;
  ReluGradAddArgs args = c.args({1, kSize});
  args.other = args.outside = args.scale = nullptr;
  relu_grad_add_cpu(args, serial);
  for (int64_t i = 0; i < kSize; ++i) CHECK(c.out[i] == (c.output[i] <= 0 ? 0.0f : c.grad[i]));
}

TEST(relu_grad_add_passes_the_gradient_of_a_nan_and_keeps_its_own) {
  Case c;
  c.output[3] = NAN;
  c.output[4] = 1.0f;
  c.grad[4] = NAN;
  ReluGradAddArgs args = c.args({1, kSize});
  args.other = args.outside = args.scale = nullptr;
  relu_grad_add_cpu(args, serial);
  CHECK(c.out[3] == c.grad[3] && std::isnan(c.out[4]));
}

TEST(every_half_precision_number_comes_back_from_float) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const Float16 half{static_cast<uint16_t>(bits)};
    const BFloat16 brain{static_cast<uint16_t>(bits)};
    if ((bits & 0x7fffu) <= 0x7c00u) CHECK(float16_from(to_float(half)).bits == bits);
    if ((bits & 0x7fffu) <= 0x7f80u) CHECK(bfloat16_from(to_float(brain)).bits == bits);
  }
  CHECK(std::isnan(to_float(float16_from(NAN))) && std::isnan(to_float(float16_from(-NAN))));
  CHECK(std::isnan(to_float(bfloat16_from(NAN))) && std::isnan(to_float(bfloat16_from(-NAN))));
}

TEST(float16_rounds_to_the_nearest_and_ties_to_even) {
  for (uint32_t bits = 0; bits < 0x7bffu; ++bits) {
    const float low = to_float(Float16{static_cast<uint16_t>(bits)});
    const float high = to_float(Float16{static_cast<uint16_t>(bits + 1)});
    const float middle = low + (high - low) / 2;
    CHECK(float16_from(middle).bits == bits + (bits & 1u));
    CHECK(float16_from(std::nextafter(middle, 0.0f)).bits == bits);
    CHECK(float16_from(std::nextafter(middle, 1e9f)).bits == bits + 1);
    CHECK(float16_from(-middle).bits == (0x8000u | (bits + (bits & 1u))));
  }
  CHECK(float16_from(65519.0f).bits == 0x7bffu && float16_from(65520.0f).bits == 0x7c00u);
  CHECK(float16_from(3e38f).bits == 0x7c00u && float16_from(-INFINITY).bits == 0xfc00u);
  CHECK(float16_from(98304.0f).bits == 0x7c00u);
  CHECK(float16_from(1e-40f).bits == 0 && float16_from(-0.0f).bits == 0x8000u);
}
