#include "../kernels/pgd_step.h"

#include "memory.h"

namespace ltat {
namespace {

// Whether each sample is numel / B consecutive floats, one sample after the other. The order of the other
// dimensions does not matter: [B, ch, H, W] qualifies contiguous and as channels_last.
bool is_sample_major(const Tensor& tensor) {
  const int64_t dims = tensor.dim();
  int64_t expected = 1;
  std::vector<bool> seen(dims, false);
  for (int64_t placed = 0; placed < dims; ++placed) {
    int64_t found = -1;
    for (int64_t d = dims - 1; d >= 0 && found < 0; --d) {
      const bool fits = tensor.size(d) == 1 || tensor.stride(d) == expected;
      const bool in_turn = d != 0 || placed == dims - 1 || tensor.size(0) == 1;
      if (!seen[d] && fits && in_turn) found = d;
    }
    if (found < 0) return false;
    seen[found] = true;
    expected *= tensor.size(found);
  }
  return true;
}

void check(const Tensor& x_adv, const Tensor& grad, const Tensor& x, const OptionalTensor& eps_each,
           const OptionalTensor& step_each) {
  check_dtype(x_adv, ScalarType::Float, "x_adv");
  check_dtype(x, ScalarType::Float, "x");
  STD_TORCH_CHECK(x_adv.dim() >= 1, "x_adv needs a batch dimension");
  STD_TORCH_CHECK(same_shape(x_adv, grad) && same_shape(x_adv, x), "x_adv, grad and x differ in shape");
  check_same_device(grad, x_adv, "grad");
  check_same_device(x, x_adv, "x");
  for (const OptionalTensor* each : {&eps_each, &step_each}) {
    if (!each->has_value()) continue;
    check_dtype(**each, ScalarType::Float, "a per-sample eps or step");
    check_same_device(**each, x_adv, "a per-sample eps or step");
    STD_TORCH_CHECK((*each)->dim() == 1 && (*each)->size(0) == x_adv.size(0),
                    "a per-sample eps or step needs one value per sample");
  }
}

void launch(const PgdStepArgs& args, bool l2, [[maybe_unused]] const Tensor& on) {
#ifdef LTAT_WITH_CUDA
  if (on.is_cuda()) return enqueue(l2 ? pgd_step_l2_cuda : pgd_step_linf_cuda, args, on);
#endif
  (l2 ? pgd_step_l2_cpu : pgd_step_linf_cpu)(args, torch_threads);
}

// The sums over the pieces of each sample, where the CUDA kernel shares a sample among blocks.
OptionalTensor l2_scratch(PgdStepArgs& args, bool l2, const Tensor& on) {
  const int64_t pieces = l2_pieces(args.sample_size);
  if (!l2 || pieces == 1) return std::nullopt;
  Tensor sums = empty_on(on, {2, args.batch, pieces}, aoti_torch_dtype_float64());
  args.grad_sums = data<double>(sums);
  args.delta_sums = args.grad_sums + args.batch * pieces;
  return sums;
}

// Writes the step into `out`, which may be x_adv itself and may have any strides.
void run(const Tensor& x_adv, const Tensor& grad, const Tensor& x, const OptionalTensor& eps_each,
         const OptionalTensor& step_each, double eps, double step, bool l2, double lo, double hi,
         Tensor& out) {
  const bool direct = out.is_contiguous() || is_sample_major(out);
  Tensor target = direct ? out : torch::stable::new_empty(out, x_adv.sizes());
  const Tensor x_adv_ordered = ordered_like(x_adv, target), x_ordered = ordered_like(x, target);
  const Tensor grad_ordered = ordered_like(grad, target);
  const OptionalTensor eps_dense = eps_each ? OptionalTensor(dense(*eps_each)) : std::nullopt;
  const OptionalTensor step_dense = step_each ? OptionalTensor(dense(*step_each)) : std::nullopt;

  PgdStepArgs args{};
  args.out = data<float>(target);
  args.x_adv = data<float>(x_adv_ordered);
  args.grad = grad_ordered.data_ptr();
  args.x = data<float>(x_ordered);
  args.grad_dtype = dtype_of(grad_ordered, "grad");
  args.eps_each = eps_dense ? data<float>(*eps_dense) : nullptr;
  args.step_each = step_dense ? data<float>(*step_dense) : nullptr;
  args.eps = static_cast<float>(eps);
  args.step = static_cast<float>(step);
  args.lo = static_cast<float>(lo);
  args.hi = static_cast<float>(hi);
  args.batch = x_adv.size(0);
  args.sample_size = x_adv.numel() / args.batch;
  const OptionalTensor sums = l2_scratch(args, l2, x_adv);
  launch(args, l2, x_adv);
  if (!direct) torch::stable::copy_(out, target);
}

Tensor pgd_step(const Tensor& x_adv, const Tensor& grad, const Tensor& x, OptionalTensor eps_each,
                OptionalTensor step_each, double eps, double step, bool l2, double lo, double hi) {
  check(x_adv, grad, x, eps_each, step_each);
  Tensor out = torch::stable::empty_like(x_adv);
  if (x_adv.numel() != 0) run(x_adv, grad, x, eps_each, step_each, eps, step, l2, lo, hi, out);
  return out;
}

// No kernel can write elements that share memory, or an input that it still has to read elsewhere.
void check_memory(const Tensor& x_adv, const Tensor& grad, const Tensor& x, const OptionalTensor& eps_each,
                  const OptionalTensor& step_each) {
  STD_TORCH_CHECK(x_adv.is_contiguous() || is_nested(axes_of(x_adv)), "the elements of x_adv share memory");
  STD_TORCH_CHECK(!overlaps_partly(x_adv, grad), "x_adv and grad overlap in memory");
  STD_TORCH_CHECK(!overlaps_partly(x_adv, x), "x_adv and x overlap in memory");
  for (const OptionalTensor* each : {&eps_each, &step_each}) {
    STD_TORCH_CHECK(!*each || !overlaps_partly(x_adv, **each), "x_adv overlaps eps or step in memory");
  }
}

void pgd_step_(Tensor x_adv, const Tensor& grad, const Tensor& x, OptionalTensor eps_each,
               OptionalTensor step_each, double eps, double step, bool l2, double lo, double hi) {
  check(x_adv, grad, x, eps_each, step_each);
  if (x_adv.numel() == 0) return;
  check_memory(x_adv, grad, x, eps_each, step_each);
  run(x_adv, grad, x, eps_each, step_each, eps, step, l2, lo, hi, x_adv);
}

}  // namespace
}  // namespace ltat

STABLE_TORCH_LIBRARY_FRAGMENT(ltat, m) {
  m.def(
      "pgd_step(Tensor x_adv, Tensor grad, Tensor x, Tensor? eps_each, Tensor? step_each, float eps, "
      "float step, bool l2, float lo, float hi) -> Tensor");
  m.def(
      "pgd_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor? eps_each, Tensor? step_each, float eps, "
      "float step, bool l2, float lo, float hi) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ltat, CPU, m) {
  m.impl("pgd_step", TORCH_BOX(&ltat::pgd_step));
  m.impl("pgd_step_", TORCH_BOX(&ltat::pgd_step_));
}

#ifdef LTAT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltat, CUDA, m) {
  m.impl("pgd_step", TORCH_BOX(&ltat::pgd_step));
  m.impl("pgd_step_", TORCH_BOX(&ltat::pgd_step_));
}
#endif
