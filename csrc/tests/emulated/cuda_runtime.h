// Stands in for CUDA's header of this name, so that an ordinary C++ compiler takes the kernels as they are:
// the words of CUDA C++ and as much of its library as they use, over the emulated device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "device.h"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

namespace ltat::emulated {

inline int own_lane() { return static_cast<int>(threadIdx.x) % kWarp; }

template <class T>
T from_lane(unsigned mask, T value, int source, const Place& place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, place);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace ltat::emulated

// ---- threads that wait for one another ----

inline void __syncthreads(ltat::emulated::Place place = ltat::emulated::Place::current()) {
  ltat::emulated::wait_for_block(place);
}

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       ltat::emulated::Place place = ltat::emulated::Place::current()) {
  ltat::emulated::exchange(mask, 0, ltat::emulated::own_lane(), place);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source,
              ltat::emulated::Place place = ltat::emulated::Place::current()) {
  return ltat::emulated::from_lane(mask, value, source & (ltat::emulated::kWarp - 1), place);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes,
                  ltat::emulated::Place place = ltat::emulated::Place::current()) {
  return ltat::emulated::from_lane(mask, value, (ltat::emulated::own_lane() ^ lanes) & 31, place);
}

// Beyond the last lane a lane gets its own value.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes,
                   ltat::emulated::Place place = ltat::emulated::Place::current()) {
  const int own = ltat::emulated::own_lane(), other = own + static_cast<int>(lanes);
  return ltat::emulated::from_lane(mask, value, other < ltat::emulated::kWarp ? other : own, place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              ltat::emulated::Place place = ltat::emulated::Place::current()) {
  return static_cast<unsigned>(
      ltat::emulated::exchange(mask, predicate != 0, ltat::emulated::kBallot, place));
}

// ---- memory ----

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

template <class T>
void __stwb(T* address, const T& value) {
  *address = value;
}

inline void __threadfence() {}

template <class T>
T __ldg(const T* address) {
  return *address;
}

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  const T before = *address;
  *address = before + value;
  ltat::emulated::after_atomic();
  return before;
}

// ---- the host's side ----

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace ltat::emulated {
inline const char* last_problem = nullptr;
inline cudaStreamCaptureStatus capture_status = cudaStreamCaptureStatusNone;  // of every stream
}  // namespace ltat::emulated

// Each thread gets copies of the arguments, made when the kernel is launched.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(arguments...);
  ltat::emulated::last_problem =
      ltat::emulated::run_grid(config->gridDim, config->blockDim, [&] { std::apply(kernel, copies); });
  return ltat::emulated::last_problem ? cudaErrorLaunchFailure : cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = ltat::emulated::capture_status;
  return cudaSuccess;
}

inline cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = reinterpret_cast<uintptr_t>(stream);
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : ltat::emulated::last_problem;
}
