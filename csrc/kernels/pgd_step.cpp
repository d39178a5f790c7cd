#include "pgd_step.h"

#include "isa.h"

LTAT_DECLARE_PER_ISA(pgd_step_linf_range, const PgdStepArgs& args, int64_t begin, int64_t end)
LTAT_DECLARE_PER_ISA(pgd_step_l2_range, const PgdStepArgs& args, int64_t begin, int64_t end)

namespace ltat {

void pgd_step_linf_cpu(const PgdStepArgs& args, ParallelFor parallel_for) {
  constexpr int64_t kGrain = 1 << 15;
  for_ranges(parallel_for, args.batch * args.sample_size, kGrain,
             [&](int64_t begin, int64_t end) { LTAT_BEST(pgd_step_linf_range)(args, begin, end); });
}

void pgd_step_l2_cpu(const PgdStepArgs& args, ParallelFor parallel_for) {
  const int64_t grain = 1 + (int64_t{1} << 14) / (args.sample_size + 1);
  for_ranges(parallel_for, args.batch, grain,
             [&](int64_t begin, int64_t end) { LTAT_BEST(pgd_step_l2_range)(args, begin, end); });
}

}  // namespace ltat
