#include "../kernels/balanced_kd.h"

#include "common.h"

namespace ltat {
namespace {

// Keeps a contiguous copy alive until the kernel is enqueued; torch's allocator orders its reuse.
struct DenseLogits {
  OptionalTensor tensor;
  Logits logits{nullptr, DType::kFloat32};

  DenseLogits(const OptionalTensor& source, const Tensor& student, const char* name) {
    if (!source) return;
    STD_TORCH_CHECK(same_shape(*source, student), name, " differs in shape from the student's logits");
    check_same_device(*source, student, name);
    tensor = dense(*source);
    logits = {tensor->data_ptr(), dtype_of(*tensor, name)};
  }
};

void check(const Tensor& student, const Tensor& target, const Tensor& log_prior, bool differences_complete) {
  STD_TORCH_CHECK(student.dim() == 2 && student.size(0) > 0 && student.size(1) > 0,
                  "the student's logits must be [B, C] with B, C >= 1");
  STD_TORCH_CHECK(target.dim() == 1 && target.size(0) == student.size(0), "target must be [B]");
  STD_TORCH_CHECK(log_prior.dim() == 1 && log_prior.size(0) == student.size(1), "log_prior must be [C]");
  check_dtype(target, ScalarType::Long, "target");
  check_dtype(log_prior, ScalarType::Float, "log_prior");
  check_same_device(target, student, "target");
  check_same_device(log_prior, student, "log_prior");
  STD_TORCH_CHECK(differences_complete,
                  "student_minus, teacher_plus and teacher_minus come together or not at all");
}

void check_targets(const BalancedKdArgs& args) {
  for (int64_t row = 0; row < args.batch; ++row) {
    STD_TORCH_CHECK(target_in_range(args, args.target[row]), "target ", args.target[row], " of sample ", row,
                    " is outside 0..", args.classes - 1);
  }
}

void check_log_prior(const BalancedKdArgs& args) {
  for (int64_t k = 0; k < args.classes; ++k) {
    STD_TORCH_CHECK(args.log_prior[k] < INFINITY, "log_prior of class ", k, " is NaN or infinite");
  }
}

void launch(const BalancedKdArgs& args, [[maybe_unused]] const Tensor& on) {
#ifdef LTAT_WITH_CUDA
  if (on.is_cuda()) return enqueue(balanced_kd_cuda, args, on);
#endif
  check_targets(args);
  check_log_prior(args);
  balanced_kd_cpu(args, torch_threads);
}

Tensor floats(const Tensor& like, std::initializer_list<int64_t> shape) {
  return empty_on(like, shape, aoti_torch_dtype_float32());
}

// The gradients [1 or 2, B, C] of the loss by student and, with differences, by student_minus.
std::tuple<Tensor, Tensor, Tensor, Tensor> balanced_kd(const Tensor& student, const Tensor& target,
                                                       const Tensor& log_prior, OptionalTensor teacher,
                                                       OptionalTensor student_minus,
                                                       OptionalTensor teacher_plus,
                                                       OptionalTensor teacher_minus, double cls_weight,
                                                       double kd_weight, double temperature, bool elementmean,
                                                       bool on_biased, bool want_grad) {
  const bool differences = student_minus.has_value();
  check(student, target, log_prior,
        teacher_plus.has_value() == differences && teacher_minus.has_value() == differences);
  const DenseLogits student_dense(student, student, "student"), teacher_dense(teacher, student, "teacher");
  const DenseLogits student_minus_dense(student_minus, student, "student_minus");
  const DenseLogits teacher_plus_dense(teacher_plus, student, "teacher_plus");
  const DenseLogits teacher_minus_dense(teacher_minus, student, "teacher_minus");
  const Tensor target_dense = dense(target), log_prior_dense = dense(log_prior);

  const int64_t batch = student.size(0), classes = student.size(1);
  Tensor loss = floats(student, {}), cls = floats(student, {}), kd = floats(student, {});
  Tensor rows = floats(student, {2, batch});
  // One tensor, so that one multiplication scales both.
  Tensor grads = want_grad ? floats(student, {differences ? 2 : 1, batch, classes}) : floats(student, {0});

  BalancedKdArgs args{};
  args.student = student_dense.logits;
  args.teacher = teacher_dense.logits;
  args.student_minus = student_minus_dense.logits;
  args.teacher_plus = teacher_plus_dense.logits;
  args.teacher_minus = teacher_minus_dense.logits;
  args.target = data<int64_t>(target_dense);
  args.log_prior = data<float>(log_prior_dense);
  args.cls_weight = static_cast<float>(cls_weight);
  args.kd_weight = static_cast<float>(kd_weight);
  args.temperature = static_cast<float>(temperature);
  args.elementmean = elementmean;
  args.on_biased = on_biased;
  args.batch = batch;
  args.classes = classes;
  args.row_cls = data<float>(rows);
  args.row_kd = data<float>(rows) + batch;
  args.loss = data<float>(loss);
  args.cls = data<float>(cls);
  args.kd = data<float>(kd);
  args.grad_adv = want_grad ? data<float>(grads) : nullptr;
  args.grad_minus = want_grad && differences ? data<float>(grads) + batch * classes : nullptr;
  launch(args, student);
  return {loss, cls, kd, grads};
}

}  // namespace
}  // namespace ltat

STABLE_TORCH_LIBRARY_FRAGMENT(ltat, m) {
  m.def(
      "balanced_kd(Tensor student, Tensor target, Tensor log_prior, Tensor? teacher, Tensor? student_minus, "
      "Tensor? teacher_plus, Tensor? teacher_minus, float cls_weight, float kd_weight, float temperature, "
      "bool elementmean, bool on_biased, bool want_grad) "
      "-> (Tensor loss, Tensor cls, Tensor kd, Tensor grads)");
}

STABLE_TORCH_LIBRARY_IMPL(ltat, CPU, m) { m.impl("balanced_kd", TORCH_BOX(&ltat::balanced_kd)); }

#ifdef LTAT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltat, CUDA, m) { m.impl("balanced_kd", TORCH_BOX(&ltat::balanced_kd)); }
#endif
