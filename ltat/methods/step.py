"""The inputs of a method in one training step, and the result of a method's loss."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltat.data import Batch


@dataclass(frozen=True, eq=False)
class Step:
    """The inputs that an attack objective and a loss may use.

    Attributes:
        model: images [B, ch, H, W] → fp32 logits [B, C], in every precision of its body.
        batch: clean ``images`` [B, ch, H, W] in [0, 1], ``labels`` [B], and the ``indices`` [B] of the images.
        epoch: the current epoch, from 1 to ``epochs``.
        epochs: the number of epochs of the run.
        class_counts: n_c, the number of images of each class in this epoch, [C]; with natural sampling those of the
            training set.
        x_adv: adversarial images [B, ch, H, W] in [0, 1]; before the attack, the clean images.
        generator: draws the attack's random start; torch's global generator if None.
    """

    model: nn.Module
    batch: Batch
    epoch: int
    epochs: int
    class_counts: Tensor
    x_adv: Tensor
    generator: torch.Generator | None = None

    @property
    def log_prior(self) -> Tensor:
        """log n_c, fp32 [C]; a class without images counts as if it had one."""
        return self.class_counts.clamp(min=1).float().log()


class LossTerms(NamedTuple):
    """The result of a method's loss. The trainer minimises ``loss`` and uses the others without gradient.

    ``loss`` is 0-dim. ``logits`` [B, C] are the model's logits on the adversarial images. ``logs`` are 0-dim tensors by
    name; the trainer records their means over the epoch.
    """

    loss: Tensor
    logits: Tensor
    logs: dict[str, Tensor]

    def detached(self) -> "LossTerms":
        """The same values without gradient."""
        return LossTerms(
            self.loss.detach(), self.logits.detach(), {name: value.detach() for name, value in self.logs.items()}
        )
