#include "../../kernels/gather_augment.h"
#include "cases.h"

using namespace ltat;
using namespace ltat::test;

namespace {

constexpr int64_t kSides[] = {1, 2, 3, 5, 8, 16, 23}, kChannels[] = {1, 2, 3, 4, 5};

int64_t one_of(Random& random, const auto& values) { return values[random.below(std::size(values))]; }

struct Case {
  Random random;
  int64_t count, batch, height, width, channels, size;
  bool reflect;
  Array<uint8_t> images, mirrored;
  Array<int64_t> positions, shift;

  explicit Case(unsigned seed)
      : random(seed),
        count(1 + random.below(5)),
        batch(1 + random.below(6)),
        height(one_of(random, kSides)),
        width(one_of(random, kSides)),
        channels(one_of(random, kChannels)),
        size(height * width * channels),
        reflect(random.one_in(2)),
        images(count * size, random.below(3)),
        mirrored(batch),
        positions(batch),
        shift(2 * batch) {
    for (int64_t i = 0; i < images.size(); ++i) images[i] = static_cast<uint8_t>(random.below(256));
    for (int64_t i = 0; i < batch; ++i) {
      positions[i] = random.below(count) + (random.one_in(9) ? count : 0);  // some outside the set: NaN
      mirrored[i] = random.one_in(2);
      shift[2 * i] = random.below(2 * height + 1) - height;
      shift[2 * i + 1] = random.below(2 * width + 1) - width;
    }
  }

  GatherAugmentArgs args(void* out, DType dtype) {
    return {out,   images.data(), positions.data(), shift.data(), mirrored.data(), reflect,
            count, batch,         height,           width,        channels,        dtype};
  }
};

template <class Out>
void compare(DType dtype, unsigned seed) {
  Case c(seed);
  const int64_t all = c.batch * c.size;
  Array<Out> out(all, c.random.offset(8)), expected(all);
  gather_augment_cpu(c.args(expected.data(), dtype), serial);
  in_every_order(seed, c.random.below(3), [&] {
    std::memset(out.data(), 0x11, all * sizeof(Out));
    check_launch(gather_augment_cuda(c.args(out.data(), dtype), nullptr));
    int64_t wrong = 0;
    for (int64_t i = 0; i < all; ++i) wrong += !is_near(to_float(out[i]), to_float(expected[i]), 0.0f);
    CHECK(wrong == 0);
  });
}

}  // namespace

TEST(emulated_batches_are_those_of_the_cpu_in_every_order_of_threads) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    compare<float>(DType::kFloat32, seed);
    compare<BFloat16>(DType::kBFloat16, 1000 + seed);
  }
}
