// The memory orders of tensors of channels, for the tests of what computes on them.
#pragma once

#include <vector>

#include "../kernels/channels.h"

namespace ltat::test {

// Channels last, fewer than a block holds and more; channels before the image; one channel.
inline const std::vector<Channels>& channel_orders() {
  static const std::vector<Channels> orders{{5, 1}, {64, 1}, {700, 1}, {3, 49}, {2, 700}, {1, 2100}};
  return orders;
}

}  // namespace ltat::test
