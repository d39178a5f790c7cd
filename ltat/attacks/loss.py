"""The loss that an attack on a model ascends."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ltat.attacks.checks import check_logits
from ltat.attacks.objectives import Objective
from ltat.errors import LtatError


@dataclass(frozen=True, eq=False)
class ModelLoss:
    """The objective of a model's logits, a function of the images.

    Attributes:
        model: images [B, ch, H, W] → logits [B, C].
        y: labels int64 [B].
        objective: the loss per image.
        largest_label: of ``y``, to compare with C; -1 skips the check.
        scale: multiplies the loss, so that a gradient in half precision does not underflow.
    """

    model: Callable[[Tensor], Tensor]
    y: Tensor
    objective: Objective
    largest_label: int = -1
    scale: float = 1.0

    def __call__(self, x_adv: Tensor) -> Tensor:
        """Loss of each image of ``x_adv`` [B, ch, H, W], [B].

        Raises:
            LtatError: the model does not return logits [B, C], or has no class for the largest label.
        """
        logits = self.model(x_adv)
        check_logits(logits)
        check_label(self.largest_label, logits.shape[1])
        loss = self.objective(logits, self.y, x_adv)
        return loss if self.scale == 1 else loss * self.scale


def check_label(largest: int, classes: int) -> None:
    """Raises: LtatError where a label has no class."""
    if classes <= largest:
        raise LtatError(
            f"label {largest} does not fit a model of {classes} classes; use the model and the labels of one dataset"
        )
