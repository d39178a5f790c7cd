"""Stands in for ``ltat.ops.pgd_step`` until that lands."""

import torch
from torch import Tensor


def pgd_step(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step: float | Tensor,
    norm: str = "linf",
    box: tuple[float, float] = (0.0, 1.0),
    inplace: bool = False,
) -> Tensor:
    """One projected step, see ``ltat.ops.pgd_step``."""

    def shaped(value: float | Tensor) -> float | Tensor:
        return value.reshape(-1, 1, 1, 1) if isinstance(value, Tensor) else value

    eps, step = shaped(eps), shaped(step)
    if norm == "linf":
        moved = x_adv + step * grad.sign()
        out = torch.maximum(torch.minimum(moved, x + eps), x - eps).clamp(*box)
    else:
        direction = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
        delta = x_adv + step * direction - x
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
        out = (x + delta * (eps / length).clamp(max=1)).clamp(*box)
    return x_adv.copy_(out) if inplace else out
