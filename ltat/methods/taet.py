"""TAET (Wang et al., CVPR 2025; arXiv 2503.01924): two-stage adversarial equalisation training.

Stage 1, epochs 1 to 40 of 100, trains on clean images:

    min_w  mean_i CE( f_w(x_i), y_i )

Stage 2 minimises the hierarchical adversarial robust loss (HARL) on x' = PGD on plain CE, in evaluation mode. With
l_c the mean of CE( f_w(x'_i), y_i ) over the images of class c in the batch, and l the mean of l_c over the C classes:

    L    = alpha * BCL + beta * HDL + gamma * RCEL,        alpha = beta = gamma = 0.1
    BCL  = l                                               balanced
    HDL  = 1/C * sum_c (l_c - l)^2                         hierarchical deviation
    RCEL = sum_c ( l_c / (sum_k l_k + 1e-10) )^2           rare classes

In the reference code a class that is absent from the batch counts with l_c = 0 (``taet.absent=zero``). Every step
begins with a training-mode forward of the clean images, which enters no loss but moves the batch-norm statistics
(``taet.extra_forward`` in stage 2, ``taet.clean_extra_forward`` in stage 1). The code's resolution of 224 pixels and
its long-tailed test set are not used here.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltat.config import AttackSection, RunConfig, ScheduleSection, Section, named_epoch
from ltat.config.sections import NonNegative
from ltat.errors import LtatError
from ltat.methods.base import Method
from ltat.methods.step import LossTerms, Step


class TaetSection(Section):
    """The two stages of TAET and its loss HARL (Wang et al., CVPR 2025)."""

    clean: NonNegative = 0.4
    """Length of stage 1, on clean images: up to 1 a share of all epochs, rounded down; above 1 a number of epochs."""
    alpha: NonNegative = 0.1
    """Weight α of the mean over classes (BCL)."""
    beta: NonNegative = 0.1
    """Weight β of the deviation between classes (HDL)."""
    gamma: NonNegative = 0.1
    """Weight γ of the rare classes' term (RCEL)."""
    absent: Literal["zero", "ignore"] = "zero"
    """A class that is not in the batch: `zero` (counts with loss 0, as in the reference code) or `ignore`."""
    extra_forward: bool = True
    """Whether a step of stage 2 begins with a training-mode forward of the clean images, as in the reference code."""
    clean_extra_forward: bool = False
    """Whether a step of stage 1 begins with the same forward."""


class TaetConfig(RunConfig):
    """The published settings: 100 epochs, x0.1 after 75 and 90; radius 0.031, step 0.003."""

    method: Literal["taet"] = "taet"
    attack: AttackSection = AttackSection(eps=0.031, step_size=0.003)
    schedule: ScheduleSection = ScheduleSection(milestone_base=0)
    taet: TaetSection = TaetSection()


class Taet(Method):
    """Clean cross-entropy first, then the hierarchical adversarial robust loss."""

    Config = TaetConfig
    config: TaetConfig

    def __init__(self, config: TaetConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        super().__init__(config, class_counts, teacher)
        clean, epochs = config.taet.clean, config.train.epochs
        self.clean_epochs = named_epoch(clean, epochs)
        if self.clean_epochs >= epochs:
            raise LtatError(f"taet.clean={clean:g} leaves none of the {epochs} epochs to adversarial images; lower it")
        self.corrects_prior = config.taet.alpha > 0  # BCL is a mean over classes, not over images

    def is_clean(self, step: Step) -> bool:
        """Whether the epoch belongs to stage 1."""
        return step.epoch <= self.clean_epochs

    def attack(self, step: Step) -> Tensor:
        """The clean images in stage 1, PGD in stage 2, after the reference code's extra forward."""
        taet, clean = self.config.taet, self.is_clean(step)
        if taet.clean_extra_forward if clean else taet.extra_forward:
            with torch.no_grad():
                step.model(step.batch.images)
        return step.batch.images if clean else super().attack(step)

    def loss(self, step: Step) -> LossTerms:
        """Mean cross-entropy in stage 1, HARL in stage 2, of the logits on x'."""
        logits = step.model(step.x_adv)
        losses = F.cross_entropy(logits, step.batch.labels, reduction="none")
        if self.is_clean(step):
            return LossTerms(losses.mean(), logits, {"cls": losses.mean()})
        taet = self.config.taet
        bcl, hdl, rcel = harl(losses, step.batch.labels, logits.shape[1], taet.absent)
        loss = taet.alpha * bcl + taet.beta * hdl + taet.gamma * rcel
        return LossTerms(loss, logits, {"cls": losses.mean(), "bcl": bcl, "hdl": hdl, "rcel": rcel})


def harl(losses: Tensor, labels: Tensor, num_classes: int, absent: str = "zero") -> tuple[Tensor, Tensor, Tensor]:
    """BCL, HDL and RCEL (0-dim) of the losses [B] of images with these labels [B].

    With ``absent="ignore"`` the means of BCL and HDL run over the classes in the batch; RCEL does not change.
    """
    # Products and sums, because scattered sums are not deterministic on CUDA.
    member = F.one_hot(labels, num_classes).to(losses.dtype)
    images = member.sum(dim=0)
    class_losses = (losses[:, None] * member).sum(dim=0) / images.clamp(min=1)
    counted = (images > 0).to(losses.dtype) if absent == "ignore" else torch.ones_like(images)
    bcl = class_losses.sum() / counted.sum()
    hdl = (counted * (class_losses - bcl) ** 2).sum() / counted.sum()
    rcel = ((class_losses / (class_losses.sum() + 1e-10)) ** 2).sum()
    return bcl, hdl, rcel
