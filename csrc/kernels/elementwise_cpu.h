// Loops over the elements of a block, with floats beside them, for the CPU kernels. Compiled once per
// instruction set, as they are.
#pragma once

#include <bit>

#include "common.h"

namespace ltat::LTAT_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // elements of a block, at most

// Elements that share a lane of 32 bits of a vector from load to store: to spread them over twice the lanes
// and to gather them again would take as long as the rest.
template <class T>
constexpr int64_t kShared = 4 / sizeof(T);

// One float for each element of a block of T, in the order of the lanes: first those of the first elements of
// all lanes, from kBlock / 2 on those of the second ones.
template <class T>
struct Beside {
  const float* values;

  static int64_t place_of(int64_t element) {
    return element % kShared<T> * (kBlock / 2) + element / kShared<T>;
  }
};

// Reads the element k as a float.
struct At {
  int64_t k;

  template <class T>
  float operator()(const T* from) const {
    return to_float(from[k]);
  }

  template <class T>
  float operator()(Beside<T> from) const {
    return from.values[Beside<T>::place_of(k)];
  }
};

// Reads the first or the second element of a lane as a float.
template <int kSecond>
struct AtLane {
  int64_t lane;

  template <class T>
  float operator()(const T* from) const {
    uint32_t both;
    std::memcpy(&both, from + 2 * lane, sizeof(both));
    return to_float(T{static_cast<uint16_t>(both >> (16 * kSecond))});
  }

  template <class T>
  float operator()(Beside<T> from) const {
    return from.values[kSecond * (kBlock / 2) + lane];
  }
};

// Writes formula(read) to each of `size` elements of `out`; read(array) is the element of an array of T, or
// of the floats beside it.
template <class Formula>
void for_elements(float* out, int64_t size, const Formula& formula) {
#pragma omp simd
  for (int64_t k = 0; k < size; ++k) out[k] = formula(At{k});
}

// The same for T of 16 bits.
template <class T, class Formula>
void for_elements(T* out, int64_t size, const Formula& formula) {
  static_assert(kShared<T> == 2 && std::endian::native == std::endian::little);
#pragma omp simd
  for (int64_t lane = 0; lane < size / 2; ++lane) {
    T first, second;
    store(formula(AtLane<0>{lane}), &first);
    store(formula(AtLane<1>{lane}), &second);
    const uint32_t both = first.bits | static_cast<uint32_t>(second.bits) << 16;
    std::memcpy(out + 2 * lane, &both, sizeof(both));
  }
  if (size % 2 != 0) store(formula(At{size - 1}), out + size - 1);
}

}  // namespace
}  // namespace ltat::LTAT_ISA
