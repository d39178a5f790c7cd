// What all kernels share: the element types with their conversions, and the loop over threads.
// No torch header may be included from this folder.
#pragma once

#include <cstdint>
#include <cstring>

// Internal linkage on purpose: the headers are compiled once per instruction set, and the linker may keep any
// one copy of an external inline function: AVX-512 code in the kernels for SSE2.
#ifdef __CUDACC__
#define LTAT_INLINE static __host__ __device__ __forceinline__
#else
#define LTAT_INLINE static inline
#endif

namespace ltat {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

LTAT_INLINE float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

LTAT_INLINE uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

LTAT_INLINE float to_float(float value) { return value; }

LTAT_INLINE float to_float(BFloat16 value) {
  return float_from_bits(static_cast<uint32_t>(value.bits) << 16);
}

LTAT_INLINE float to_float(Float16 value) {
#ifdef __CUDA_ARCH__
  float converted;
  asm("cvt.f32.f16 %0, %1;" : "=f"(converted) : "h"(value.bits));
  return converted;
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // The product moves the exponent bias from 15 to 127 and is exact for subnormals too.
  const uint32_t finite = bits_from_float(float_from_bits(magnitude << 13) * 0x1p112f);
  const uint32_t special = 0x7f800000u | (magnitude << 13);
  return float_from_bits(sign | (magnitude >= 0x7c00u ? special : finite));
#endif
}

// The value, or 0 where it is not kept. A choice between numbers would be one more branch beside that of the
// rounding, and gcc would join them at some cost.
LTAT_INLINE float where(bool kept, float value) {
  return float_from_bits(bits_from_float(value) & (kept ? 0xffffffffu : 0u));
}

// To a narrower type: to the nearest, ties to even; NaN stays NaN. A GPU has one instruction for it.
LTAT_INLINE BFloat16 bfloat16_from(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
  return {rounded};
#else
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>((rounded | (value != value ? 0x7fc00000u : 0u)) >> 16)};
#endif
}

LTAT_INLINE Float16 float16_from(float value) {
#ifdef __CUDA_ARCH__
  uint16_t rounded;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
  return {rounded};
#else
  const uint32_t bits = bits_from_float(value), magnitude = bits & 0x7fffffffu;
  // Moves the exponent bias from 127 to 15, and rounds at the last of the 10 bits that stay.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // The last place of a sum with 0.5 is the smallest subnormal, 2^-24.
  const uint32_t subnormal = bits_from_float(float_from_bits(magnitude) + 0.5f) - bits_from_float(0.5f);
  const uint32_t finite = magnitude < bits_from_float(0x1p-14f) ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t rounded = magnitude < bits_from_float(0x1p16f) ? finite : special;
  return {static_cast<uint16_t>(((bits >> 16) & 0x8000u) | rounded)};
#endif
}

LTAT_INLINE void store(float value, float* out) { *out = value; }
LTAT_INLINE void store(float value, BFloat16* out) { *out = bfloat16_from(value); }
LTAT_INLINE void store(float value, Float16* out) { *out = float16_from(value); }

// a * b, rounded: nvcc would contract a product and a sum that follows it.
LTAT_INLINE float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// Calls visit with a value of the element type: visit(float{}), visit(BFloat16{}) or visit(Float16{}). Host
// only.
template <class Visit>
static inline auto with_type(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::kBFloat16:
      return visit(BFloat16{});
    case DType::kFloat16:
      return visit(Float16{});
    default:
      return visit(float{});
  }
}

// Runs body(context, begin, end) over disjoint ranges that cover [0, size), each of at least `grain` items.
using RangeBody = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t size, int64_t grain, void* context, RangeBody body);

// The same with a callable body(begin, end).
template <class Body>
static inline void for_ranges(ParallelFor parallel_for, int64_t size, int64_t grain, const Body& body) {
  parallel_for(size, grain, const_cast<Body*>(&body), [](void* context, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(context))(begin, end);
  });
}

}  // namespace ltat
