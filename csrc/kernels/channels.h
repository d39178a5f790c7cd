// Which channel an element belongs to, in any dense memory order.
#pragma once

#include "common.h"

namespace ltat {

// The channel of element i is i / inner % count; with channels last, inner is 1.
struct Channels {
  int64_t count, inner;
};

}  // namespace ltat
