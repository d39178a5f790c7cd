#include <limits>

#include "../kernels/gather_augment.h"
#include "check.h"

using namespace ltat;
using namespace ltat::test;

namespace {

constexpr int64_t kFar = std::numeric_limits<int64_t>::max(), kNear = std::numeric_limits<int64_t>::min();

// Each image of the batch has a different shift and mirror; some images occur twice.
struct Case {
  int64_t height, width, channels;
  std::vector<uint8_t> images;
  std::vector<int64_t> positions{4, 0, 3, 3, 1, 2}, shift{0, 0, 1, -2, -3, 1, 2, 2, 0, -1, -1, 0};
  std::vector<uint8_t> mirrored{0, 1, 0, 1, 1, 0};
  std::vector<float> out;

  Case(int64_t height, int64_t width, int64_t channels)
      : height(height), width(width), channels(channels), images(5 * height * width * channels) {
    const std::vector<float> values = noise(images.size(), 1);
    for (size_t i = 0; i < images.size(); ++i) {
      images[i] = static_cast<uint8_t>(values[i] * 127.0f + 128.0f);
    }
    out.assign(6 * height * width * channels, -1.0f);
  }

  GatherAugmentArgs args(bool reflect) {
    return {out.data(), images.data(), positions.data(), shift.data(), mirrored.data(), reflect, 5, 6,
            height,     width,         channels};
  }
};

// The definition, element by element and with a division.
float expected(const Case& c, bool reflect, int64_t sample, int64_t y, int64_t x, int64_t channel) {
  const int64_t ahead = c.mirrored[sample] ? c.width - 1 - x : x;
  int64_t row = y + c.shift[2 * sample], column = ahead + c.shift[2 * sample + 1];
  const bool outside = row < 0 || row >= c.height || column < 0 || column >= c.width;
  if (outside && !reflect) return 0.0f;
  if (row < 0) row = -row;
  if (row >= c.height) row = 2 * c.height - 2 - row;
  if (column < 0) column = -column;
  if (column >= c.width) column = 2 * c.width - 2 - column;
  const int64_t pixel = (c.positions[sample] * c.height + row) * c.width + column;
  return static_cast<float>(c.images[pixel * c.channels + channel]) / 255.0f;
}

int64_t differences(const Case& c, bool reflect) {
  int64_t wrong = 0, i = 0;
  for (int64_t sample = 0; sample < 6; ++sample) {
    for (int64_t y = 0; y < c.height; ++y) {
      for (int64_t x = 0; x < c.width; ++x) {
        for (int64_t channel = 0; channel < c.channels; ++channel, ++i) {
          wrong += c.out[i] != expected(c, reflect, sample, y, x, channel);
        }
      }
    }
  }
  return wrong;
}

}  // namespace

TEST(every_byte_is_divided_by_255_and_rounded_once) {
  for (int value = 0; value < 256; ++value) {
    const float exact = static_cast<float>(value);
    CHECK(scaled(static_cast<uint8_t>(value)) == exact / 255.0f);
    // The same contracted to fma, as a compiler may do.
    const float low = static_cast<float>(1.0 / 255.0 - 0x1.01p-8);
    CHECK(std::fma(exact, 0x1.01p-8f, exact * low) == exact / 255.0f);
    CHECK(std::fma(exact, low, exact * 0x1.01p-8f) == exact / 255.0f);
  }
}

TEST(images_of_any_channel_count_are_picked_shifted_and_mirrored) {
  for (int64_t channels : {1, 2, 3, 4, 5, 17}) {
    for (bool reflect : {false, true}) {
      Case c(4, 7, channels);
      gather_augment_cpu(c.args(reflect), serial);
      CHECK(differences(c, reflect) == 0);
      absorb(c.out);
    }
  }
}

TEST(bfloat16_is_the_rounded_float) {
  CHECK(bfloat16_from(1.0f).bits == 0x3f80 && bfloat16_from(-1.0f).bits == 0xbf80);
  CHECK(bfloat16_from(0x1.01p0f).bits == 0x3f80 && bfloat16_from(0x1.03p0f).bits == 0x3f82);  // ties to even
  CHECK(bfloat16_from(INFINITY).bits == 0x7f80 &&
        std::isnan(to_float(bfloat16_from(float_from_bits(0x7fffffffu)))));
  for (bool reflect : {false, true}) {
    Case c(6, 5, 3);
    c.positions[0] = 5;  // outside the set
    gather_augment_cpu(c.args(reflect), serial);
    std::vector<BFloat16> narrow(c.out.size());
    GatherAugmentArgs args = c.args(reflect);
    args.out = narrow.data();
    args.out_dtype = DType::kBFloat16;
    gather_augment_cpu(args, scattered);
    for (size_t i = 0; i < narrow.size(); ++i) CHECK(narrow[i].bits == bfloat16_from(c.out[i]).bits);
  }
}

TEST(rows_longer_than_a_block_and_images_of_several_blocks_are_whole) {
  Case wide(4, kGatherBlock + 5, 1), high(kGatherBlock / 60, 32, 3);
  for (Case* c : {&wide, &high}) {
    gather_augment_cpu(c->args(true), scattered);
    CHECK(differences(*c, true) == 0);
  }
}

TEST(the_schedule_of_threads_does_not_change_an_image) {
  Case a(6, 5, 3), b(6, 5, 3);
  gather_augment_cpu(a.args(false), serial);
  gather_augment_cpu(b.args(false), scattered);
  CHECK(a.out == b.out);
}

TEST(without_positions_shift_and_mirror_the_images_come_as_they_are) {
  Case c(4, 5, 3);
  GatherAugmentArgs args = c.args(false);
  args.positions = args.shift = nullptr;
  args.mirrored = nullptr;
  args.batch = args.count;
  gather_augment_cpu(args, serial);
  for (size_t i = 0; i < c.images.size(); ++i) CHECK(c.out[i] == static_cast<float>(c.images[i]) / 255.0f);
}

TEST(a_zero_padded_shift_may_be_anything) {
  Case c(4, 5, 3);
  c.shift = {kFar, 0, kNear, 0, 0, kFar, 0, kNear, 4, 0, 0, -5};
  gather_augment_cpu(c.args(false), serial);
  CHECK(c.out == std::vector<float>(c.out.size(), 0.0f));
}

TEST(an_illegal_image_is_nan_and_its_neighbours_are_not) {
  Case c(4, 5, 3);
  c.positions = {5, 0, -1, kFar, 1, kNear};
  c.shift = {0, 0, 3, -4, 0, 0, 0, 0, 4, 0, 0, 0};
  gather_augment_cpu(c.args(true), serial);
  const std::vector<bool> legal{false, true, false, false, false, false};
  for (size_t i = 0; i < c.out.size(); ++i) CHECK(std::isnan(c.out[i]) == !legal[i / 60]);
  c.shift = {0, kNear, 0, kFar, -4, 0, 0, 5, 0, -5, 0, 0};
  c.positions.assign(6, 0);
  gather_augment_cpu(c.args(true), serial);
  for (size_t i = 0; i < c.out.size(); ++i) CHECK(std::isnan(c.out[i]) == (i / 60 != 5));
}
