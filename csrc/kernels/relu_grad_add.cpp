#include "relu_grad_add.h"

#include "isa.h"

LTAT_DECLARE_PER_ISA(relu_grad_add_range, const ReluGradAddArgs& args, int64_t begin, int64_t end)

namespace ltat {

void relu_grad_add_cpu(const ReluGradAddArgs& args, ParallelFor parallel_for) {
  constexpr int64_t kGrain = 1 << 15;
  for_ranges(parallel_for, args.size, kGrain,
             [&](int64_t begin, int64_t end) { LTAT_BEST(relu_grad_add_range)(args, begin, end); });
}

}  // namespace ltat
