// Whether the emulated device behaves as docs/native.md says.
#include <numeric>

#include "cases.h"
#include "cuda_runtime.h"

using namespace ltat;
using namespace ltat::test;

namespace {

constexpr unsigned kAll = 0xffffffffu;

// What is wrong with a kernel of two blocks of 64 threads, in ascending order; empty if nothing is.
std::string problem_of(void (*kernel)(int*), int* memory = nullptr) {
  setenv("LTAT_EMULATED_ORDER", "ascending", 1);
  unsetenv("LTAT_EMULATED_BLOCKS");
  cudaLaunchConfig_t config{};
  config.gridDim = 2;
  config.blockDim = 64;
  return cudaGetErrorString(cudaLaunchKernelEx(&config, kernel, memory));
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

__global__ void one_warp_leaves(int*) {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void two_barriers(int*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void a_lane_leaves(int*) {
  if (threadIdx.x != 5) __shfl_xor_sync(kAll, 1, 16);
}

__global__ void a_lane_outside_its_mask(int*) { __ballot_sync(1u, 1); }

__global__ void warp_sums(int* sums) {
  int value = static_cast<int>(threadIdx.x);
  for (unsigned lanes = 16; lanes > 0; lanes /= 2) value += __shfl_down_sync(kAll, value, lanes);
  const unsigned odd = __ballot_sync(kAll, threadIdx.x % 2);
  if (threadIdx.x == 32 && blockIdx.x == 1)
    sums[0] = __shfl_sync(1u, value, 0), sums[1] = static_cast<int>(odd);
}

__global__ void fresh_shared_memory(int* garbage) {
  __shared__ int value;
  if (threadIdx.x == 0) garbage[blockIdx.x] = value, value = 3;
}

// Thread 0 counts its block before the others have written; the block that counts second sums what it finds.
__global__ void counts_too_early(int* memory) {
  if (threadIdx.x == 0 && atomicAdd(memory, 1) == 1) memory[1] = std::accumulate(memory + 2, memory + 130, 0);
  memory[2 + blockIdx.x * 64 + threadIdx.x] = 1;
}

__global__ void notes_its_turn(int* memory) { memory[1 + memory[0]++] = static_cast<int>(threadIdx.x); }

}  // namespace

TEST(threads_that_wait_without_end_are_named) {
  const std::string text = problem_of(one_warp_leaves);
  CHECK(has(text, "thread 0 of block 0,0 waits at") && has(text, "test_device.cpp:"));
  CHECK(has(problem_of(two_barriers), "meets others that wait at"));
  CHECK(has(problem_of(a_lane_leaves), "reads lane 5, which has ended"));
  CHECK(has(problem_of(a_lane_outside_its_mask), "is not in its own mask"));
}

TEST(a_launch_after_a_failed_one_is_whole_and_lanes_exchange_values) {
  problem_of(one_warp_leaves);
  int sums[2] = {};
  CHECK(problem_of(warp_sums, sums) == "no error");
  CHECK(sums[0] == (32 + 63) * 16 && static_cast<unsigned>(sums[1]) == 0xaaaaaaaau);
}

TEST(shared_memory_holds_nothing_of_the_block_before) {
  int garbage[2] = {};
  problem_of(fresh_shared_memory, garbage);
  CHECK(garbage[0] == -1 && garbage[1] == -1);
}

TEST(a_block_that_counts_itself_too_early_is_found_out) {
  std::vector<int> memory(130);
  CHECK(problem_of(counts_too_early, memory.data()) == "no error");
  CHECK(memory[0] == 2 && memory[1] == 0);
}

TEST(the_orders_of_threads_are_what_their_names_say) {
  std::vector<std::vector<int>> turns;
  in_every_order(7, 1, [&] {
    std::vector<int> memory(65);
    check_launch(emulated::run_grid(1, 64, [&] { notes_its_turn(memory.data()); }));
    turns.push_back(memory);
  });
  CHECK(turns[0][1] == 0 && turns[0][64] == 63 && turns[1][1] == 63 && turns[1][64] == 0);
  CHECK(turns[2] != turns[0] && turns[2] != turns[1]);
}
