"""Plain adversarial training (Madry et al., ICLR 2018), in the setting of the long-tailed repositories.

    min_w  mean_i CE( f_w(x'_i), y_i ),   x' = PGD on CE, network in evaluation mode

``loss.cls`` puts another loss in place of the outer CE.

Recipe ``pgd-at/rice`` has the other lineage, Rice et al. (ICML 2020), which attacks in training mode and shows the
clean images to the network once more after each step (``pgd_at.clean_forward``; only batch norm notices).

This is also the first stage of the main method: on the balanced sub-dataset D_B it trains the self-teacher.
"""

from typing import Literal

import torch

from ltat.config import ScheduleSection, Section
from ltat.methods.classification import ClassificationConfig, ClassificationMethod
from ltat.methods.step import LossTerms, Step


class PgdAtSection(Section):
    """What reference codes do beside the loss."""

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
        """The clean forward of Rice et al., which moves the batch-norm statistics by the new weights."""
        if self.config.pgd_at.clean_forward:
            step.model(step.batch.images)
