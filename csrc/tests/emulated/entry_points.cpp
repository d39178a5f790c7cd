// The CPU entry points of the operators, answered by the emulated CUDA kernels.
#include <stdexcept>

#include "../../kernels/affine_relu.h"
#include "../../kernels/balanced_kd.h"
#include "../../kernels/gather_augment.h"
#include "../../kernels/pgd_step.h"
#include "../../kernels/relu_grad_add.h"

namespace ltat {
namespace {

template <class Args>
void run(const char* (*launcher)(const Args& args, void* stream), const Args& args) {
  if (const char* problem = launcher(args, nullptr)) throw std::runtime_error(problem);
}

}  // namespace

void pgd_step_linf_cpu(const PgdStepArgs& args, ParallelFor) { run(pgd_step_linf_cuda, args); }
void pgd_step_l2_cpu(const PgdStepArgs& args, ParallelFor) { run(pgd_step_l2_cuda, args); }
void balanced_kd_cpu(const BalancedKdArgs& args, ParallelFor) { run(balanced_kd_cuda, args); }
void gather_augment_cpu(const GatherAugmentArgs& args, ParallelFor) { run(gather_augment_cuda, args); }
void relu_grad_add_cpu(const ReluGradAddArgs& args, ParallelFor) { run(relu_grad_add_cuda, args); }
void affine_relu_cpu(const AffineReluArgs& args, ParallelFor) { run(affine_relu_cuda, args); }

}  // namespace ltat
