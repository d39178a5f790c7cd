#include "affine_relu.h"

#include "isa.h"

LTAT_DECLARE_PER_ISA(affine_relu_range, const AffineReluArgs& args, int64_t begin, int64_t end)

namespace ltat {

void affine_relu_cpu(const AffineReluArgs& args, ParallelFor parallel_for) {
  constexpr int64_t kGrain = 1 << 15;
  for_ranges(parallel_for, args.size, kGrain,
             [&](int64_t begin, int64_t end) { LTAT_BEST(affine_relu_range)(args, begin, end); });
}

}  // namespace ltat
