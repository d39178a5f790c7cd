"""AdaAD (Huang, Chen, Wang, Lu, Cheng, Wang; CVPR 2023): train where student and teacher disagree most.

    x' = argmax  KL( T(x') || S(x') )                                        gradient through both, both in eval mode
    L  = alpha KL( T(x') || S(x') ) + (1 - alpha) KL( T(x) || S(x) ),        alpha = 1

The reference code averages over images *and* classes on CIFAR-10 and over images on CIFAR-100. It runs S(x) in training
mode (before S(x')) even where alpha = 1 gives it no weight; this forward moves the batch-norm statistics
(``kd.clean_forward``). Its command line defaults to eps = 16/255 and step 4/255; the defaults here are the paper's
8/255 and 2/255. With alpha = 1 the loss uses no label, so the student can hardly exceed the teacher.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ltat.config import AttackSection, ScheduleSection, TrainSection
from ltat.config.sections import Quotient, Tree
from ltat.methods.distillation import Distillation, DistillationConfig, KdSection
from ltat.methods.divergences import kl
from ltat.methods.step import LossTerms, Step


class AdaadSection(KdSection):
    """The constants of AdaAD's loss (Huang et al., CVPR 2023)."""

    share: Annotated[Quotient, Field(ge=0, le=1)] = 1.0
    """α of the paper, 0 to 1: the share of the adversarial term."""
    clean_forward: bool = True
    """Whether S(x) runs where it has no weight, as in the reference code; only batch-norm statistics change."""


class AdaadConfig(DistillationConfig):
    """The published settings: SGD 0.1, weight decay 5e-4, 200 epochs, x0.1 after 100 and 150."""

    method: Literal["adaad"] = "adaad"
    attack: AttackSection = AttackSection(loss="kl-adv")
    schedule: ScheduleSection = ScheduleSection(milestones=(0.5, 0.75), milestone_base=0)
    train: TrainSection = TrainSection(epochs=200)
    kd: AdaadSection = AdaadSection()

    def by_method(self, num_classes: int) -> Tree:
        """The mean of the divergence: elementmean on CIFAR-10, batchmean above 10 classes."""
        mean = "elementmean" if num_classes <= 10 else "batchmean"
        return super().by_method(num_classes) | {"kd.reduction": mean}


class Adaad(Distillation):
    """alpha KL( T(x') || S(x') ) + (1 - alpha) KL( T(x) || S(x) )."""

    Config: ClassVar[type[AdaadConfig]] = AdaadConfig
    config: AdaadConfig

    def distil(self, step: Step, student_adv: Tensor | None = None) -> LossTerms:
        """alpha KL( T(x') || S(x') ) + (1 - alpha) KL( T(x) || S(x) )."""
        kd, x = self.config.kd, step.batch.images
        student_clean = step.model(x) if kd.clean_forward or kd.share < 1 else None
        student_adv = step.model(step.x_adv) if student_adv is None else student_adv
        adv = kl(step.whole(self.teacher_logits(step.x_adv)), student_adv, self.config.kd.reduction)
        if student_clean is None or kd.share == 1:
            return LossTerms(adv, student_adv, {"kd_adv": adv})
        clean = kl(step.whole(self.teacher_logits(x)), student_clean, self.config.kd.reduction)
        loss = kd.share * adv + (1 - kd.share) * clean
        return LossTerms(loss, student_adv, {"kd_adv": adv, "kd_clean": clean})
