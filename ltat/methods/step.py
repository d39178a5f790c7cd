"""One step of training, as a method sees it, and what a method's loss returns."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltat.data import Batch


@dataclass(frozen=True, eq=False)
class Step:
    """Everything that an attack objective or a loss may depend on.

    Attributes:
        model: images [B, ch, H, W] → fp32 logits [B, C], whatever the precision of its body.
        batch: clean ``images`` [B, ch, H, W] in [0, 1], ``labels`` [B], and the ``indices`` [B] of the images.
        epoch: the present one, from 1 to ``epochs``.
        epochs: all of the run.
        class_counts: n_c, the images of each class that this epoch serves, [C]; with natural sampling those of the
            training set.
        x_adv: adversarial images [B, ch, H, W] in [0, 1]; until the attack has run, the clean ones.
        generator: source of the attack's random start; torch's global one if None.
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
        """log n_c, fp32 [C]; a class without images counts as one of one image."""
        return self.class_counts.clamp(min=1).float().log()


class LossTerms(NamedTuple):
    """What a method's loss returns; the trainer minimises ``loss`` and drops the gradients of the rest.

    ``loss`` is 0-dim, ``logits`` [B, C] are the model's on the adversarial images, ``logs`` 0-dim tensors by name,
    of which the trainer records the mean over the epoch.
    """

    loss: Tensor
    logits: Tensor
    logs: dict[str, Tensor]

    def detached(self) -> "LossTerms":
        """The same numbers without gradient."""
        return LossTerms(
            self.loss.detach(), self.logits.detach(), {name: value.detach() for name, value in self.logs.items()}
        )
