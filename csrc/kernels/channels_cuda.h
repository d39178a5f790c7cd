// What the element-wise CUDA kernels over channels share: 16 bytes of elements at once, and the values of
// their channels beside them.
#pragma once

#include "channels.h"
#include "cuda_common.h"

namespace ltat {

template <class T, int kElements>
struct alignas(sizeof(T) * kElements) Pack {
  T at[kElements];
};

template <class T>
constexpr int kPack = 16 / sizeof(T);  // elements of the widest load

template <class T, int kElements, class Index>
__device__ __forceinline__ Pack<T, kElements> pack_of(const void* from, Index i) {
  return static_cast<const Pack<T, kElements>*>(from)[i];
}

// Calls visit(0) to visit(kElements - 1), unrolled.
template <int kElements, class Visit>
__device__ __forceinline__ void for_each(const Visit& visit) {
#pragma unroll
  for (int j = 0; j < kElements; ++j) visit(j);
}

// The values for kElements elements from `first` on, which lie in as many channels or all in one.
template <int kElements, class Index>
__device__ __forceinline__ Pack<float, kElements> values_of(const float* values, const Channels& channels,
                                                            Index first) {
  const Index count = static_cast<Index>(channels.count), inner = static_cast<Index>(channels.inner);
  if (inner == 1) return pack_of<float, kElements>(values + first % count, 0);
  const float value = values[first / inner % count];
  Pack<float, kElements> same;
  for_each<kElements>([&](int j) { same.at[j] = value; });
  return same;
}

template <class T, int kElements>
bool starts_a_pack(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(Pack<T, kElements>) == 0;
}

// Whether no pack crosses from one row of channels, or from one channel, into the next, and their values can
// be read as packs.
template <int kElements>
bool values_fit(const float* values, const Channels& channels) {
  if (!values) return true;
  const int64_t row = channels.inner == 1 ? channels.count : channels.inner;
  return row % kElements == 0 && starts_a_pack<float, kElements>(values);
}

// Calls visit with an integer that counts this many elements; a GPU computes with 32 bits several times
// faster than with 64.
template <class Visit>
auto with_index(int64_t size, const Visit& visit) {
  return size <= INT32_MAX ? visit(uint32_t{}) : visit(uint64_t{});
}

}  // namespace ltat
