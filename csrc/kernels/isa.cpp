#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <memory>

namespace ltat {
namespace {

#define LTAT_TABLE(label, name)                                                        \
  CpuKernels {                                                                         \
    label, name::pgd_step_linf_range, name::pgd_step_l2_range, name::balanced_kd_rows, \
        name::gather_augment_images                                                    \
  }

constexpr CpuKernels kBaseline = LTAT_TABLE("baseline", baseline);

#ifdef LTAT_X86_LEVELS
constexpr CpuKernels kV3 = LTAT_TABLE("x86-64-v3", x86_64_v3);
constexpr CpuKernels kV4 = LTAT_TABLE("x86-64-v4", x86_64_v4);

bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("movbe");
}

bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

const CpuKernels& choose() {
#ifdef LTAT_X86_LEVELS
  const char* wish = std::getenv("LTAT_ISA");
  const bool baseline_wanted = wish && std::strcmp(wish, kBaseline.isa) == 0;
  const bool v3_wanted = wish && std::strcmp(wish, kV3.isa) == 0;
  if (!baseline_wanted && !v3_wanted && has_v4()) return kV4;
  if (!baseline_wanted && has_v3()) return kV3;
#endif
  return kBaseline;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

void pgd_step_linf_cpu(const PgdStepArgs& args, ParallelFor parallel_for) {
  constexpr int64_t kGrain = 1 << 15;
  const auto body = [](void* context, int64_t begin, int64_t end) {
    cpu_kernels().pgd_step_linf_range(*static_cast<const PgdStepArgs*>(context), begin, end);
  };
  parallel_for(args.batch * args.sample_size, kGrain, const_cast<PgdStepArgs*>(&args), body);
}

void pgd_step_l2_cpu(const PgdStepArgs& args, ParallelFor parallel_for) {
  const int64_t grain = 1 + (int64_t{1} << 14) / (args.sample_size + 1);
  const auto body = [](void* context, int64_t begin, int64_t end) {
    cpu_kernels().pgd_step_l2_range(*static_cast<const PgdStepArgs*>(context), begin, end);
  };
  parallel_for(args.batch, grain, const_cast<PgdStepArgs*>(&args), body);
}

void balanced_kd_cpu(const BalancedKdArgs& args, ParallelFor parallel_for) {
  const int64_t grain = 1 + (int64_t{1} << 12) / (args.classes + 1);
  const auto body = [](void* context, int64_t begin, int64_t end) {
    const auto& kd = *static_cast<const BalancedKdArgs*>(context);
    const std::unique_ptr<Lanes[]> scratch(new Lanes[balanced_kd_scratch_size(kd.classes)]);
    cpu_kernels().balanced_kd_rows(kd, begin, end, scratch.get());
  };
  parallel_for(args.batch, grain, const_cast<BalancedKdArgs*>(&args), body);

  double cls = 0.0, kd = 0.0;
  for (int64_t row = 0; row < args.batch; ++row) {
    cls += args.row_cls[row];
    kd += args.row_kd[row];
  }
  write_losses(args, cls, kd);
}

void gather_augment_cpu(const GatherAugmentArgs& args, ParallelFor parallel_for) {
  const int64_t grain = 1 + (int64_t{1} << 15) / (args.height * args.width * args.channels + 1);
  const auto body = [](void* context, int64_t begin, int64_t end) {
    const auto& gather = *static_cast<const GatherAugmentArgs*>(context);
    const std::unique_ptr<uint8_t[]> scratch(new uint8_t[gather_augment_scratch_size(gather)]);
    cpu_kernels().gather_augment_images(gather, begin, end, scratch.get());
  };
  parallel_for(args.batch, grain, const_cast<GatherAugmentArgs*>(&args), body);
}

}  // namespace ltat
