#include "../kernels/long_tail.h"
#include "check.h"

using namespace ltat;

TEST(counts_are_those_of_cifar10_at_ratio_50) {
  const std::vector<int64_t> expected{5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100};
  CHECK(longtail_counts(5000, 10, 50.0, Profile::kExponential) == expected);
}

TEST(step_profile_gives_the_odd_class_to_the_head) {
  CHECK((longtail_counts(100, 5, 10.0, Profile::kStep) == std::vector<int64_t>{100, 100, 100, 10, 10}));
}

TEST(grouping_keeps_the_order_within_a_class) {
  const std::vector<int64_t> labels{2, 0, 2, 0, 0};
  std::vector<int64_t> order(5), offsets(4);
  group_by_class(labels.data(), 5, 3, order.data(), offsets.data());
  CHECK((order == std::vector<int64_t>{1, 3, 4, 0, 2}));
  CHECK((offsets == std::vector<int64_t>{0, 3, 3, 5}));
}

TEST(a_foreign_label_is_refused_before_anything_is_written_out_of_bounds) {
  const std::vector<int64_t> labels{0, 3};
  std::vector<int64_t> order(2), offsets(4);
  bool refused = false;
  try {
    group_by_class(labels.data(), 2, 3, order.data(), offsets.data());
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}
