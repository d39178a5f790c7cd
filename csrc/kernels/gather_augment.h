// A batch of a loader: pick images, shift them against zero or reflecting padding, mirror them, scale to
// [0, 1]. The formula stands here; the CPU kernel applies it to rows, the CUDA kernel to elements.
#pragma once

#include <cmath>

#include "common.h"

namespace ltat {

struct GatherAugmentArgs {
  void* out;                 // [B, H, W, ch] of out_dtype
  const uint8_t* images;     // [N, H, W, ch]
  const int64_t* positions;  // [B], or null: all images in order
  const int64_t* shift;      // [B, 2], rows and columns, or null: none
  const uint8_t* mirrored;   // [B], or null: none
  bool reflect;
  int64_t count, batch, height, width, channels;  // N, B, H, W, ch
  DType out_dtype = DType::kFloat32;              // or kBFloat16
};

// What happens to one image. An illegal move makes the image NaN: the host cannot check the values of a CUDA
// tensor without waiting for them.
struct Move {
  const uint8_t* image;
  int64_t rows, columns;  // within +-height and +-width: a larger shift shows padding alone
  bool mirrored, legal;
};

LTAT_INLINE bool position_in_range(const GatherAugmentArgs& args, int64_t position) {
  return position >= 0 && position < args.count;
}

// A reflection reaches the far side of the image and no further.
LTAT_INLINE bool shift_in_range(const GatherAugmentArgs& args, int64_t shift, int64_t size) {
  return !args.reflect || (shift > -size && shift < size);
}

LTAT_INLINE int64_t clamped(int64_t value, int64_t lo, int64_t hi) {
  return value < lo ? lo : (value > hi ? hi : value);
}

LTAT_INLINE Move move_of(const GatherAugmentArgs& args, int64_t sample) {
  const int64_t position = args.positions ? args.positions[sample] : sample;
  const int64_t rows = args.shift ? args.shift[2 * sample] : 0;
  const int64_t columns = args.shift ? args.shift[2 * sample + 1] : 0;
  const bool found = position_in_range(args, position);
  const bool legal =
      found &&
      (!args.shift || (shift_in_range(args, rows, args.height) && shift_in_range(args, columns, args.width)));
  return {args.images + (found ? position : 0) * args.height * args.width * args.channels,
          clamped(rows, -args.height, args.height), clamped(columns, -args.width, args.width),
          args.mirrored && args.mirrored[sample], legal};
}

// Row or column of the image that lies at `position` of the padded one; -1 in the zero padding.
LTAT_INLINE int64_t source_of(int64_t position, int64_t size, bool reflect) {
  if (position >= 0 && position < size) return position;
  if (!reflect) return -1;
  return position < 0 ? -position : 2 * (size - 1) - position;
}

// value / 255, correctly rounded, without a division: 1/255 is kHigh + kLow, and kHigh has so few bits that
// its product is exact. The tests compare all 256 values, with and without contraction to fma.
LTAT_INLINE float scaled(uint8_t value) {
  constexpr float kHigh = 0x1.01p-8f;
  constexpr float kLow = static_cast<float>(1.0 / 255.0 - 0x1.01p-8);
  const float exact = static_cast<float>(value);
  return exact * kHigh + exact * kLow;
}

// Bytes of scratch that a thread of the CPU kernel needs: some rows, at least one.
constexpr int64_t kGatherBlock = 8192;

LTAT_INLINE int64_t gather_augment_scratch_size(const GatherAugmentArgs& args) {
  const int64_t row_size = args.width * args.channels;
  return row_size > kGatherBlock ? row_size : kGatherBlock;
}

void gather_augment_cpu(const GatherAugmentArgs& args, ParallelFor parallel_for);

// Enqueues on `stream`, a cudaStream_t of the current device. The return value is an error message, or null.
const char* gather_augment_cuda(const GatherAugmentArgs& args, void* stream);

}  // namespace ltat
