"""The objective of one batch, its gradient with respect to the images, and the steps along it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltat.attacks.checks import check_logits
from ltat.attacks.objectives import Objective
from ltat.attacks.threat import ThreatModel
from ltat.errors import LtatError


@dataclass(frozen=True, eq=False)
class Ascent:
    """An objective of ``model`` on images with labels ``y`` [B]; its gradient is taken at ``scale`` times the loss."""

    model: Callable[[Tensor], Tensor]
    y: Tensor
    objective: Objective
    largest_label: int
    scale: float

    def loss(self, x_adv: Tensor) -> Tensor:
        """Loss per image, [B].

        Raises:
            LtatError: the model has no class for the largest label.
        """
        logits = self.model(x_adv)
        check_logits(logits)
        check_label(self.largest_label, logits.shape[1])
        return self.objective(logits, self.y, x_adv)

    def loss_and_gradient(self, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [B] and the gradient of its sum, both detached.

        The sum, not the mean: each image then has the gradient it would have alone, and half precision does
        not underflow with the batch size.

        Raises:
            LtatError: the loss does not depend on the images.
        """
        leaf = x_adv.detach().requires_grad_(True)
        loss = self.loss(leaf)
        return loss.detach(), _gradient(loss.sum() * self.scale, leaf)

    def climb(
        self,
        x_adv: Tensor,
        x: Tensor,
        threat: ThreatModel,
        steps: int,
        step_size: float | Tensor,
        visit: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """``steps`` steps from ``x_adv`` on, in place; ``visit`` sees every iterate between with its loss."""
        for t in range(steps):
            loss, gradient = self.loss_and_gradient(x_adv)
            if visit is not None and t > 0:
                visit(x_adv, loss)
            x_adv = threat.step(x_adv, gradient, x, step_size, inplace=True)
        return x_adv


def _gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    gradient = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise LtatError(
            "the attack's loss does not depend on the images, so that it has no gradient: "
            "take no_grad, detach or integers out of the model and the objective"
        )
    return gradient


def check_label(largest: int, classes: int) -> None:
    """Raises: LtatError where a label has no class."""
    if classes <= largest:
        raise LtatError(
            f"label {largest} does not fit a model of {classes} classes: use the model and the labels of one dataset"
        )
