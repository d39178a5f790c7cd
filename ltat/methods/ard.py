"""ARD (Goldblum, Fowl, Feizi, Goldstein; AAAI 2020; arXiv 1905.09747): match the teacher's output on x at every x'.

    x' = PGD on CE( S(x'), y ), uniform start, S in training mode: its batch-norm statistics move with every step
    L  = alpha t^2 KL( T(x)/t || S(x')/t ) + (1 - alpha) CE( S(x), y ),     t = 30, alpha = 1

The reference code averages the divergence over images *and* classes. It runs S(x) in training mode even where
alpha = 1 gives it no weight; this forward moves the batch-norm statistics (``kd.clean_forward``). After every milestone
it sets the learning rate to 0.1 of the first rate, so the second milestone changes nothing. The schedule here has only
the first milestone; ``schedule.milestones=[0.5, 0.75]`` is the intended one. The code uses batches of 256 on CIFAR-100.
"""

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ltat.config import AttackSection, OptimSection, ScheduleSection, TrainSection
from ltat.config.sections import Positive, Quotient, Tree
from ltat.methods.distillation import Distillation, DistillationConfig, KdSection
from ltat.methods.divergences import kl
from ltat.methods.step import LossTerms, Step


class ArdSection(KdSection):
    """The constants of ARD's loss (Goldblum et al., AAAI 2020)."""

    share: Annotated[Quotient, Field(ge=0, le=1)] = 1.0
    """α of the paper, 0 to 1: the share of the distillation term; the rest is cross-entropy on clean images."""
    temp: Positive = 30.0
    """Temperature t, above 0."""
    clean_forward: bool = True
    """Whether S(x) runs where it has no weight, as in the reference code; only batch-norm statistics change."""


class ArdConfig(DistillationConfig):
    """The published settings: SGD 0.1, weight decay 2e-4, 200 epochs, 0.01 after 100."""

    method: Literal["ard"] = "ard"
    attack: AttackSection = AttackSection(start="uniform", mode="train")
    optim: OptimSection = OptimSection(wd=2e-4)
    schedule: ScheduleSection = ScheduleSection(milestones=(0.5,), milestone_base=0)
    train: TrainSection = TrainSection(epochs=200)
    kd: ArdSection = ArdSection()

    def by_method(self, num_classes: int) -> Tree:
        """The mean of the divergence: elementmean on both data sets."""
        return super().by_method(num_classes) | {"kd.reduction": "elementmean"}


class Ard(Distillation):
    """alpha t^2 KL( T(x)/t || S(x')/t ) + (1 - alpha) CE( S(x), y )."""

    Config: ClassVar[type[ArdConfig]] = ArdConfig
    config: ArdConfig

    def distil(self, step: Step, student_adv: Tensor | None = None) -> LossTerms:
        """alpha t^2 KL( T(x)/t || S(x')/t ) + (1 - alpha) CE( S(x), y )."""
        kd, x = self.config.kd, step.batch.images
        student_adv = step.model(step.x_adv) if student_adv is None else student_adv
        divergence = kl(step.whole(self.teacher_logits(x)), student_adv, self.config.kd.reduction, kd.temp)
        student_clean = step.model(x) if kd.clean_forward or kd.share < 1 else None
        if student_clean is None or kd.share == 1:
            return LossTerms(divergence, student_adv, {"kd": divergence})
        cls = F.cross_entropy(student_clean, step.batch.labels)
        loss = kd.share * divergence + (1 - kd.share) * cls
        return LossTerms(loss, student_adv, {"kd": divergence, "cls": cls})
