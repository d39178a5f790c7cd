#include "gather_augment.h"

#include <memory>

#include "isa.h"

LTAT_DECLARE_PER_ISA(gather_augment_images, const GatherAugmentArgs& args, int64_t begin, int64_t end,
                     uint8_t* scratch)

namespace ltat {

void gather_augment_cpu(const GatherAugmentArgs& args, ParallelFor parallel_for) {
  const int64_t grain = 1 + (int64_t{1} << 15) / (args.height * args.width * args.channels + 1);
  for_ranges(parallel_for, args.batch, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<uint8_t[]> scratch(new uint8_t[gather_augment_scratch_size(args)]);
    LTAT_BEST(gather_augment_images)(args, begin, end, scratch.get());
  });
}

}  // namespace ltat
