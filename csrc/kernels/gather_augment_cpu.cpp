// Compiled once per instruction set, into the namespace LTAT_ISA (see isa.h).
#include "gather_augment.h"

namespace ltat::LTAT_ISA {
namespace {

template <class Out>
void scale(const uint8_t* bytes, Out* out, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) store(scaled(bytes[i]), out + i);
}

// A constant number of channels lets the compiler copy a pixel in one or two moves.
template <int64_t kChannels>
void reverse_pixels(const uint8_t* from, uint8_t* to, int64_t pixels) {
  for (int64_t x = 0; x < pixels; ++x) {
    memcpy(to + x * kChannels, from + (pixels - 1 - x) * kChannels, kChannels);
  }
}

void reverse_pixels(const uint8_t* from, uint8_t* to, int64_t pixels, int64_t channels) {
  if (channels == 1) return reverse_pixels<1>(from, to, pixels);
  if (channels == 3) return reverse_pixels<3>(from, to, pixels);
  for (int64_t x = 0; x < pixels; ++x) {
    memcpy(to + x * channels, from + (pixels - 1 - x) * channels, channels);
  }
}

// One row of the moved image, from its row of the source; `to` holds zeros before.
void place_row(const GatherAugmentArgs& args, const Move& move, const uint8_t* from, uint8_t* to) {
  const int64_t width = args.width, channels = args.channels;
  const int64_t begin = move.columns < 0 ? -move.columns : 0;
  const int64_t end = move.columns > 0 ? width - move.columns : width;
  const uint8_t* inside = from + (begin + move.columns) * channels;
  if (move.mirrored) {
    reverse_pixels(inside, to + (width - end) * channels, end - begin, channels);
  } else {
    memcpy(to + begin * channels, inside, (end - begin) * channels);
  }
  if (!args.reflect) return;
  const int64_t border = begin > 0 ? 0 : end;  // a shift uncovers one side only
  for (int64_t x = border; x < border + width - (end - begin); ++x) {
    const int64_t column = move.mirrored ? width - 1 - x : x;
    memcpy(to + column * channels, from + source_of(x + move.columns, width, true) * channels, channels);
  }
}

template <class Out>
void move_image(const GatherAugmentArgs& args, const Move& move, Out* out, uint8_t* scratch) {
  const int64_t height = args.height, row_size = args.width * args.channels;
  const int64_t block = gather_augment_scratch_size(args) / row_size;
  for (int64_t begin = 0; begin < height; begin += block) {
    const int64_t rows = begin + block < height ? block : height - begin;
    memset(scratch, 0, rows * row_size);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t source = source_of(begin + row + move.rows, height, args.reflect);
      if (source >= 0) place_row(args, move, move.image + source * row_size, scratch + row * row_size);
    }
    scale(scratch, out + begin * row_size, rows * row_size);
  }
}

template <class Out>
void gather_images(const GatherAugmentArgs& args, int64_t begin, int64_t end, uint8_t* scratch) {
  const int64_t size = args.height * args.width * args.channels;
  for (int64_t sample = begin; sample < end; ++sample) {
    const Move move = move_of(args, sample);
    Out* out = static_cast<Out*>(args.out) + sample * size;
    if (!move.legal) {
      for (int64_t i = 0; i < size; ++i) store(NAN, out + i);
    } else if (move.rows == 0 && move.columns == 0 && !move.mirrored) {
      scale(move.image, out, size);
    } else {
      move_image(args, move, out, scratch);
    }
  }
}

}  // namespace

void gather_augment_images(const GatherAugmentArgs& args, int64_t begin, int64_t end, uint8_t* scratch) {
  const bool wide = args.out_dtype == DType::kFloat32;
  (wide ? gather_images<float> : gather_images<BFloat16>)(args, begin, end, scratch);
}

}  // namespace ltat::LTAT_ISA
