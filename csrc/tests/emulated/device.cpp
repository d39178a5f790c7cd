#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "block.h"
#include "shared_memory.h"

namespace ltat::emulated {
namespace {

constexpr unsigned kMaxThreads = 1024, kMaxBlocks = 0x7fffffff, kMaxBlocksYZ = 65535;

// Made at the first launch and kept with their fibers; never destroyed, because nothing runs after main.
struct Blocks {
  std::unique_ptr<Block> running = std::make_unique<Block>(), held = std::make_unique<Block>();
};
Blocks& blocks() {
  static Blocks& all = *new Blocks;
  return all;
}
Block* current = nullptr;

bool is_valid(const dim3& grid, const dim3& block) {
  const bool some = grid.x && grid.y && grid.z && block.x;
  return some && grid.x <= kMaxBlocks && grid.y <= kMaxBlocksYZ && grid.z <= kMaxBlocksYZ &&
         block.x <= kMaxThreads && block.y == 1 && block.z == 1;
}

dim3 limited(const dim3& grid) {
  const char* limit = std::getenv("LTAT_EMULATED_BLOCKS");
  if (!limit) return grid;
  const unsigned most = static_cast<unsigned>(std::max(1, std::atoi(limit)));
  return {std::min(grid.x, most), std::min(grid.y, most), std::min(grid.z, most)};
}

uint3 index_of(uint64_t block) {
  const uint64_t row = block / gridDim.x;
  return {static_cast<unsigned>(block % gridDim.x), static_cast<unsigned>(row % gridDim.y),
          static_cast<unsigned>(row / gridDim.y)};
}

void run(Block& block, Order& order, bool hold) {
  current = &block;
  block.run(order, hold);
}

void run_blocks(const std::function<void()>& kernel) {
  Order order = Order::from_environment();
  SharedMemory shared;
  std::vector<char> of_held;
  auto& [running, held] = blocks();
  bool holding = false;
  for (uint64_t index : order.of_blocks(uint64_t{gridDim.x} * gridDim.y * gridDim.z)) {
    shared.spoil();
    running->begin(index_of(index), static_cast<int>(blockDim.x), kernel);
    run(*running, order, !holding);
    if (running->has_ended()) continue;
    holding = true;
    of_held = shared.copy();
    std::swap(running, held);
  }
  if (!holding) return;
  shared.restore(of_held);
  run(*held, order, false);
}

}  // namespace

const char* run_grid(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;
  static std::string problem;
  const std::lock_guard guard(one_at_a_time);
  if (!is_valid(grid, block)) return "invalid configuration argument";
  gridDim = limited(grid);
  blockDim = block;
  try {
    run_blocks(kernel);
    return nullptr;
  } catch (const std::runtime_error& error) {
    blocks() = {};  // fibers that stopped in the middle
    problem = error.what();
    return problem.c_str();
  }
}

void wait_for_block(const Place& place) { current->wait_for_block(place); }

void after_atomic() { current->after_atomic(); }

uint64_t exchange(unsigned mask, uint64_t value, int source, const Place& place) {
  return current->exchange(mask, value, source, place);
}

}  // namespace ltat::emulated
