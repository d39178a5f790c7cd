#include "../kernels/affine_relu.h"

#include "channels.h"

namespace ltat {
namespace {

void launch(const AffineReluArgs& args, [[maybe_unused]] const Tensor& on) {
#ifdef LTAT_WITH_CUDA
  if (on.is_cuda()) return enqueue(affine_relu_cuda, args, on);
#endif
  affine_relu_cpu(args, torch_threads);
}

Tensor affine_relu(const Tensor& x, const Tensor& scale, const Tensor& shift) {
  const DType dtype = dtype_of(x, "x");
  check_per_channel(scale, x, "scale");
  check_per_channel(shift, x, "shift");
  Tensor out = torch::stable::empty_like(x);
  if (x.numel() == 0) return out;
  const Tensor x_ordered = ordered_like(x, out), scale_dense = dense(scale), shift_dense = dense(shift);
  launch({out.data_ptr(), x_ordered.data_ptr(), data<float>(scale_dense), data<float>(shift_dense), dtype,
          x.numel(), channels_of(out)},
         x);
  return out;
}

}  // namespace
}  // namespace ltat

STABLE_TORCH_LIBRARY_FRAGMENT(ltat, m) {
  m.def("affine_relu(Tensor x, Tensor scale, Tensor shift) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ltat, CPU, m) { m.impl("affine_relu", TORCH_BOX(&ltat::affine_relu)); }

#ifdef LTAT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltat, CUDA, m) { m.impl("affine_relu", TORCH_BOX(&ltat::affine_relu)); }
#endif
