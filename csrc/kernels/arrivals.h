// How the last block of a grid knows that it is the last: the blocks count themselves as they arrive at their
// end. Which block that is differs from run to run; what it computes, from all that the others wrote, does not.
#pragma once

#include <map>
#include <mutex>

#include "cuda_common.h"

namespace ltat {

// One counter serves one kernel at a time. All are zero when the library is loaded, and the last block sets its
// counter back to zero, so that none is ever zeroed by a launch of its own. They lie in each device's memory.
constexpr int kCounters = 1 << 16;
constexpr int kNoCounter = -1;
static __device__ unsigned arrived[kCounters];

// A counter that no kernel running beside this one has. Kernels of one stream follow one another and share
// theirs. A captured kernel is replayed on any stream, but never beside itself: it keeps its own. kNoCounter
// where all are taken or the stream is in no state to be asked: then the grid has to be one block.
inline int counter_for(void* stream) {
  cudaStreamCaptureStatus capture;
  unsigned long long id;
  const auto asked = static_cast<cudaStream_t>(stream);
  if (cudaStreamIsCapturing(asked, &capture) != cudaSuccess || cudaStreamGetId(asked, &id) != cudaSuccess) {
    cudaGetLastError();  // or the launch would report it
    return kNoCounter;
  }
  static std::mutex mutex;
  static std::map<unsigned long long, int> of_stream;
  static int taken = 0;
  const std::lock_guard<std::mutex> guard(mutex);
  const bool eager = capture == cudaStreamCaptureStatusNone;
  if (const auto own = of_stream.find(id); eager && own != of_stream.end()) return own->second;
  if (taken == kCounters) return kNoCounter;
  if (eager) of_stream[id] = taken;
  return taken++;
}

// Whether all other blocks have arrived here. What they wrote before is then visible to this one. Every thread
// of every block calls it once.
static __device__ __forceinline__ bool is_last_block(int counter) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = gridDim.x == 1 || atomicAdd(arrived + counter, 1u) == gridDim.x - 1;
    if (last && gridDim.x > 1) arrived[counter] = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

}  // namespace ltat
