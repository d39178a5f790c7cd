"""The fused operations of long-tailed adversarial training, each with a pure-PyTorch twin."""

from ltat.ops.affine_relu import affine_relu, affine_relu_twin
from ltat.ops.balanced_kd import KD_FORMS, BalancedKD, balanced_kd, balanced_kd_twin
from ltat.ops.gather_augment import gather_augment, gather_augment_twin
from ltat.ops.pgd_step import pgd_step, pgd_step_twin
from ltat.ops.relu_grad_add import relu_grad_add, relu_grad_add_twin

__all__ = [
    "KD_FORMS",
    "BalancedKD",
    "affine_relu",
    "affine_relu_twin",
    "balanced_kd",
    "balanced_kd_twin",
    "gather_augment",
    "gather_augment_twin",
    "pgd_step",
    "pgd_step_twin",
    "relu_grad_add",
    "relu_grad_add_twin",
]
