#include "../kernels/relu_grad_add.h"

#include "channels.h"

namespace ltat {
namespace {

void check_like(const Tensor& tensor, const Tensor& output, const char* name) {
  STD_TORCH_CHECK(same_shape(tensor, output), name, " differs from output in shape");
  check_dtype(tensor, output.scalar_type(), name);
  check_same_device(tensor, output, name);
}

void check(const Tensor& output, const Tensor& grad, const OptionalTensor& other, const OptionalTensor& scale,
           const OptionalTensor& outside) {
  dtype_of(output, "output");
  check_like(grad, output, "grad");
  if (other) check_like(*other, output, "other");
  if (outside) check_like(*outside, output, "outside");
  if (scale) check_per_channel(*scale, output, "scale");
}

void launch(const ReluGradAddArgs& args, [[maybe_unused]] const Tensor& on) {
#ifdef LTAT_WITH_CUDA
  if (on.is_cuda()) return enqueue(relu_grad_add_cuda, args, on);
#endif
  relu_grad_add_cpu(args, torch_threads);
}

const void* data_or_null(const OptionalTensor& tensor) { return tensor ? tensor->data_ptr() : nullptr; }

Tensor relu_grad_add(const Tensor& output, const Tensor& grad, OptionalTensor other, OptionalTensor scale,
                     OptionalTensor outside) {
  check(output, grad, other, scale, outside);
  Tensor out = torch::stable::empty_like(output);
  if (output.numel() == 0) return out;
  const Tensor output_ordered = ordered_like(output, out), grad_ordered = ordered_like(grad, out);
  const OptionalTensor other_ordered = ordered_like(other, out), outside_ordered = ordered_like(outside, out);
  const OptionalTensor scale_dense = scale ? OptionalTensor(dense(*scale)) : std::nullopt;

  ReluGradAddArgs args{};
  args.out = out.data_ptr();
  args.output = output_ordered.data_ptr();
  args.grad = grad_ordered.data_ptr();
  args.other = data_or_null(other_ordered);
  args.scale = static_cast<const float*>(data_or_null(scale_dense));
  args.outside = data_or_null(outside_ordered);
  args.dtype = dtype_of(output, "output");
  args.size = output.numel();
  args.channels = scale ? channels_of(out) : Channels{1, args.size};
  launch(args, output);
  return out;
}

}  // namespace
}  // namespace ltat

STABLE_TORCH_LIBRARY_FRAGMENT(ltat, m) {
  m.def("relu_grad_add(Tensor output, Tensor grad, Tensor? other, Tensor? scale, Tensor? outside) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ltat, CPU, m) { m.impl("relu_grad_add", TORCH_BOX(&ltat::relu_grad_add)); }

#ifdef LTAT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltat, CUDA, m) { m.impl("relu_grad_add", TORCH_BOX(&ltat::relu_grad_add)); }
#endif
