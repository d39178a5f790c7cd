"""The inputs of a method in one training step, and the result of a method's loss."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor, nn

from ltat.data import Batch
from ltat.engine.network import JoinedNetwork
from ltat.seeding import Noise


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

    Where several ranks share a batch, an attack sees the rank's own images and labels. A loss sees the whole batch, but
    for the images: ``batch.images`` and ``x_adv`` are the rank's own, and ``model`` maps them to the logits of the
    whole batch, since it collects those of the other ranks; ``batch.labels`` and ``batch.indices`` are of the whole
    batch. So a loss is a function of the whole batch, whatever the number of ranks. What another network computes from
    the images is completed by :meth:`whole`.
    """

    model: nn.Module
    batch: Batch
    epoch: int
    epochs: int
    class_counts: Tensor
    x_adv: Tensor
    generator: Noise | None = None

    @property
    def log_prior(self) -> Tensor:
        """log n_c, fp32 [C]; a class without images counts as if it had one."""
        return self.class_counts.clamp(min=1).float().log()

    def whole(self, rows: Tensor) -> Tensor:
        """What the ranks have computed from their images, one row each, as the rows of the whole batch.

        ``rows`` may hold several batches one after the other, as the network's input may.
        """
        shared = self.batch.shared
        return rows if shared is None else shared.ranks.joined(rows, shared.share)

    def for_loss(self) -> "Step":
        """The step as a loss sees it."""
        shared = self.batch.shared
        if shared is None:
            return self
        batch = Batch(self.batch.images, shared.labels, shared.indices, shared)
        return replace(self, model=JoinedNetwork(self.model, self.whole), batch=batch)


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
