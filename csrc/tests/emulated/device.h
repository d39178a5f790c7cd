// A CUDA device on one thread of the CPU. The threads of a block are fibers: each runs until it waits for
// others, and then the next one in the chosen order does. The order is strict: of all threads that could run,
// the first one does, so that a part of the block runs as far ahead of the rest as its barriers allow, and a
// missing barrier shows in one order or the other.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs now.
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim{}, gridDim{};

namespace ltat::emulated {

using Place = std::source_location;  // of a call in the kernel

// Runs `kernel` once for each thread of each block, and returns null or what went wrong. Blocks take turns
// only at atomics: the first block that comes to one is held there until all others have ended, as if it were
// slow; so what it has still to write is missing where others rely on its count. LTAT_EMULATED_BLOCKS=N
// launches at most N blocks along each axis, as if the limits of a grid were smaller.
const char* run_grid(dim3 grid, dim3 block, const std::function<void()>& kernel);

// What kernels call, by way of the names in cuda_runtime.h.
constexpr int kWarp = 32, kBallot = -1;
void wait_for_block(const Place& place);
void after_atomic();
// Meets the other lanes in `mask` and returns the value of lane `source`, or for kBallot the set of lanes
// whose value is not 0.
uint64_t exchange(unsigned mask, uint64_t value, int source, const Place& place);

}  // namespace ltat::emulated
