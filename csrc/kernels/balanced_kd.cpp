#include "balanced_kd.h"

#include <memory>

#include "isa.h"

LTAT_DECLARE_PER_ISA(balanced_kd_rows, const BalancedKdArgs& args, int64_t begin, int64_t end, Lanes* scratch)

namespace ltat {

void balanced_kd_cpu(const BalancedKdArgs& args, ParallelFor parallel_for) {
  const int64_t grain = 1 + (int64_t{1} << 12) / (args.classes + 1);
  for_ranges(parallel_for, args.batch, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<Lanes[]> scratch(new Lanes[balanced_kd_scratch_size(args.classes)]);
    LTAT_BEST(balanced_kd_rows)(args, begin, end, scratch.get());
  });

  double cls = 0.0, kd = 0.0;
  for (int64_t row = 0; row < args.batch; ++row) {
    cls += args.row_cls[row];
    kd += args.row_kd[row];
  }
  write_losses(args, cls, kd);
}

}  // namespace ltat
