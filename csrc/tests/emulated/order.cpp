#include "order.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace ltat::emulated {

Order Order::from_environment() {
  const char* variable = std::getenv("LTAT_EMULATED_ORDER");
  const std::string name = variable ? variable : "ascending";
  Order order;
  if (name == "ascending") return order;
  if (name == "descending") {
    order.kind_ = Kind::kDescending;
    return order;
  }
  const bool random = name.rfind("random:", 0) == 0 && name.size() > 7 &&
                      name.find_first_not_of("0123456789", 7) == std::string::npos;
  if (!random) {
    throw std::runtime_error("LTAT_EMULATED_ORDER is " + name + "; set ascending, descending or random:SEED");
  }
  order.kind_ = Kind::kRandom;
  order.random_.seed(std::stoull(name.substr(7)));
  return order;
}

int Order::next(const char* states, int size, char ready) {
  const auto position = [&](const void* found) {
    return found ? static_cast<int>(static_cast<const char*>(found) - states) : -1;
  };
  if (kind_ == Kind::kAscending) return position(std::memchr(states, ready, size));
  if (kind_ == Kind::kDescending) return position(memrchr(states, ready, size));
  const int from = static_cast<int>(random_() % size);
  const int found = position(std::memchr(states + from, ready, size - from));
  return found >= 0 ? found : position(std::memchr(states, ready, from));
}

std::vector<uint64_t> Order::of_blocks(uint64_t count) {
  std::vector<uint64_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), uint64_t{0});
  if (kind_ == Kind::kDescending) std::reverse(blocks.begin(), blocks.end());
  if (kind_ == Kind::kRandom) std::shuffle(blocks.begin(), blocks.end(), random_);
  return blocks;
}

}  // namespace ltat::emulated
