// Tensors of channels [B, ch, ...] in any dense memory order.
#pragma once

#include "../kernels/channels.h"
#include "memory.h"

namespace ltat {

// Of the tensor `layout`, whose memory is dense: along each dimension the index repeats with its stride.
inline Channels channels_of(const Tensor& layout) {
  if (layout.size(1) == 1) return {1, layout.numel()};
  return {layout.size(1), layout.stride(1)};
}

// One float32 per channel of `x`.
inline void check_per_channel(const Tensor& values, const Tensor& x, const char* name) {
  check_dtype(values, ScalarType::Float, name);
  check_same_device(values, x, name);
  STD_TORCH_CHECK(x.dim() >= 2 && values.dim() == 1 && values.size(0) == x.size(1), name,
                  " needs one value per channel");
}

}  // namespace ltat
