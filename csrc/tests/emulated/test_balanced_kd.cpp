#include "../../kernels/arrivals.h"
#include "../../kernels/balanced_kd.h"
#include "cases.h"

using namespace ltat;
using namespace ltat::test;

namespace {

constexpr int64_t kClasses[] = {1,   2,   3,   10,   31,   32,   33,   100, 255,
                                256, 257, 264, 1000, 1024, 1025, 1032, 2056};

struct Result {
  Array<float> row_cls, row_kd, grad_adv, grad_minus;
  float loss = -7.0f, cls = -7.0f, kd = -7.0f;

  Result(int64_t batch, int64_t classes)
      : row_cls(batch), row_kd(batch), grad_adv(batch * classes), grad_minus(batch * classes) {}

  void receive(BalancedKdArgs& args, bool want_grad) {
    args.row_cls = row_cls.data();
    args.row_kd = row_kd.data();
    args.loss = &loss;
    args.cls = &cls;
    args.kd = &kd;
    args.grad_adv = want_grad ? grad_adv.data() : nullptr;
    args.grad_minus = want_grad && args.student_minus.data ? grad_minus.data() : nullptr;
  }
};

template <class Element>
struct Case {
  Random random;
  int64_t batch, classes;
  std::vector<Array<Element>> logits;
  Array<float> log_prior;
  Array<int64_t> target;

  explicit Case(unsigned seed)
      : random(seed), batch(1 + random.below(19)), classes(kClasses[random.below(std::size(kClasses))]) {
    if (classes > 300) batch = 1 + batch % 5;
    // At most one lies at an odd address: that one alone has to be noticed.
    const int64_t odd = random.below(8);
    for (int i = 0; i < 5; ++i) {
      logits.push_back(drawn<Element>(random, batch * classes, odd == i ? 1 + random.below(7) : 0, 4.0f));
    }
    log_prior = drawn<float>(random, classes, odd == 5 ? 1 + random.below(3) : 0, 1.0f);
    target = Array<int64_t>(batch);
    // Some outside the classes: NaN.
    for (int64_t i = 0; i < batch; ++i) target[i] = random.below(classes) + (random.one_in(40) ? classes : 0);
  }

  BalancedKdArgs args(DType dtype) {
    const auto given = [&](int i) { return Logits{logits[i].data(), dtype}; };
    BalancedKdArgs args{};
    args.student = given(0);
    if (random.one_in(2)) args.teacher = given(1);
    if (random.one_in(2)) {
      args.student_minus = given(2);
      args.teacher_plus = given(3);
      args.teacher_minus = given(4);
    }
    args.target = target.data();
    args.log_prior = log_prior.data();
    args.cls_weight = 0.7f;
    args.kd_weight = 1.5f;
    args.temperature = random.one_in(2) ? 1.0f : 4.0f;
    args.elementmean = random.one_in(2);
    args.on_biased = random.one_in(2);
    args.batch = batch;
    args.classes = classes;
    return args;
  }
};

void check_same(Result& a, Result& b, float tolerance) {
  CHECK(is_near(a.loss, b.loss, 20 * tolerance) && is_near(a.cls, b.cls, 20 * tolerance));
  CHECK(is_near(a.kd, b.kd, 20 * tolerance));
  CHECK(differences(a.grad_adv, b.grad_adv, a.grad_adv.size(), tolerance) == 0);
  CHECK(differences(a.grad_minus, b.grad_minus, a.grad_minus.size(), tolerance) == 0);
}

template <class Element>
void compare(DType dtype, unsigned seed) {
  Case<Element> c(seed);
  const BalancedKdArgs given = c.args(dtype);
  const bool want_grad = !c.random.one_in(5);
  const auto run = [&](Result& result) {
    BalancedKdArgs args = given;
    result.receive(args, want_grad);
    return args;
  };
  Result expected(c.batch, c.classes), first(c.batch, c.classes);
  balanced_kd_cpu(run(expected), serial);
  in_every_order(seed, 0, [&] {
    Result got(c.batch, c.classes);
    check_launch(balanced_kd_cuda(run(got), nullptr));
    check_same(got, expected, 2e-6f);
    if (first.loss == -7.0f) first = got;
    check_same(got, first, 0.0f);
  });
}

}  // namespace

TEST(the_blocks_of_two_streams_and_of_captured_kernels_are_counted_apart) {
  int there = 0, elsewhere = 0;
  const int one = counter_for(&there), other = counter_for(&elsewhere);
  CHECK(one != other && one == counter_for(&there) && other == counter_for(&elsewhere));
  emulated::capture_status = cudaStreamCaptureStatusActive;
  const int captured = counter_for(&there);
  CHECK(captured != one && captured != other && counter_for(&there) != captured);
  emulated::capture_status = cudaStreamCaptureStatusNone;
  CHECK(counter_for(&there) == one);
}

TEST(emulated_losses_are_those_of_the_cpu_in_every_order_of_threads) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    compare<float>(DType::kFloat32, seed);
    seed % 2 ? compare<BFloat16>(DType::kBFloat16, 1000 + seed)
             : compare<Float16>(DType::kFloat16, 2000 + seed);
  }
}
