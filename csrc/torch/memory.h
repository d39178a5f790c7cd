// The memory order of tensors, and whether they share memory: decided from addresses, sizes and strides.
#pragma once

#include <algorithm>
#include <vector>

#include "common.h"

namespace ltat {

struct Axis {
  int64_t size, stride;
};

// The axes along which a tensor extends, the innermost first.
inline std::vector<Axis> axes_of(const Tensor& tensor) {
  std::vector<Axis> axes;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1) axes.push_back({tensor.size(d), tensor.stride(d)});
  }
  std::sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.stride < b.stride; });
  return axes;
}

// Whether the stride of each axis exceeds all that the axes inside it reach: then no two elements coincide.
inline bool is_nested(const std::vector<Axis>& axes) {
  int64_t reach = 0;
  for (const Axis& axis : axes) {
    if (axis.stride <= reach) return false;
    reach += (axis.size - 1) * axis.stride;
  }
  return true;
}

// Whether two indices of the nested `axes` lie `offset` elements apart.
inline bool is_apart(const std::vector<Axis>& axes, size_t count, int64_t offset) {
  if (count == 0) return offset == 0;
  const Axis& outer = axes[count - 1];
  // The axes inside reach less than one stride, so only the two nearest multiples of it are possible.
  const int64_t below = offset / outer.stride - (offset % outer.stride < 0 ? 1 : 0);
  for (int64_t steps : {below, below + 1}) {
    if (std::abs(steps) < outer.size && is_apart(axes, count - 1, offset - steps * outer.stride)) return true;
  }
  return false;
}

struct Span {
  intptr_t begin, end;
};

inline Span span_of(const Tensor& tensor) {
  const auto begin = reinterpret_cast<intptr_t>(tensor.data_ptr());
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return {begin, begin};
    last += (sizes[d] - 1) * strides[d];
  }
  return {begin, begin + (last + 1) * static_cast<int64_t>(tensor.element_size())};
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// `source` in the memory order of `layout`: itself, or a copy in the dtype of `layout`.
inline Tensor ordered_like(const Tensor& source, const Tensor& layout) {
  if (same_strides(source, layout)) return source;
  Tensor copy = torch::stable::empty_like(layout);
  torch::stable::copy_(copy, source);
  return copy;
}

inline OptionalTensor ordered_like(const OptionalTensor& source, const Tensor& layout) {
  return source ? OptionalTensor(ordered_like(*source, layout)) : std::nullopt;
}

// Whether `other` shares memory with `written` in another way than element for element, which is harmless.
// Tensors of different strides whose spans overlap count as sharing it.
inline bool overlaps_partly(const Tensor& written, const Tensor& other) {
  const Span a = span_of(written), b = span_of(other);
  if (a.end <= b.begin || b.end <= a.begin || a.begin == a.end) return false;
  const bool alike = written.scalar_type() == other.scalar_type() && same_shape(written, other) &&
                     same_strides(written, other);
  if (!alike) return true;
  const int64_t bytes = b.begin - a.begin, size = static_cast<int64_t>(written.element_size());
  if (bytes == 0) return false;
  const std::vector<Axis> axes = axes_of(written);
  return bytes % size != 0 || is_apart(axes, axes.size(), bytes / size);
}

}  // namespace ltat
