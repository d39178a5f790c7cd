// A random memory order of tensors with channels, for the element-wise kernels.
#pragma once

#include "../../kernels/channels.h"
#include "cases.h"

namespace ltat::test {

struct ChannelCase {
  Random random;
  Channels channels;
  int64_t size;

  explicit ChannelCase(unsigned seed) : random(seed) {
    const int64_t counts[] = {1, 3, 4, 8, 13, 24}, inners[] = {1, 1, 4, 6, 16, 49};
    channels = {counts[random.below(6)], inners[random.below(6)]};
    size = channels.count * channels.inner * (1 + random.below(9));
  }

  template <class T>
  Array<T> tensor() {
    return drawn<T>(random, size, random.offset(8), 2.0f);
  }
  Array<float> per_channel() { return drawn<float>(random, channels.count, random.offset(4), 2.0f); }
};

template <class T>
void check_bits(Array<T>& got, Array<T>& expected, int64_t size) {
  CHECK(std::memcmp(got.data(), expected.data(), size * sizeof(T)) == 0);
}

}  // namespace ltat::test
