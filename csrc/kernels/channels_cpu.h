// Blocks of elements with the values of their channels beside them, for the CPU kernels. Compiled once per
// instruction set, as they are.
#pragma once

#include "channels.h"
#include "elementwise_cpu.h"

namespace ltat::LTAT_ISA {
namespace {

// Whether a row of channels fits into a block: then the values of one block serve all.
bool rows_are_short(const Channels& channels) { return channels.inner == 1 && channels.count <= kBlock; }

// No block crosses a multiple of this: the elements of as many short rows as fit into it, of one long row, or
// of one channel.
int64_t block_period(const Channels& channels) {
  if (channels.inner > 1) return channels.inner;
  return rows_are_short(channels) ? kBlock / channels.count * channels.count : channels.count;
}

// Calls visit(begin, size) for blocks that cover [begin, end). Only a single element begins at an odd place
// of its period, so that the lanes of every block lie alike.
template <class Visit>
void for_blocks(const Channels& channels, int64_t begin, int64_t end, const Visit& visit) {
  const int64_t period = block_period(channels);
  while (begin < end) {
    const int64_t place = begin % period;
    int64_t size = place % 2 != 0 ? 1 : period - place;
    size = size < kBlock ? size : kBlock;
    size = size < end - begin ? size : end - begin;
    visit(begin, size);
    begin += size;
  }
}

// One value per channel, laid beside the elements of a block of T.
template <class T>
class ChannelValues {
 public:
  // `values` may be null where nobody asks for them.
  ChannelValues(const float* values, const Channels& channels)
      : values_(values), channels_(channels), period_(block_period(channels)) {
    if (!values || !rows_are_short(channels)) return;
    for (int64_t row = 0; row < period_; row += channels.count) {
      for (int64_t k = 0; k < channels.count; ++k) beside_[Beside<T>::place_of(row + k)] = values[k];
    }
  }

  // The values of the block of `size` elements that starts at `begin`.
  Beside<T> at(int64_t begin, int64_t size) {
    if (rows_are_short(channels_)) return {beside_ + Beside<T>::place_of(begin % period_)};
    if (channels_.inner == 1) {
      lay_row(values_ + begin % channels_.count, size);
    } else {
      lay_one(values_[begin / channels_.inner % channels_.count], size);
    }
    return {beside_};
  }

 private:
  void lay_row(const float* values, int64_t size) {
    for (int64_t part = 0; part < kShared<T>; ++part) {
      float* lanes = beside_ + Beside<T>::place_of(part);
      for (int64_t lane = 0; lane * kShared<T> + part < size; ++lane)
        lanes[lane] = values[lane * kShared<T> + part];
    }
  }

  void lay_one(float value, int64_t size) {
    for (int64_t part = 0; part < kShared<T>; ++part) {
      float* lanes = beside_ + Beside<T>::place_of(part);
      for (int64_t lane = 0; lane * kShared<T> < size; ++lane) lanes[lane] = value;
    }
  }

  const float* values_;
  Channels channels_;
  int64_t period_;
  float beside_[kBlock];
};

}  // namespace
}  // namespace ltat::LTAT_ISA
