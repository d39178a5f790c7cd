// The CPU kernels of one instruction set as a table of function pointers, and the choice among the tables.
#pragma once

#include "balanced_kd.h"
#include "gather_augment.h"
#include "pgd_step.h"

#define LTAT_DECLARE_ISA(name)                                                                             \
  namespace ltat::name {                                                                                   \
  void pgd_step_linf_range(const PgdStepArgs& args, int64_t begin, int64_t end);                           \
  void pgd_step_l2_range(const PgdStepArgs& args, int64_t begin, int64_t end);                             \
  void balanced_kd_rows(const BalancedKdArgs& args, int64_t begin, int64_t end, Lanes* scratch);           \
  void gather_augment_images(const GatherAugmentArgs& args, int64_t begin, int64_t end, uint8_t* scratch); \
  }

LTAT_DECLARE_ISA(baseline)
#ifdef LTAT_X86_LEVELS
LTAT_DECLARE_ISA(x86_64_v3)
LTAT_DECLARE_ISA(x86_64_v4)
#endif

namespace ltat {

struct CpuKernels {
  const char* isa;
  void (*pgd_step_linf_range)(const PgdStepArgs& args, int64_t begin, int64_t end);
  void (*pgd_step_l2_range)(const PgdStepArgs& args, int64_t begin, int64_t end);
  void (*balanced_kd_rows)(const BalancedKdArgs& args, int64_t begin, int64_t end, Lanes* scratch);
  void (*gather_augment_images)(const GatherAugmentArgs& args, int64_t begin, int64_t end, uint8_t* scratch);
};

// The best table this processor can run, chosen once. The environment variable LTAT_ISA (baseline,
// x86-64-v3, x86-64-v4) can only lower the choice.
const CpuKernels& cpu_kernels();

}  // namespace ltat
