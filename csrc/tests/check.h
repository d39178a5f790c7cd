// A test is a function; CHECK counts a failure and goes on. No framework: a machine without network could not
// download one.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace ltat::test {

using Test = void (*)();

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
inline int& failures() {
  static int count = 0;
  return count;
}

// Hash of the kernels' results, to compare one instruction set with another.
inline uint64_t& digest() {
  static uint64_t value = 14695981039346656037u;
  return value;
}
inline void absorb(const std::vector<float>& values) {
  for (float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    digest() = (digest() ^ bits) * 1099511628211u;
  }
}

struct Register {
  explicit Register(Test test) { tests().push_back(test); }
};

inline void serial(int64_t size, int64_t, void* context, void (*body)(void*, int64_t, int64_t)) {
  body(context, 0, size);
}

// One item at a time, the last first: the schedule least like `serial`.
inline void scattered(int64_t size, int64_t, void* context, void (*body)(void*, int64_t, int64_t)) {
  for (int64_t i = size - 1; i >= 0; --i) body(context, i, i + 1);
}

// A schedule whose ranges begin at odd items.
inline void in_odd_pieces(int64_t size, int64_t, void* context, void (*body)(void*, int64_t, int64_t)) {
  body(context, 0, size < 37 ? size : 37);
  for (int64_t i = 37; i < size; i += 1300) body(context, i, i + 1300 < size ? i + 1300 : size);
}

// Values in [-1, 1), the same on every machine.
inline std::vector<float> noise(size_t size, uint32_t seed) {
  std::vector<float> values(size);
  uint32_t state = seed * 2654435761u + 1u;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / static_cast<float>(1 << 23) - 1.0f;
  }
  return values;
}

}  // namespace ltat::test

#define TEST(name)                                         \
  static void name();                                      \
  static const ltat::test::Register register_##name(name); \
  static void name()

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      ++ltat::test::failures();                                           \
    }                                                                     \
  } while (0)
