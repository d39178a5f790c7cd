// What the tests of the emulated kernels share: orders of threads, random cases, arrays at odd addresses.
#pragma once

#include <cstdlib>
#include <random>
#include <string>

#include "../../kernels/common.h"
#include "../check.h"

namespace ltat::test {

// Calls body in three orders of the threads, the third drawn from the seed; at most `blocks` blocks along an axis, or any number for 0.
template <class Body>
void in_every_order(unsigned seed, int64_t blocks, const Body& body) {
  for (const std::string& order :
       {std::string("ascending"), std::string("descending"), "random:" + std::to_string(seed)}) {
    setenv("LTAT_EMULATED_ORDER", order.c_str(), 1);
    blocks ? setenv("LTAT_EMULATED_BLOCKS", std::to_string(blocks).c_str(), 1)
           : unsetenv("LTAT_EMULATED_BLOCKS");
    body();
    if (failures() != 0) std::exit(1);  // the first is enough, and many errors are planted
  }
}

// A launcher's error is a failed check that says what it was.
inline void check_launch(const char* error) {
  if (!error) return;
  std::printf("%s\n", error);
  CHECK(error == nullptr);
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}

  int64_t below(int64_t limit) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(limit)); }
  // Of the first element behind an aligned address; mostly none.
  int64_t offset(int64_t limit) { return one_in(3) ? 1 + below(limit - 1) : 0; }
  bool one_in(int64_t count) { return below(count) == 0; }
  float in(float low, float high) {
    return low + (high - low) * static_cast<float>(below(1 << 20)) / (1 << 20);
  }

 private:
  std::mt19937_64 engine_;
};

// Elements of which the first lies `offset` elements behind an aligned address, and the last at the end of the
// allocation: AddressSanitizer sees a step beyond it.
template <class T>
class Array {
 public:
  explicit Array(int64_t size = 0, int64_t offset = 0) : memory_(size + offset), offset_(offset) {}

  T* data() { return memory_.data() + offset_; }
  int64_t size() const { return static_cast<int64_t>(memory_.size()) - offset_; }
  T& operator[](int64_t i) { return memory_[i + offset_]; }

 private:
  std::vector<T> memory_;
  int64_t offset_;
};

template <class T>
Array<T> drawn(Random& random, int64_t size, int64_t offset, float reach) {
  Array<T> values(size, offset);
  for (int64_t i = 0; i < size; ++i) store(random.one_in(9) ? 0.0f : random.in(-reach, reach), &values[i]);
  return values;
}

inline bool is_near(float a, float b, float tolerance) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b || std::fabs(a - b) <= tolerance;
}

// Number of elements that differ; NaN agrees with NaN.
template <class A, class B>
int64_t differences(A& a, B& b, int64_t size, float tolerance) {
  int64_t count = 0;
  for (int64_t i = 0; i < size; ++i) count += !is_near(a[i], b[i], tolerance);
  return count;
}

}  // namespace ltat::test
