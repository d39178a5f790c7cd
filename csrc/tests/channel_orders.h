// The memory orders of tensors of channels, for the tests of what computes on them.
#pragma once

#include <vector>

#include "../kernels/channels.h"

namespace ltat::test {

// Channels last, of which a block holds many, one or none whole row; channels before the image; one channel.
inline const std::vector<Channels>& channel_orders() {
  static const std::vector<Channels> orders{{3, 1},    {5, 1},  {64, 1},  {700, 1},
                                            {1050, 1}, {3, 49}, {2, 525}, {1, 2100}};
  return orders;
}

}  // namespace ltat::test
