#include "../kernels/balanced_kd.h"
#include "check.h"

using namespace ltat;
using namespace ltat::test;

namespace {

struct Case {
  int64_t batch, classes;
  std::vector<float> student, minus, plus, teacher_minus, log_prior, row_cls, row_kd, grad_adv, grad_minus;
  std::vector<int64_t> target;
  float loss = 0.0f, cls = 0.0f, kd = 0.0f;

  Case(int64_t batch, int64_t classes)
      : batch(batch),
        classes(classes),
        student(noise(batch * classes, 1)),
        minus(noise(batch * classes, 2)),
        plus(noise(batch * classes, 3)),
        teacher_minus(noise(batch * classes, 4)),
        log_prior(noise(classes, 5)),
        row_cls(batch),
        row_kd(batch),
        grad_adv(batch * classes),
        grad_minus(batch * classes),
        target(batch) {
    for (int64_t row = 0; row < batch; ++row) target[row] = row % classes;
  }

  BalancedKdArgs args() {
    const auto logits = [](std::vector<float>& values) { return Logits{values.data(), DType::kFloat32}; };
    BalancedKdArgs args{};
    args.student = logits(student);
    args.teacher = logits(plus);
    args.student_minus = logits(minus);
    args.teacher_plus = logits(plus);
    args.teacher_minus = logits(teacher_minus);
    args.target = target.data();
    args.log_prior = log_prior.data();
    args.cls_weight = args.kd_weight = 1.0f;
    args.temperature = 2.0f;
    args.batch = batch;
    args.classes = classes;
    args.row_cls = row_cls.data();
    args.row_kd = row_kd.data();
    args.loss = &loss;
    args.cls = &cls;
    args.kd = &kd;
    args.grad_adv = grad_adv.data();
    args.grad_minus = grad_minus.data();
    return args;
  }
};

}  // namespace

TEST(loss_is_the_weighted_sum_and_the_gradient_sums_to_zero_over_classes) {
  for (int64_t classes : {1, 10, 16, 37, 64, 65, 100}) {
    Case c(19, classes);
    balanced_kd_cpu(c.args(), serial);
    CHECK(std::fabs(c.loss - (c.cls + c.kd)) < 1e-6f);
    for (int64_t row = 0; row < 19; ++row) {
      double sum = 0.0;
      for (int64_t k = 0; k < classes; ++k) sum += c.grad_adv[row * classes + k];
      CHECK(std::fabs(sum) < 1e-6);
    }
  }
}

TEST(rows_do_not_depend_on_the_schedule_of_threads) {
  for (int64_t classes : {19, 70}) {
    Case a(37, classes), b(37, classes);
    balanced_kd_cpu(a.args(), serial);
    balanced_kd_cpu(b.args(), scattered);
    CHECK(a.loss == b.loss && a.grad_adv == b.grad_adv && a.grad_minus == b.grad_minus);
    absorb({a.loss});
    absorb(a.grad_adv);
    absorb(a.grad_minus);
  }
}

TEST(a_target_probability_of_zero_stays_finite) {
  Case c(1, 3);
  c.plus = {200.0f, 0.0f, -200.0f};
  balanced_kd_cpu(c.args(), serial);
  CHECK(std::isfinite(c.loss));
  for (float grad : c.grad_adv) CHECK(std::isfinite(grad));
}

TEST(a_target_out_of_range_poisons_the_loss_and_nothing_else) {
  Case c(2, 3);
  c.target[1] = 3;
  balanced_kd_cpu(c.args(), serial);
  CHECK(std::isnan(c.loss) && std::isnan(c.grad_adv[3]) && std::isfinite(c.grad_adv[0]));
}
