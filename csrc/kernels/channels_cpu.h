// Blocks of elements with the values of their channels beside them, for the CPU kernels. Compiled once per
// instruction set, as they are.
#pragma once

#include "channels.h"

namespace ltat::LTAT_ISA {
namespace {

constexpr int64_t kBlock = 512;

// No block crosses a multiple of this number of elements: a whole number of rows of channels where several of
// them fit into a block, and otherwise one row, or one channel that is not the innermost dimension.
int64_t block_period(const Channels& channels) {
  if (channels.inner > 1) return channels.inner;
  return channels.count > kBlock ? channels.count : kBlock / channels.count * channels.count;
}

// Calls visit(begin, size) for blocks of at most kBlock elements that cover [begin, end).
template <class Visit>
void for_blocks(const Channels& channels, int64_t begin, int64_t end, const Visit& visit) {
  const int64_t period = block_period(channels);
  while (begin < end) {
    int64_t size = period - begin % period;
    size = size < kBlock ? size : kBlock;
    size = size < end - begin ? size : end - begin;
    visit(begin, size);
    begin += size;
  }
}

// One value per channel, spread over the elements of a block: so the loop over them is a plain one.
class ChannelValues {
 public:
  // `values` may be null where nobody asks for them.
  ChannelValues(const float* values, const Channels& channels)
      : values_(values), channels_(channels), period_(block_period(channels)) {
    if (!values || channels.inner > 1 || channels.count > kBlock) return;
    for (int64_t i = 0; i < period_; ++i) spread_[i] = values[i % channels.count];
  }

  // The values of the elements of the block that starts at `begin`.
  const float* at(int64_t begin) {
    if (channels_.inner == 1) return (channels_.count > kBlock ? values_ : spread_) + begin % period_;
    const float value = values_[begin / channels_.inner % channels_.count];
    for (float& each : spread_) each = value;
    return spread_;
  }

 private:
  const float* values_;
  Channels channels_;
  int64_t period_;
  float spread_[kBlock];
};

}  // namespace
}  // namespace ltat::LTAT_ISA
