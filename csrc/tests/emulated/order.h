// The order in which the threads of a block, and the blocks of a grid, take their turns.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace ltat::emulated {

class Order {
 public:
  // As LTAT_EMULATED_ORDER says: ascending (if it is not set), descending or random:SEED. Throws
  // std::runtime_error for anything else.
  static Order from_environment();

  // Index of the next of `size` threads among those that are marked `ready`, or -1 if none is.
  int next(const char* states, int size, char ready);
  std::vector<uint64_t> of_blocks(uint64_t count);

 private:
  enum class Kind { kAscending, kDescending, kRandom };

  Kind kind_ = Kind::kAscending;
  std::mt19937_64 random_;
};

}  // namespace ltat::emulated
