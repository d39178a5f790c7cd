// The schemas: the contract between the kernels and ltat/ops. Each op registers its kernels in its own file.
#include "common.h"

STABLE_TORCH_LIBRARY(ltat, m) {
  m.def(
      "pgd_step(Tensor x_adv, Tensor grad, Tensor x, Tensor? eps_each, Tensor? step_each, float eps, float "
      "step, "
      "bool l2, float lo, float hi) -> Tensor");
  m.def(
      "pgd_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor? eps_each, Tensor? step_each, float eps, "
      "float step, bool l2, float lo, float hi) -> ()");
  m.def(
      "balanced_kd(Tensor student, Tensor target, Tensor log_prior, Tensor? teacher, Tensor? student_minus, "
      "Tensor? teacher_plus, Tensor? teacher_minus, float cls_weight, float kd_weight, float temperature, "
      "bool elementmean, bool on_biased, bool want_grad) "
      "-> (Tensor loss, Tensor parts, Tensor grad_adv, Tensor grad_minus)");
}
