"""Plain adversarial training (Madry et al., ICLR 2018), with the settings of the long-tailed repositories.

    min_w  mean_i CE( f_w(x'_i), y_i ),   x' = PGD on CE, network in evaluation mode

``loss.cls`` replaces the outer CE by another loss.

Recipe ``pgd-at/rice`` has the settings of Rice et al. (ICML 2020), whose code attacks in training mode and runs the
clean images through the network after each step (``pgd_at.clean_forward``), which only changes batch-norm statistics.

This is also the first stage of the main method: on the balanced sub-dataset D_B it trains the self-teacher.
"""

from typing import Literal

import torch

from ltat.config import ScheduleSection, Section
from ltat.methods.classification import ClassificationConfig, ClassificationMethod
from ltat.methods.step import LossTerms, Step


class PgdAtSection(Section):
    """Steps of reference codes that are not part of the loss."""

    clean_forward: bool = False
    """Whether each step ends with a training-mode forward of the clean images, as in the code of Rice et al."""


class PgdAtConfig(ClassificationConfig):
    """The published settings: SGD 0.1, 100 epochs, x0.1 from epochs 75 and 90, and again in epoch 100."""

    method: Literal["pgd-at"] = "pgd-at"
    schedule: ScheduleSection = ScheduleSection(milestones=(0.75, 0.9, 1.0))
    pgd_at: PgdAtSection = PgdAtSection()


class PgdAt(ClassificationMethod):
    """PGD adversarial training: cross-entropy on adversarial images."""

    Config = PgdAtConfig
    config: PgdAtConfig

    def loss(self, step: Step) -> LossTerms:
        """``loss.cls``, by default mean cross-entropy, of the logits on x'."""
        logits = step.model(step.x_adv)
        loss = self.classification(logits, step)
        return LossTerms(loss, logits, {"cls": loss})

    @torch.no_grad()
    def end_step(self, step: Step, terms: LossTerms) -> None:
        """The clean forward of Rice et al., which updates the batch-norm statistics with the new weights."""
        if self.config.pgd_at.clean_forward:
            step.model(step.batch.images)
