"""Projected gradient descent on the negative loss, hence ascent on the loss (Madry et al. 2018).

    x⁰ = start(x);   xᵗ⁺¹ = Π(xᵗ + a·sign ∇ₓ L(xᵗ)),   t = 0 … K−1

Π projects onto the ε-ball around x and onto the box of legal pixels. In ℓ2 the step follows ∇ₓL / ‖∇ₓL‖₂.
:func:`ltat.attacks.pgd` runs this on a model.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ltat.attacks.starts import random_start
from ltat.attacks.threat import ThreatModel
from ltat.errors import LtatError
from ltat.seeding import Noise

Loss = Callable[[Tensor], Tensor]
"""x_adv [B, ch, H, W] → the loss of each image, [B]; image i alone decides entry i, but for batch statistics."""


def projected_gradient_descent(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float | Tensor,
    start: str,
    generator: Noise | None = None,
) -> Tensor:
    """x^K [B, ch, H, W], in the ball around ``x``; ``step_size`` is one number or one per image, [B]."""
    x_adv = random_start(x, threat, start, generator)
    return ascend(loss, x_adv, x, threat, steps, step_size) if steps else threat.project(x_adv, x)


def ascend(loss: Loss, x_adv: Tensor, x: Tensor, threat: ThreatModel, steps: int, step_size: float | Tensor) -> Tensor:
    """The K steps from ``x_adv`` [B, ch, H, W], which they overwrite."""
    for _ in range(steps):
        gradient = input_gradient(loss, x_adv)
        x_adv = threat.step(x_adv, gradient, x, step_size, inplace=True)  # steps, projects, clamps
    return x_adv


def input_gradient(loss: Loss, x_adv: Tensor) -> Tensor:
    """∇ₓ Σ L, [B, ch, H, W]. The sum, not the mean: half precision must not underflow with the batch size.

    Raises:
        LtatError: the loss does not depend on the images.
    """
    leaf = x_adv.detach().requires_grad_(True)
    total = loss(leaf).sum()
    gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        raise LtatError(
            "the attack's loss does not depend on the images and has no gradient; "
            "take no_grad, detach or integers out of the model and the objective"
        )
    return gradient
